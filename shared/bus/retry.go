package bus

import (
	"errors"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Retry calls a handler that failed again, so often and after such pauses as the options say. While a dependency is
// away (ErrAway) it does so for as long as the message's subscriber has it, and reports that. An error of Permanent
// ends it at once.
//
// Errors that it gives back either are the message's own or say that there was no time to find out.
func Retry(o RouterOptions) message.HandlerMiddleware {
	o.setDefaults()
	return func(h message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			patience := o.patience(m)
			defer patience.leave()
			for failures := 0; ; {
				produced, err := h(m)
				switch {
				case err == nil:
					patience.back()
					return produced, nil
				case errors.Is(err, ErrAway):
					if !patience.wait(err) {
						return nil, stopping(err)
					}
					continue
				case patience.stopped():
					return nil, stopping(err) // its context ended under it
				}
				patience.back()
				if failures++; failures > o.Retries || isPermanent(err) {
					return nil, err
				}
				if !sleep(pause(o.Backoff, failures), patience.over, m.Context().Done()) {
					return nil, stopping(err)
				}
			}
		}
	}
}

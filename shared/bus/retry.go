package bus

import (
	"errors"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/shared/retry"
)

// Retry calls a failing handler again, with the number of retries and the delays of the options. While a dependency
// is unavailable (retry.ErrUnavailable), Retry repeats the call without a limit and reports the outage. A handler that
// fails with a retry.Permanent error is not called again. The retries end if the subscriber stops or loses the
// message's partition.
//
// An error that Retry returns is either the message's fault, or wraps errStopping because the retries ended early.
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
					patience.recovered()
					return produced, nil
				case errors.Is(err, retry.ErrUnavailable):
					if !patience.wait(err) {
						return nil, stopping(err)
					}
					continue
				case patience.stopped():
					return nil, stopping(err) // the handler may have failed because of the stop
				}
				patience.recovered()
				if failures++; failures > o.Retries || retry.IsPermanent(err) {
					return nil, err
				}
				if !sleep(pause(o.Backoff, failures), patience.over, m.Context().Done()) {
					return nil, stopping(err)
				}
			}
		}
	}
}

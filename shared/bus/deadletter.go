package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/shared/retry"
)

// A dead letter has these headers in addition to the headers of the original message. A header without a value is left
// out. A dead letter also has the original key and payload; a payload that is too large is left out (see
// DeadLetterPayload).
const (
	DeadLetterTopic     = "dead_letter_topic" // original topic, without the installation's prefix
	DeadLetterPartition = "dead_letter_partition"
	DeadLetterOffset    = "dead_letter_offset"
	DeadLetterKey       = "dead_letter_key"
	DeadLetterError     = "dead_letter_error"
	DeadLetterTime      = "dead_letter_time" // RFC 3339
	DeadLetterHandler   = "dead_letter_handler"
	DeadLetterService   = "dead_letter_service"
	// DeadLetterPayload is present if the payload was left out, because the record would have been too large for the
	// topic. It contains a note with the payload's size.
	DeadLetterPayload = "dead_letter_payload"

	maxReason = 1024 // bytes of the error's text
)

// DeadLetter sends a message to the dead-letter topic if its handler fails, so that later messages are handled. Without
// a dead-letter topic, the message is dropped. In both cases, DeadLetter first calls OnDeadLetter. If the call fails,
// it is repeated: without a limit while the error wraps retry.ErrUnavailable, and up to Retries times after other
// errors. The dead letter is published even if the last call has failed. The publication is repeated after every error,
// so that no message is lost. All repetitions end if the subscriber stops or loses the message's partition; the message
// is then delivered again. A message whose handler had no time to finish, or failed because a dependency is
// unavailable, does not become a dead letter and is delivered again.
func DeadLetter(o RouterOptions) message.HandlerMiddleware {
	o.setDefaults()
	return func(h message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			produced, err := h(m)
			if err == nil || isMessageBlameless(err) {
				return produced, err
			}
			o.reportDeadLetter(m, err)
			return nil, o.sendToDeadLetters(m, err)
		}
	}
}

// reportDeadLetter logs that a message becomes a dead letter or is dropped, and records the error in the trace.
func (o *RouterOptions) reportDeadLetter(m *message.Message, cause error) {
	topic, partition, offset := origin(m)
	attributes := []any{"topic", topic, "partition", partition, "offset", offset, "message", m.UUID, "error", cause}
	var panicked *PanicError
	if errors.As(cause, &panicked) {
		attributes = append(attributes, "stack", string(panicked.Stack))
	}
	what := "message sent to the dead letters"
	if o.DeadLetterTopic == "" {
		what = "message dropped"
	}
	o.Log.Error(what, attributes...)

	span := trace.SpanFromContext(m.Context())
	span.RecordError(cause)
	span.SetStatus(codes.Error, cause.Error())
	span.SetAttributes(attribute.Bool("edumatrix.dead_letter", true))
}

// sendToDeadLetters calls OnDeadLetter and publishes the dead letter, and repeats both as DeadLetter describes. It
// returns nil once the dead letter is on its topic, or if there is no topic because DeadLetterTopic is empty.
func (o *RouterOptions) sendToDeadLetters(m *message.Message, cause error) error {
	patience := o.patience(m)
	defer patience.leave()
	for failures := 0; ; {
		err := o.hook(m, cause)
		if err == nil {
			break
		}
		if errors.Is(err, retry.ErrUnavailable) {
			if !patience.wait(err) {
				return stopping(err)
			}
			continue
		}
		if patience.stopped() {
			return stopping(err)
		}
		patience.recovered()
		if failures++; failures > o.Retries {
			o.Log.Error("the outcome of a message that is given up cannot be recorded", "message", m.UUID, "error", err)
			break
		}
		if !sleep(pause(o.Backoff, failures), patience.over, patience.ended) {
			return stopping(err)
		}
	}
	patience.recovered()
	if o.DeadLetterTopic == "" {
		return nil
	}
	letter := o.deadLetter(m, cause)
	for {
		err := o.Publisher.Publish(o.DeadLetterTopic, letter)
		if err == nil {
			patience.recovered()
			return nil
		}
		if tooLarge(err) && len(letter.Payload) > 0 {
			letter.Metadata.Set(DeadLetterPayload, fmt.Sprintf("left out, %d bytes", len(letter.Payload)))
			letter.Payload = nil
			continue
		}
		if !errors.Is(err, retry.ErrUnavailable) {
			err = retry.Unavailable(kafkaName, err) // retry after any error: the message must not be lost
		}
		if !patience.wait(err) {
			return stopping(err)
		}
	}
}

// hook calls OnDeadLetter and returns its error. A panic of OnDeadLetter becomes an error.
func (o *RouterOptions) hook(m *message.Message, cause error) error {
	_, err := Recover(func(m *message.Message) ([]*message.Message, error) {
		return nil, o.OnDeadLetter(m.Context(), m, cause)
	})(m)
	return err
}

func (o *RouterOptions) deadLetter(m *message.Message, cause error) *message.Message {
	letter := m.Copy()
	letter.SetContext(context.WithoutCancel(m.Context()))
	topic, partition, offset := origin(m)
	reason := strings.ToValidUTF8(cause.Error(), "?")
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + "…"
	}
	for name, value := range map[string]string{
		DeadLetterTopic: topic, DeadLetterPartition: strconv.Itoa(int(partition)),
		DeadLetterOffset: strconv.FormatInt(offset, 10), DeadLetterKey: m.Metadata.Get(MetadataKey),
		DeadLetterError: reason, DeadLetterTime: time.Now().UTC().Format(time.RFC3339Nano),
		DeadLetterHandler: message.HandlerNameFromCtx(m.Context()), DeadLetterService: o.Service,
	} {
		if value != "" {
			letter.Metadata.Set(name, value)
		}
	}
	delete(letter.Metadata, MetadataPartition) // the sender's choice of a partition is for another topic
	return letter
}

func origin(m *message.Message) (topic string, partition int32, offset int64) {
	d, ok := deliveryOf(m.Context())
	if !ok {
		return message.SubscribeTopicFromCtx(m.Context()), -1, -1
	}
	return d.record.Topic, d.record.Partition, d.record.Offset
}

func tooLarge(err error) bool {
	return errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge)
}

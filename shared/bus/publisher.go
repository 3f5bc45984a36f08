package bus

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/shared/backend"
)

// Publisher is Watermill's Publisher on Kafka. It is safe for concurrent use; the order of messages with one key is
// that of the calls, and within a call that of its messages.
type Publisher struct {
	kafka backend.Kafka

	mu       sync.RWMutex // held for reading while messages are on their way
	producer sarama.SyncProducer
	closed   bool
}

var errPublisherClosed = errors.New("publisher is closed")

// NewPublisher connects to the brokers.
func NewPublisher(k backend.Kafka, log *slog.Logger) (*Publisher, error) {
	c := k.SaramaConfig()
	c.Producer.Partitioner = newPartitioner
	producer, err := sarama.NewSyncProducer(k.Brokers, c)
	if err != nil {
		return nil, fmt.Errorf("publisher: %w", Away(kafkaName, err))
	}
	logger(log).Debug("publisher is connected", "brokers", k.Where())
	return &Publisher{kafka: k, producer: producer}, nil
}

// Publish sends messages in one batch and returns when all of them are on every in-sync replica. Their key is the
// metadata entry MetadataKey; without one a message goes to any partition. MetadataPartition names the partition
// outright.
//
// A message whose context has a span is sent within one of its own, "send <topic>", whose traceparent it then carries;
// otherwise it keeps the traceparent of its metadata. Likewise a correlation id.
//
// When some of them failed the error is a *PublishError. It wraps ErrAway where the broker is away; a message that is
// published again may then be there twice.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	if len(messages) == 0 {
		return nil
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return fmt.Errorf("publish to %s: %w", topic, errPublisherClosed)
	}
	records := make([]*sarama.ProducerMessage, len(messages))
	spans := make([]trace.Span, len(messages))
	for i, m := range messages {
		var err error
		if records[i], err = p.record(topic, m); err != nil {
			return fmt.Errorf("publish to %s: message %s: %w", topic, m.UUID, err)
		}
	}
	for i, m := range messages {
		spans[i] = startSend(topic, m, records[i])
		correlate(m, records[i])
	}
	err := p.send(topic, messages, records)
	endSends(spans, records, messages, err)
	return err
}

// PublishTo sends messages to one partition, whatever their keys.
func (p *Publisher) PublishTo(topic string, partition int32, messages ...*message.Message) error {
	addressed := make([]*message.Message, len(messages))
	for i, m := range messages {
		addressed[i] = m.CopyWithContext()
		addressed[i].Metadata.Set(MetadataPartition, strconv.FormatInt(int64(partition), 10))
	}
	return p.Publish(topic, addressed...)
}

// record is a message as Kafka carries it.
func (p *Publisher) record(topic string, m *message.Message) (*sarama.ProducerMessage, error) {
	to := address{key: m.Metadata.Get(MetadataKey), partition: -1}
	if name := m.Metadata.Get(MetadataPartition); name != "" {
		n, err := strconv.ParseInt(name, 10, 32)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("metadata %s is no partition: %q", MetadataPartition, name)
		}
		to.partition = int32(n)
	}
	record, err := kafka.DefaultMarshaler{}.Marshal(p.kafka.Topic(topic), m)
	if err != nil {
		return nil, err
	}
	headers := record.Headers[:0]
	for _, h := range record.Headers {
		if name := string(h.Key); name != MetadataKey && name != MetadataPartition {
			headers = append(headers, h)
		}
	}
	record.Headers, record.Metadata = headers, to
	if to.key != "" {
		record.Key = sarama.StringEncoder(to.key)
	}
	return record, nil
}

// setHeader replaces a header, or adds it.
func setHeader(r *sarama.ProducerMessage, name, value string) {
	for i := range r.Headers {
		if string(r.Headers[i].Key) == name {
			r.Headers[i].Value = []byte(value)
			return
		}
	}
	r.Headers = append(r.Headers, sarama.RecordHeader{Key: []byte(name), Value: []byte(value)})
}

func (p *Publisher) send(topic string, messages []*message.Message, records []*sarama.ProducerMessage) error {
	err := p.producer.SendMessages(records)
	if err == nil {
		return nil
	}
	failed := &PublishError{Topic: topic, Messages: len(messages)}
	var each sarama.ProducerErrors
	if !errors.As(err, &each) {
		return fmt.Errorf("publish to %s: %w", topic, blame(err))
	}
	at := make(map[*sarama.ProducerMessage]int, len(records))
	for i, r := range records {
		at[r] = i
	}
	for _, e := range each {
		failed.Failed = append(failed.Failed, FailedMessage{messages[at[e.Msg]], blame(e.Err)})
	}
	return failed
}

// Close waits for what is on its way.
func (p *Publisher) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if err := p.producer.Close(); err != nil {
		return fmt.Errorf("close the publisher: %w", err)
	}
	return nil
}

// PublishError says which messages of a call were not confirmed. The others are published.
type PublishError struct {
	Topic    string
	Messages int // of the call
	Failed   []FailedMessage
}

// FailedMessage is a message that was not confirmed; it may be on the topic all the same.
type FailedMessage struct {
	Message *message.Message
	Err     error
}

func (e *PublishError) Error() string {
	return fmt.Sprintf("publish to %s: %d of %d messages failed, the first: %v", e.Topic, len(e.Failed), e.Messages,
		e.Failed[0].Err)
}

// Unwrap gives what is wrong with each. While the broker is away for one of them, the call is worth repeating.
func (e *PublishError) Unwrap() []error {
	all := make([]error, len(e.Failed))
	for i, f := range e.Failed {
		all[i] = f.Err
	}
	return all
}

// blame says whether a message or the broker is at fault.
func blame(err error) error {
	for _, own := range []error{sarama.ErrMessageSizeTooLarge, sarama.ErrMessageTooLarge, sarama.ErrInvalidMessage,
		sarama.ErrInvalidMessageSize, sarama.ErrInvalidPartition, sarama.ErrInvalidTopic, sarama.ErrInvalidTimestamp,
		sarama.ErrTopicAuthorizationFailed, sarama.ErrClusterAuthorizationFailed} {
		if errors.Is(err, own) {
			return err
		}
	}
	var configuration sarama.ConfigurationError
	if errors.As(err, &configuration) { // also: a message is over Producer.MaxMessageBytes
		return err
	}
	return Away(kafkaName, err)
}

package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/retry"
)

// Publisher is Watermill's Publisher on Kafka. It is safe for concurrent use. Messages with the same key are stored in
// the order of the calls and, within a call, in the order of its arguments. If the broker does not confirm a message,
// all later messages of its partition in the same call fail too, so publishing the failed messages again keeps the
// order. The exception is a message that is too large for the broker: it fails alone, on every attempt.
type Publisher struct {
	kafka  backend.Kafka
	client *kgo.Client
	counts counts

	mu     sync.RWMutex // held for reading while messages are in flight
	closed bool
}

var (
	errPublisherClosed = errors.New("publisher is closed")
	errNoPartition     = errors.New("the topic does not have the partition")
)

// connectWithin is how long NewPublisher waits for a broker.
const connectWithin = 10 * time.Second

// NewPublisher connects to the brokers and returns a Publisher. If no broker responds within 10 s, the error wraps
// retry.ErrUnavailable.
func NewPublisher(k backend.Kafka, log *slog.Logger) (*Publisher, error) {
	log = logger(log)
	client, err := newClient(k, log, kgo.RecordPartitioner(partitioner()))
	if err != nil {
		return nil, fmt.Errorf("publisher: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectWithin)
	defer cancel()
	if err := client.Ping(ctx); err != nil {
		client.Close()
		return nil, fmt.Errorf("publisher: %w", retry.Unavailable(kafkaName, err))
	}
	log.Debug("publisher is connected", "brokers", k.Where())
	return &Publisher{kafka: k, client: client, counts: counts{kafka: k, client: client}}, nil
}

// Partitions returns the number of partitions that a topic has on the broker. The number is at most three seconds old,
// except that Partitions returns the last known number while the broker is unavailable. If no number is known, it
// returns an error that wraps retry.ErrUnavailable. If the number is n, a message with a key and without
// MetadataPartition goes to the partition envelope.Partition(key, n).
func (p *Publisher) Partitions(ctx context.Context, topic string) (int32, error) {
	return p.counts.of(ctx, topic, countAge)
}

// Publish sends messages together and returns when each of them is on every in-sync replica, or has failed. The key of
// a message is its metadata entry MetadataKey, and determines the partition. The entry MetadataPartition names the
// partition directly. A message that has neither entry goes to a random partition.
//
// If the context of a message has a trace span, the message is sent within a trace span of its own, "send <topic>", and
// carries the traceparent of that span. Otherwise the message keeps the traceparent of its metadata. A message without
// a correlation id gets the correlation id of its context (see CorrelationOf).
//
// If messages failed, the error is a *PublishError. It wraps retry.ErrUnavailable if another attempt may succeed for at
// least one of the failed messages; a message that is published again may be on the topic twice. An error of any other
// type means that no message was sent. The end of a message's context does not end the call; without a broker, the call
// ends after about two seconds of retries.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	if len(messages) == 0 {
		return nil
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return fmt.Errorf("publish to %s: %w", topic, errPublisherClosed)
	}
	name := p.kafka.Topic(topic)
	records := make([]*kgo.Record, len(messages))
	spans := make([]trace.Span, len(messages))
	for i, m := range messages {
		var err error
		if records[i], err = produced(name, m); err != nil {
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

func (p *Publisher) send(topic string, messages []*message.Message, records []*kgo.Record) error {
	failures := failuresOf(p.client.ProduceSync(context.Background(), records...))
	if len(failures) > 0 {
		p.sendToNewPartitions(topic, records, failures)
	}
	if len(failures) == 0 {
		return nil
	}
	failed := &PublishError{Topic: topic, Messages: len(messages)}
	for i, r := range records {
		if err := failures[r]; err != nil {
			failed.Failed = append(failed.Failed, FailedMessage{messages[i], classify(err)})
		}
	}
	return failed
}

// sendToNewPartitions sends the records that the client refused because it did not know their partitions yet, if the
// broker has these partitions. It retries for up to 5 s, and updates the map failures.
func (p *Publisher) sendToNewPartitions(topic string, records []*kgo.Record, failures map[*kgo.Record]error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for delay := (retry.Backoff{First: 10 * time.Millisecond}); ; {
		var again []*kgo.Record
		for _, r := range records {
			if failures[r] != nil && r.Context == beyondLast {
				again = append(again, r)
			}
		}
		if len(again) == 0 {
			return
		}
		n, err := p.counts.of(ctx, topic, 0)
		known := again[:0]
		for _, r := range again {
			if err != nil || r.Partition < n {
				known = append(known, r)
				continue
			}
			failures[r] = fmt.Errorf("%w: %d of %s, which has %d", errNoPartition, r.Partition, r.Topic, n)
			r.Context = nil
		}
		p.client.ForceMetadataRefresh()
		if err != nil || len(known) == 0 || !delay.Wait(ctx) {
			return
		}
		for _, r := range known {
			delete(failures, r)
			r.Context = nil
		}
		for r, err := range failuresOf(p.client.ProduceSync(context.Background(), known...)) {
			failures[r] = err
		}
	}
}

// failuresOf returns the errors of the records that failed.
func failuresOf(results kgo.ProduceResults) map[*kgo.Record]error {
	var failures map[*kgo.Record]error
	for _, r := range results {
		if r.Err == nil {
			continue
		}
		if failures == nil {
			failures = map[*kgo.Record]error{}
		}
		failures[r.Record] = r.Err
	}
	return failures
}

// Close waits until running calls of Publish have returned, and closes the connections.
func (p *Publisher) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.closed = true
		p.client.Close()
	}
	return nil
}

// PublishError contains the messages of a call that were not confirmed. The other messages are published.
type PublishError struct {
	Topic    string
	Messages int // number of messages of the call
	Failed   []FailedMessage
}

// FailedMessage is a message that was not confirmed; it may be on the topic nevertheless.
type FailedMessage struct {
	Message *message.Message
	Err     error
}

func (e *PublishError) Error() string {
	return fmt.Sprintf("publish to %s: %d of %d messages failed, the first: %v", e.Topic, len(e.Failed), e.Messages,
		e.Failed[0].Err)
}

// Unwrap returns the error of each failed message.
func (e *PublishError) Unwrap() []error {
	all := make([]error, len(e.Failed))
	for i, f := range e.Failed {
		all[i] = f.Err
	}
	return all
}

// classify wraps an error so that it matches retry.ErrUnavailable. It does not wrap errors that another attempt cannot
// fix, because the message, its topic or the permissions of this client are at fault.
func classify(err error) error {
	for _, own := range []error{errNoPartition, kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord,
		kerr.CorruptMessage, kerr.InvalidTopicException, kerr.InvalidTimestamp, kerr.TopicAuthorizationFailed,
		kerr.ClusterAuthorizationFailed} {
		if errors.Is(err, own) {
			return err
		}
	}
	return retry.Unavailable(kafkaName, err)
}

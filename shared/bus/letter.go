package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/shared/backend"
)

// Letter is a record of a dead-letter topic.
type Letter struct {
	Partition int32 // of the dead-letter topic
	Offset    int64

	ID            string // of the message
	Service       string // that could not take it
	Topic         string // where it came from
	FromPartition int32
	FromOffset    int64
	Key           string
	Error         string
	Time          time.Time
	Handler       string

	// Message is as it came: payload and headers, without those of a dead letter.
	Message *message.Message
	// Left says that the payload was left out, being too large.
	Left string
}

// noNews is how long a broker may take to hand over records that it has.
const noNews = 15 * time.Second

// DeadLetters reads all that a dead-letter topic has, oldest first in each partition.
func DeadLetters(ctx context.Context, k backend.Kafka, topic string) (all []Letter, err error) {
	s := &source{brokers: k.Brokers, config: consumerConfig(k)}
	s.enter()
	defer s.leave()
	partitions, err := s.partitions(k.Topic(topic))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", topic, err)
	}
	for _, p := range partitions {
		letters, err := s.letters(ctx, k.Topic(topic), p)
		if err != nil {
			return nil, fmt.Errorf("read %s/%d: %w", topic, p, err)
		}
		all = append(all, letters...)
	}
	return all, nil
}

// letters reads a partition up to where it ends now.
func (s *source) letters(ctx context.Context, topic string, partition int32) (all []Letter, err error) {
	oldest, end, err := s.reach(topic, partition)
	if err != nil || oldest >= end {
		return nil, err
	}
	records, err := s.consume(topic, partition, oldest)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, records.Close()) }()
	patience := time.NewTimer(noNews)
	defer patience.Stop()
	for {
		select {
		case r, ok := <-records.Messages():
			if !ok {
				return nil, errors.New("the broker does not hand over what it has")
			}
			all = append(all, letterOf(ctx, r))
			if r.Offset >= end-1 {
				return all, nil
			}
			patience.Reset(noNews)
		case <-records.Errors(): // it tries again
		case <-patience.C:
			return nil, errors.New("the broker does not hand over what it has")
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func letterOf(ctx context.Context, r *sarama.ConsumerMessage) Letter {
	m := (&delivery{record: r}).message(ctx)
	take := func(name string) string {
		v := m.Metadata.Get(name)
		delete(m.Metadata, name)
		return v
	}
	l := Letter{Partition: r.Partition, Offset: r.Offset, ID: m.UUID, Message: m, Service: take(DeadLetterService),
		Topic: take(DeadLetterTopic), Key: take(DeadLetterKey), Error: take(DeadLetterError),
		Handler: take(DeadLetterHandler), Left: take(DeadLetterPayload), FromPartition: -1, FromOffset: -1,
		Time: r.Timestamp}
	if p, err := strconv.ParseInt(take(DeadLetterPartition), 10, 32); err == nil {
		l.FromPartition = int32(p)
	}
	if o, err := strconv.ParseInt(take(DeadLetterOffset), 10, 64); err == nil {
		l.FromOffset = o
	}
	if t, err := time.Parse(time.RFC3339Nano, take(DeadLetterTime)); err == nil {
		l.Time = t
	}
	return l
}

package bus

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

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

// DeadLetters reads all that a dead-letter topic has, oldest first in each partition.
func DeadLetters(ctx context.Context, k backend.Kafka, topic string) ([]Letter, error) {
	var all []Letter
	whole := func(ranges []Range) []Range { return ranges }
	if err := readRanges(ctx, k, topic, whole, func(r Record) { all = append(all, letterOf(ctx, r)) }); err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b Letter) int { return cmp.Compare(a.Partition, b.Partition) })
	return all, nil
}

func letterOf(ctx context.Context, r Record) Letter {
	r.Value = bytes.Clone(r.Value) // letters are kept
	m := r.Message(ctx)
	take := func(name string) string {
		v := m.Metadata.Get(name)
		delete(m.Metadata, name)
		return v
	}
	l := Letter{Partition: r.Partition, Offset: r.Offset, ID: m.UUID, Message: m, Service: take(DeadLetterService),
		Topic: take(DeadLetterTopic), Key: take(DeadLetterKey), Error: take(DeadLetterError),
		Handler: take(DeadLetterHandler), Left: take(DeadLetterPayload), FromPartition: -1, FromOffset: -1,
		Time: r.Time}
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

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

// DeadLetterRecord is a record of a dead-letter topic.
type DeadLetterRecord struct {
	Partition int32 // of the dead-letter topic
	Offset    int64

	ID            string // of the message
	Service       string // the service whose handler failed
	Topic         string // the topic from which the message came
	FromPartition int32  // of the message on Topic; -1: not known
	FromOffset    int64  // of the message on Topic; -1: not known
	Key           string
	Error         string
	Time          time.Time
	Handler       string

	// Message is the original message, without the headers that were added to the dead letter. Its payload is missing
	// if PayloadNote is not empty.
	Message *message.Message
	// PayloadNote is a note if the payload was left out because it was too large; else it is empty.
	PayloadNote string
}

// DeadLetters returns all records of a dead-letter topic, ordered by partition and offset.
func DeadLetters(ctx context.Context, k backend.Kafka, topic string) ([]DeadLetterRecord, error) {
	var all []DeadLetterRecord
	whole := func(ranges []Range) []Range { return ranges }
	if err := readRanges(ctx, k, topic, whole, func(r Record) { all = append(all, deadLetterOf(ctx, r)) }); err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b DeadLetterRecord) int { return cmp.Compare(a.Partition, b.Partition) })
	return all, nil
}

func deadLetterOf(ctx context.Context, r Record) DeadLetterRecord {
	r.Value = bytes.Clone(r.Value) // the records outlive the fetch
	m := r.Message(ctx)
	take := func(name string) string {
		v := m.Metadata.Get(name)
		delete(m.Metadata, name)
		return v
	}
	l := DeadLetterRecord{Partition: r.Partition, Offset: r.Offset, ID: m.UUID, Message: m, Service: take(DeadLetterService),
		Topic: take(DeadLetterTopic), Key: take(DeadLetterKey), Error: take(DeadLetterError),
		Handler: take(DeadLetterHandler), PayloadNote: take(DeadLetterPayload), FromPartition: -1, FromOffset: -1,
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

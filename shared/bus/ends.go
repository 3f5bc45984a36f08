package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/retry"
)

// Range holds the offset of a partition's oldest record and the offset that the partition's next record will get. Both
// offsets are the same if the partition is empty.
type Range struct{ Oldest, End int64 }

// Ranges returns the offsets of each partition of a topic, in the order of the partitions.
func Ranges(ctx context.Context, k backend.Kafka, topic string) ([]Range, error) {
	client, err := newClient(k, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, fmt.Errorf("offsets of %s: %w", topic, err)
	}
	defer client.Close()
	all, err := ranges(ctx, kadm.NewClient(client), k.Topic(topic))
	if err != nil {
		return nil, fmt.Errorf("offsets of %s: %w", topic, retry.Unavailable(kafkaName, err))
	}
	return all, nil
}

func ranges(ctx context.Context, admin *kadm.Client, name string) ([]Range, error) {
	// If records are written and deleted between the two requests, a start may be above the end that was read before.
	// Range.Oldest is the lower of the two offsets, so that the range is not negative.
	ends, err := admin.ListEndOffsets(ctx, name)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, err
	}
	starts, err := admin.ListStartOffsets(ctx, name)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, err
	}
	all := make([]Range, len(ends[name]))
	for p, end := range ends[name] {
		oldest, ok := starts.Lookup(name, p)
		if int(p) >= len(all) || !ok {
			return nil, fmt.Errorf("the broker's response does not contain all partitions of %s", name)
		}
		all[p] = Range{min(oldest.Offset, end.Offset), end.Offset}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("the broker does not know %s", name)
	}
	return all, nil
}

// LastRecords returns the newest record of each partition of a topic, in the order of the partitions. The element of an
// empty partition is nil.
func LastRecords(ctx context.Context, k backend.Kafka, topic string) ([]*Record, error) {
	var last []*Record
	err := readRanges(ctx, k, topic, func(all []Range) []Range {
		last = make([]*Record, len(all))
		for p := range all {
			all[p].Oldest = max(all[p].Oldest, all[p].End-1)
		}
		return all
	}, func(r Record) { last[r.Partition] = &r })
	return last, err
}

// fetchTimeout is how long brokers may return no records although they have some.
const fetchTimeout = 15 * time.Second

// readRanges reads ranges of a topic's partitions, and passes every record to the function each. The function narrow
// gets the ranges that the partitions have at the time of the call, and returns the ranges to read.
func readRanges(ctx context.Context, k backend.Kafka, topic string, narrow func([]Range) []Range, each func(Record)) error {
	wrap := func(err error) error { return fmt.Errorf("read %s: %w", topic, err) }
	name := k.Topic(topic)
	client, err := newClient(k, slog.New(slog.DiscardHandler))
	if err != nil {
		return wrap(err)
	}
	defer client.Close()
	all, err := ranges(ctx, kadm.NewClient(client), name)
	if err != nil {
		return wrap(retry.Unavailable(kafkaName, err))
	}
	all = narrow(all)
	from := map[int32]kgo.Offset{}
	for p, r := range all {
		if r.Oldest < r.End {
			from[int32(p)] = kgo.NewOffset().At(r.Oldest)
		}
	}
	if len(from) == 0 {
		return nil
	}
	reading, err := newClient(k, slog.New(slog.DiscardHandler),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name: from}))
	if err != nil {
		return wrap(err)
	}
	defer reading.Close()
	for len(from) > 0 {
		waiting, cancel := context.WithTimeout(ctx, fetchTimeout)
		fetches := reading.PollFetches(waiting)
		cancel()
		if ctx.Err() != nil {
			return wrap(context.Cause(ctx))
		}
		if errors.Is(fetches.Err0(), context.DeadlineExceeded) {
			return wrap(retry.Unavailable(kafkaName, errors.New("the broker does not return the records that it has")))
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset < all[r.Partition].End {
				each(recordOf(topic, r))
			}
			if r.Offset >= all[r.Partition].End-1 {
				delete(from, r.Partition)
			}
		})
	}
	return nil
}

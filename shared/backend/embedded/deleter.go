package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/shared/backend"
)

// deleter deletes records that are older than the retention of their topic, with the exceptions that StartKafka lists.
// It is a client of the broker like any other.
type deleter struct {
	kafka backend.Kafka
	log   *slog.Logger
	admin *kadm.Client
}

func (d *deleter) run(ctx context.Context, every time.Duration) {
	client, err := kgo.NewClient(append(d.kafka.Options(), kgo.MetadataMaxAge(time.Hour))...)
	if err != nil {
		d.log.Error("records past their retention will not be deleted", "error", err)
		return
	}
	defer client.Close()
	d.admin = kadm.NewClient(client)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := d.pass(ctx); err != nil && ctx.Err() == nil {
				d.log.Warn("records past their retention were not deleted, retrying", "error", err)
			}
		}
	}
}

// pass deletes the expired records of all partitions, once.
func (d *deleter) pass(ctx context.Context) error {
	kept, err := d.retentions(ctx)
	if err != nil || len(kept) == 0 {
		return err
	}
	var topics []string
	for name := range kept {
		topics = append(topics, name)
	}
	// It is safe that the committed offsets are a little old when the records are deleted: if a group commits a higher
	// offset meanwhile, the records below that offset are merely kept until the next pass.
	committed, err := d.committed(ctx)
	if err != nil {
		return err
	}
	oldest, err := listed(d.admin.ListStartOffsets(ctx, topics...))
	if err != nil {
		return fmt.Errorf("look for the oldest records: %w", err)
	}
	ends, err := listed(d.admin.ListEndOffsets(ctx, topics...))
	if err != nil {
		return fmt.Errorf("look for the ends of topics: %w", err)
	}
	remove := kadm.Offsets{}
	for name, retention := range kept {
		if err := d.expired(ctx, name, retention, oldest[name], ends[name], committed, remove); err != nil {
			return fmt.Errorf("topic %s: %w", name, err)
		}
	}
	if len(remove) == 0 {
		return nil
	}
	deleted, err := d.admin.DeleteRecords(ctx, remove)
	return errors.Join(err, deleted.Error())
}

// retentions returns the retention of the topics that have one.
func (d *deleter) retentions(ctx context.Context) (map[string]time.Duration, error) {
	topics, err := d.admin.ListTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	var names []string
	for name := range topics {
		if !strings.HasPrefix(name, "__") {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	settings, err := d.admin.DescribeTopicConfigs(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("describe the settings of topics: %w", err)
	}
	kept := map[string]time.Duration{}
	for _, s := range settings {
		for _, c := range s.Configs {
			if c.Key != backend.KeptRetention {
				continue
			}
			retention, err := keptRetention(c.MaybeValue())
			if errors.Is(err, errNoRetention) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("topic %s: %w", s.Name, err)
			}
			kept[s.Name] = retention
		}
	}
	return kept, nil
}

func listed(all kadm.ListedOffsets, err error) (kadm.ListedOffsets, error) {
	if err == nil {
		err = all.Error()
	}
	return all, err
}

type place struct {
	topic     string
	partition int32
}

// committed returns, for each partition with committed offsets, the lowest offset that a group has committed. This
// group has not read the record at that offset yet.
func (d *deleter) committed(ctx context.Context) (map[place]int64, error) {
	groups, err := d.admin.ListGroups(ctx)
	if err != nil {
		return nil, fmt.Errorf("list groups: %w", err)
	}
	lowest := map[place]int64{}
	if len(groups) == 0 {
		return lowest, nil
	}
	all := d.admin.FetchManyOffsets(ctx, groups.Groups()...)
	if err := all.Error(); err != nil {
		return nil, fmt.Errorf("offsets of groups: %w", err)
	}
	for _, group := range all {
		group.Fetched.Each(func(o kadm.OffsetResponse) {
			at := place{o.Topic, o.Partition}
			if known, ok := lowest[at]; o.At >= 0 && (!ok || o.At < known) {
				lowest[at] = o.At
			}
		})
	}
	return lowest, nil
}

// expired looks for expired records of one topic. For each partition that has some, it adds an offset to the parameter
// remove: the offset of the first record that is kept. It keeps records that a group has not read, according to the
// parameter committed. It also keeps the last record of a partition, so that the partition's offsets continue after a
// restart.
func (d *deleter) expired(ctx context.Context, topic string, retention time.Duration,
	oldest, ends map[int32]kadm.ListedOffset, committed map[place]int64, remove kadm.Offsets) error {
	some := false
	for p, end := range ends {
		some = some || end.Offset-oldest[p].Offset >= 2
	}
	if !some {
		return nil
	}
	young, err := listed(d.admin.ListOffsetsAfterMilli(ctx, time.Now().Add(-retention).UnixMilli(), topic))
	if err != nil {
		return err
	}
	for p, end := range ends {
		// upTo is the offset of the first record to keep. By age alone, this is the first record that is recent enough,
		// or the partition's last record if none is.
		upTo := min(young[topic][p].Offset, end.Offset-1)
		if young[topic][p].Offset < 0 {
			upTo = end.Offset - 1
		}
		if unread, ok := committed[place{topic, p}]; ok {
			upTo = min(upTo, unread)
		}
		if upTo > oldest[p].Offset {
			remove.AddOffset(topic, p, upTo, -1)
		}
	}
	return nil
}

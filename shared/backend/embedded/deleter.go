package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/IBM/sarama"

	"github.com/edumatrix/interlinked/shared/backend"
)

// deleter deletes records that are older than their topic keeps them. It asks and deletes as any client would.
type deleter struct {
	kafka  backend.Kafka
	log    *slog.Logger
	client sarama.Client
	admin  sarama.ClusterAdmin
}

func (d *deleter) run(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			d.disconnect()
			return
		case <-tick.C:
			if err := d.pass(ctx); err != nil && ctx.Err() == nil {
				d.log.Warn("records past their retention were not deleted; they will be", "error", err)
				d.disconnect()
			}
		}
	}
}

func (d *deleter) connect() (err error) {
	if d.admin != nil {
		return nil
	}
	if d.client, err = sarama.NewClient(d.kafka.Brokers, d.kafka.SaramaConfig()); err != nil {
		return err
	}
	if d.admin, err = sarama.NewClusterAdminFromClient(d.client); err != nil {
		return errors.Join(err, d.client.Close())
	}
	return nil
}

func (d *deleter) disconnect() {
	if d.admin != nil {
		_ = d.admin.Close() // and the client with it; the next pass connects again
		d.admin = nil
	}
}

// pass looks at every partition once.
func (d *deleter) pass(ctx context.Context) error {
	if err := d.connect(); err != nil {
		return err
	}
	topics, err := d.admin.ListTopics()
	if err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	// Read before anything else: what a group commits meanwhile only goes up.
	committed, err := d.committed()
	if err != nil {
		return err
	}
	for name, topic := range topics {
		value := topic.ConfigEntries[backend.KeptRetention]
		if value == nil || strings.HasPrefix(name, "__") {
			continue
		}
		retention, err := keptRetention(*value)
		if errors.Is(err, errNoRetention) {
			continue
		}
		if err != nil {
			return fmt.Errorf("topic %s: %w", name, err)
		}
		for partition := range topic.NumPartitions {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := d.delete(name, partition, retention, committed); err != nil {
				return fmt.Errorf("partition %s/%d: %w", name, partition, err)
			}
		}
	}
	return nil
}

type place struct {
	topic     string
	partition int32
}

// committed is, for each partition, the lowest offset that a group that is known there has still to read.
func (d *deleter) committed() (map[place]int64, error) {
	groups, err := d.admin.ListConsumerGroups()
	if err != nil {
		return nil, fmt.Errorf("list groups: %w", err)
	}
	lowest := map[place]int64{}
	for group := range groups {
		offsets, err := d.admin.ListConsumerGroupOffsets(group, nil)
		if err != nil {
			return nil, fmt.Errorf("offsets of group %s: %w", group, err)
		}
		for topic, partitions := range offsets.Blocks {
			for partition, block := range partitions {
				at := place{topic, partition}
				if known, ok := lowest[at]; block.Offset >= 0 && (!ok || block.Offset < known) {
					lowest[at] = block.Offset
				}
			}
		}
	}
	return lowest, nil
}

// delete deletes what is past its time in one partition. The last record stays, so that the offsets go on after a
// restart; so does what a group has not read.
func (d *deleter) delete(topic string, partition int32, retention time.Duration, committed map[place]int64) error {
	oldest, err := d.client.GetOffset(topic, partition, sarama.OffsetOldest)
	if err != nil {
		return err
	}
	end, err := d.client.GetOffset(topic, partition, sarama.OffsetNewest)
	if err != nil {
		return err
	}
	if end-oldest < 2 {
		return nil
	}
	// The first record that is young enough; -1 when none is.
	upTo, err := d.client.GetOffset(topic, partition, time.Now().Add(-retention).UnixMilli())
	if err != nil {
		return err
	}
	if upTo < 0 || upTo > end-1 {
		upTo = end - 1
	}
	if unread, ok := committed[place{topic, partition}]; ok && unread < upTo {
		upTo = unread
	}
	if upTo <= oldest {
		return nil
	}
	return d.admin.DeleteRecords(topic, map[int32]int64{partition: upTo})
}

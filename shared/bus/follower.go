package bus

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
)

// follower reads one partition for a Reader.
type follower struct {
	reader    *Reader
	topic     string
	partition int32
	later     bool // the partition came after the Reader had begun
	out       chan<- *message.Message
	log       *slog.Logger

	begun bool
	next  int64 // the offset to go on with
}

func (f *follower) run(ctx context.Context) {
	trouble := newGrumble(f.log)
	again := backoff{first: firstPause}
	for ctx.Err() == nil {
		before := f.next
		err := f.follow(ctx, trouble)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			trouble.warn("does not read, trying again", err)
		}
		if f.next != before {
			again.tries = 0
		}
		sleep(again.next(), ctx.Done(), nil)
	}
}

// follow reads from where it stands until sarama gives up, which it does when the topic has no such offset any more.
func (f *follower) follow(ctx context.Context, trouble *grumble) error {
	name := f.reader.kafka.Topic(f.topic)
	oldest, end, err := f.reader.source.reach(name, f.partition)
	if err != nil {
		return err
	}
	from := f.next
	switch {
	case f.begun:
	case f.later:
		from = oldest
	default:
		from = f.reader.options.From(f.topic, f.partition, oldest, end)
	}
	nearest := min(max(from, oldest), end)
	if f.begun && nearest != from {
		f.log.Warn("the topic does not have the offset any more, goes on with the nearest", "offset", from,
			"oldest", oldest, "end", end)
	}
	records, err := f.reader.source.consume(name, f.partition, nearest)
	if err != nil {
		return err
	}
	f.begun, f.next = true, nearest
	var reporting sync.WaitGroup
	reporting.Go(func() {
		for err := range records.Errors() {
			trouble.warn("does not read, trying again", err)
		}
	})
	f.handOutAll(ctx, records)
	records.AsyncClose()
	reporting.Wait()
	return nil
}

func (f *follower) handOutAll(ctx context.Context, records sarama.PartitionConsumer) {
	for {
		select {
		case r, ok := <-records.Messages():
			if !ok || !f.handOut(ctx, r) {
				return
			}
			f.next = r.Offset + 1
		case <-ctx.Done():
			return
		}
	}
}

// handOut hands out a record until it is acknowledged; false when ctx ended before.
func (f *follower) handOut(ctx context.Context, r *sarama.ConsumerMessage) bool {
	for tries := 0; ; tries++ {
		if tries > 0 && !sleep(pause(f.reader.options.Backoff, tries), ctx.Done(), nil) {
			return false
		}
		if f.reader.options.Hold(ctx, f.topic, f.partition); ctx.Err() != nil {
			return false
		}
		d := &delivery{topic: f.topic, record: r, over: ctx.Done()}
		if done, acked := f.await(ctx, d); done {
			return acked
		}
	}
}

// await hands out a delivery and waits until it is settled. It is done when the message was acknowledged, or when there
// is no more time.
func (f *follower) await(ctx context.Context, d *delivery) (done, acked bool) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	m := d.message(own)
	select {
	case f.out <- m:
	case <-ctx.Done():
		return true, false
	}
	select {
	case <-m.Acked():
		return true, true
	case <-m.Nacked():
		return false, false
	case <-ctx.Done():
	}
	t := time.NewTimer(f.reader.options.Drain)
	defer t.Stop()
	select {
	case <-m.Acked():
	case <-m.Nacked():
	case <-t.C:
	}
	return true, false
}

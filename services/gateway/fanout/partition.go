package fanout

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/retry"
)

// partition is the progress in one partition of a topic to which a log is published. Positions ascend, except for
// repeats, and each record contains the position of the record before it. So the position of the partition is enough to
// find repeats and missing events.
//
// When a topic has grown, later events of a stream may be in another partition than earlier ones. Before these later
// events, the relay writes a fence into all partitions. The fence begins an epoch of the topic. A partition continues
// after its fence only when the other partitions have reached their fences, so that the events of a stream stay in
// order.
type partition struct {
	topic  *topic
	number int32

	positions, behind prometheus.Gauge

	mu          sync.Mutex
	known       bool
	position    catalog.Position // each event up to here was delivered, or need not be; see hub.Shard.Complete
	incarnation string           // of the log, as of the last record
	complete    atomic.Int64     // the position, readable without the lock
	epoch       atomic.Int32
	last        atomic.Int64 // when the last record was read, in ns since 1970
}

func newPartition(f *Fanout, t *topic, number int32) *partition {
	n := strconv.Itoa(int(number))
	return &partition{topic: t, number: number, positions: f.options.Metrics.Position.WithLabelValues(t.name, n),
		behind: f.options.Metrics.Behind.WithLabelValues(t.name, n)}
}

// heard returns when the last record was read.
func (p *partition) heard() time.Time { return time.Unix(0, p.last.Load()) }

// takeRetrying calls take for a record, repeatedly until take returns no error or the context ends. The parameter ahead
// is that of take.
func (p *partition) takeRetrying(ctx context.Context, f *Fanout, e *envelope.Event, ahead ...*bus.Fetched) {
	owner := p.topic.log.owner
	var backoff retry.Backoff
	for {
		err := p.take(ctx, f, e, ahead...)
		if err == nil {
			if backoff.Failures > 0 {
				f.options.Waiting(owner, nil)
			}
			return
		}
		if ctx.Err() != nil {
			return
		}
		f.options.Waiting(owner, err)
		if !backoff.Wait(ctx) {
			return
		}
	}
}

// take fills the gap before a record, if there is one, from the owner's log. It then delivers the record, unless the
// record is a repeat or a position record (see envelope.Event.IsPosition). If the gap cannot be filled, or ctx ends
// while take waits for other partitions (see begin), take returns an error, and the caller must take the same record
// again. The parameter ahead has the records of the partition that are fetched already and follow this one.
func (p *partition) take(ctx context.Context, f *Fanout, e *envelope.Event, ahead ...*bus.Fetched) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Epoch > 0 && e.Epoch < p.epoch.Load() {
		// The record was read before, or comes from a relay that had lost its lease without noticing. Events of such a
		// relay are published again by the relay that has the lease, in its own epoch and possibly in another partition.
		p.repeat(f)
		return nil
	}
	if e.Incarnation != p.incarnation {
		p.incarnation = e.Incarnation
		p.topic.log.shard.SetIncarnation(e.Incarnation, e.Before)
	}
	if !p.known {
		p.known = true
		p.topic.log.shard.Begin(e.Before)
		p.moveTo(e.Before)
		defer p.topic.log.partitionKnown()
	}
	if e.Epoch > p.epoch.Load() {
		if err := p.begin(ctx, f, e); err != nil {
			return err
		}
	}
	if e.Position <= p.position {
		if e.IsPosition() {
			p.last.Store(time.Now().UnixNano())
			p.behind.Set(time.Since(e.Time).Seconds())
		} else {
			p.repeat(f)
		}
		return nil
	}
	if e.Before > p.position {
		if err := p.fill(ctx, f, e.Before); err != nil {
			return err
		}
	}
	if !e.IsPosition() {
		// Move the position even if delivery panics, so that the next record continues from the new position.
		defer p.moveTo(e.Position)
		f.deliver(p.topic.log, e, superseded(e, ahead))
	} else {
		p.moveTo(e.Position)
	}
	p.behind.Set(time.Since(e.Time).Seconds())
	return nil
}

func (p *partition) repeat(f *Fanout) {
	p.last.Store(time.Now().UnixNano())
	f.options.Metrics.Repeats.Inc()
}

// begin moves the partition p to the epoch of a record; all earlier records of p were handled before. If the epoch is
// not the first, begin then waits until the other partitions have reached this epoch too (see topic.await).
func (p *partition) begin(ctx context.Context, f *Fanout, e *envelope.Event) error {
	switch before := p.epoch.Load(); {
	case e.Fence:
		if e.Before > p.position {
			if err := p.fill(ctx, f, e.Before); err != nil {
				return err
			}
		}
		p.topic.grow(f, e.Partitions, e.Position)
		if e.Position > p.position {
			p.moveTo(e.Position)
		}
	case before > 0:
		// The broker has deleted the fence between the two epochs. So it is unknown to which epoch, and therefore to
		// which partition, each of the missing events belongs, and this partition cannot deliver its part of them.
		// Clients get the missing events when they resume.
		f.options.Log.Error("fan-out: a partition has lost the fence of its epoch; all connections are closed and resume",
			"topic", p.topic.name, "partition", p.number, "epoch", e.Epoch, "position", p.position, "before", e.Before)
		p.topic.grow(f, e.Partitions, -1)
		p.topic.log.shard.Skip(e.Before)
		p.moveTo(max(p.position, e.Before))
	default: // this gateway has just started, or the relay of the earlier records was of a release without epochs
		p.topic.grow(f, e.Partitions, -1)
	}
	p.topic.beginEpoch(p, e.Epoch, e.Partitions)
	if e.Epoch == 1 {
		return nil
	}
	return p.topic.await(ctx, e.Epoch)
}

func (p *partition) moveTo(position catalog.Position) {
	p.position = position
	p.complete.Store(int64(position))
	p.topic.log.shard.SetComplete(p.topic.log.complete())
	p.last.Store(time.Now().UnixNano())
	p.positions.Set(float64(position))
}

// fill delivers the missing events of this partition: the events above the partition's position, up to the position in
// the parameter until. It reads them from the owner's log.
func (p *partition) fill(ctx context.Context, f *Fanout, until catalog.Position) error {
	log := p.topic.log
	owner, ok := f.options.Owners[log.owner]
	if !ok {
		return fmt.Errorf("the owner of the log of %s is not configured", log.owner)
	}
	f.options.Log.Warn("fan-out: a gap is filled from the owner's log", "topic", p.topic.name, "partition", p.number,
		"after", p.position, "until", until)
	f.options.Metrics.Gaps.Inc()
	count := p.topic.countOf(p.epoch.Load())
	for after := p.position; after < until; {
		page, err := p.page(ctx, owner, after, until, count)
		if err != nil {
			return fmt.Errorf("fill %s/%d from %d to %d: %w", p.topic.name, p.number, p.position, until, err)
		}
		for _, r := range page.Records {
			if envelope.Partition(r.Key, count) != p.number {
				continue
			}
			e, err := envelope.ReadRecord(r)
			if err != nil {
				p.unreadable(f, r, err) // skip the record, so that later events are delivered
				continue
			}
			if e.Position > p.position {
				f.deliver(log, &e, false)
				p.moveTo(e.Position)
			}
		}
		if catalog.Position(page.Complete) <= after {
			return fmt.Errorf("fill %s/%d: the log of %s is complete up to %d only", p.topic.name, p.number, log.owner,
				page.Complete)
		}
		after = catalog.Position(page.Complete)
	}
	p.moveTo(until)
	return nil
}

func (p *partition) unreadable(f *Fanout, r *meshv1.Record, err error) {
	f.options.Log.Error("fan-out: a record of the owner's log cannot be read", "topic", p.topic.name,
		"partition", p.number, "stream", r.Key, "after", p.position, "error", err)
	f.options.Metrics.Unreadable.Inc()
}

func (p *partition) page(ctx context.Context, owner reader, after, until catalog.Position, count int32) (*meshv1.ReadLogResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	response, err := owner.ReadLog(ctx, connect.NewRequest(&meshv1.ReadLogRequest{After: int64(after), Until: int64(until),
		Topic: p.topic.name, Partition: p.number, Partitions: count}))
	if err != nil {
		return nil, fmt.Errorf("read the log of %s: %w", p.topic.log.owner, err)
	}
	return response.Msg, nil
}

type reader interface {
	ReadLog(context.Context, *connect.Request[meshv1.ReadLogRequest]) (*connect.Response[meshv1.ReadLogResponse], error)
}

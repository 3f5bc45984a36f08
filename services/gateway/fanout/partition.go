package fanout

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// partition is how far one partition of a logged topic is complete. First appearances ascend by position, and each
// record names the position before it, so one number says it all.
type partition struct {
	topic  catalog.Topic
	number int32
	log    *reading

	mu       sync.Mutex
	known    bool
	position int64        // everything up to here was delivered, or lay before this gateway began
	complete atomic.Int64 // the same, for those who must not wait
	last     atomic.Int64 // when a record was taken last, in ns since 1970
}

// heard is when a record was taken last.
func (p *partition) heard() time.Time { return time.Unix(0, p.last.Load()) }

// take goes on to a record: a repeat is dropped, what is missing before it comes from the owner's log. An owner that is
// away is no fault of the record: the partition waits.
func (p *partition) take(ctx context.Context, f *Fanout, e envelope.Event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known {
		p.known = true
		f.options.Hub.View(p.topic.Owner).Begin(e.Before)
		p.moveTo(f, e.Before)
		defer p.log.partitionKnown()
	}
	if e.Position <= p.position {
		p.last.Store(time.Now().UnixNano())
		if e.IsPosition() {
			f.options.Metrics.behind(p.topic.Name, p.number, time.Since(e.Time))
		} else {
			f.options.Metrics.Repeats.Inc()
		}
		return nil
	}
	if e.Before > p.position {
		if err := p.fill(ctx, f, e.Before); err != nil {
			return bus.Away(p.topic.Owner, fmt.Errorf("fill %s/%d from %d to %d: %w", p.topic.Name, p.number, p.position,
				e.Before, err))
		}
	}
	if !e.IsPosition() {
		f.deliver(ctx, p.topic.Owner, e)
	}
	p.moveTo(f, e.Position)
	f.options.Metrics.behind(p.topic.Name, p.number, time.Since(e.Time))
	return nil
}

func (p *partition) moveTo(f *Fanout, position int64) {
	p.position = position
	p.complete.Store(position)
	f.options.Hub.View(p.topic.Owner).SetComplete(f.complete(p.topic.Owner))
	p.last.Store(time.Now().UnixNano())
	f.options.Metrics.Position.WithLabelValues(p.topic.Name, strconv.Itoa(int(p.number))).Set(float64(position))
}

// fill delivers what the owner's log has of this partition above its number, up to a position.
func (p *partition) fill(ctx context.Context, f *Fanout, until int64) error {
	owner, ok := f.options.Owners[p.topic.Owner]
	if !ok {
		return fmt.Errorf("nobody serves the log of %s", p.topic.Owner)
	}
	f.options.Log.Warn("fan-out: a hole, filled from the owner's log", "topic", p.topic.Name, "partition", p.number,
		"after", p.position, "until", until)
	f.options.Metrics.Holes.Inc()
	for after := p.position; after < until; {
		page, err := p.page(ctx, owner, after, until)
		if err != nil {
			return err
		}
		for _, r := range page.Records {
			if bus.Partition(r.Key, p.topic.Partitions) != p.number {
				continue
			}
			e, err := envelope.ReadRecord(r)
			if err != nil {
				p.unreadable(f, r, err) // passed over, as it is on the topic
				continue
			}
			if e.Position > p.position {
				f.deliver(telemetry.Continue(ctx, e.TraceParent), p.topic.Owner, e)
				p.moveTo(f, e.Position)
			}
		}
		if page.Complete <= after {
			return fmt.Errorf("the log of %s is complete up to %d only", p.topic.Owner, page.Complete)
		}
		after = page.Complete
	}
	p.moveTo(f, until)
	return nil
}

func (p *partition) unreadable(f *Fanout, r *meshv1.Record, err error) {
	f.options.Log.Error("fan-out: a record of the owner's log cannot be read", "topic", p.topic.Name,
		"partition", p.number, "stream", r.Key, "after", p.position, "error", err)
	f.options.Metrics.Unreadable.Inc()
}

func (p *partition) page(ctx context.Context, owner reader, after, until int64) (*meshv1.ReadLogResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	response, err := owner.ReadLog(ctx, connect.NewRequest(&meshv1.ReadLogRequest{After: after, Until: until,
		Topic: p.topic.Name}))
	if err != nil {
		return nil, fmt.Errorf("read the log of %s: %w", p.topic.Owner, err)
	}
	return response.Msg, nil
}

type reader interface {
	ReadLog(context.Context, *connect.Request[meshv1.ReadLogRequest]) (*connect.Response[meshv1.ReadLogResponse], error)
}

func (r *reading) partitionKnown() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unknown--; r.unknown == 0 {
		close(r.known)
	}
}

package consume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
	"github.com/edumatrix/interlinked/shared/retry"
)

// An event that fails parks its stream: the transaction of the checkpoint adds a row for the stream, and the applier
// applies neither the event nor later events of the stream. An operator retries or drops the event, on any instance.
// That instance reads the event and the later events of the stream, up to the checkpoint, from the owner's log. It
// applies these events in order, except an event that the operator dropped. If none of them fails, the transaction of
// the last one removes the row, and the partition's applier continues after that event.

// Resolved is the result of resolving a parked stream.
type Resolved struct {
	Applied int64  // number of events that were applied
	Left    int64  // number of events that are still parked, including the event that failed
	Problem string // error of the event at which resolving stopped; empty: none failed
}

// holdDuration is the maximum time that a partition waits for an operator's retry. If the partition went on, its
// checkpoint could stay ahead of the retry, and the retry would never end.
const holdDuration = 10 * time.Second

// Resolve applies the event that parks a stream, or skips it if the parameter drop is true. The parameter version must
// be the version of that event. Then Resolve applies the stream's later events in order, until an event fails.
func (c *Consumer) Resolve(ctx context.Context, stream string, version catalog.Version, drop bool) (done Resolved, err error) {
	defer func() {
		c.logger.Info("parked stream resolved", "stream", stream, "version", version, "drop", drop,
			"applied", done.Applied, "left", done.Left, "problem", done.Problem, "error", err)
	}()
	p, found, err := c.parkedStream(ctx, stream)
	switch {
	case err != nil:
		return done, err
	case !found:
		return done, refusal.New(refusal.NotFound, "the stream %s is not parked", stream)
	case p.Version != version:
		return done, errOtherVersion(p, version)
	}
	r := &resolving{Consumer: c, stream: stream, drop: drop}
	for tries := 0; found; {
		done.Left = p.Waiting + 1
		if ctx.Err() != nil {
			return done, ctx.Err()
		}
		left, problem, err := r.step(ctx, p)
		var changed *inbox.ParkedChangedError
		switch {
		case errors.As(err, &changed):
			// The partition has passed over further events of the stream meanwhile. If that happens a second time, make
			// the partition wait.
			if tries++; tries > 1 {
				if err := r.hold(ctx, p); err != nil {
					return done, err
				}
			}
		case err != nil:
			return done, err
		default:
			done.Applied += r.applied
			if left == nil {
				done.Left = 0
				return done, nil
			}
			done.Left = left.Waiting + 1
			if problem != nil {
				done.Problem = problem.Error()
				return done, nil
			}
		}
		if p, found, err = c.parkedStream(ctx, stream); err != nil {
			return done, err
		}
		if found && r.drop && p.Version != version {
			return done, errOtherVersion(p, version) // another call has resolved the event that was to be dropped
		}
	}
	return done, nil // another call has resolved the stream
}

func errOtherVersion(p inbox.Parked, version catalog.Version) error {
	return refusal.New(refusal.NotFound, "%s is parked from version %d onwards, not from version %d", p.Stream, p.Version, version)
}

func (c *Consumer) parkedStream(ctx context.Context, stream string) (inbox.Parked, bool, error) {
	all, err := c.o.Log.Inbox().ParkedStream(ctx, c.o.Source, stream)
	if err != nil {
		return inbox.Parked{}, false, err
	}
	for _, p := range all {
		if p.Topic == c.o.Topic {
			return p, true, nil
		}
	}
	return inbox.Parked{}, false, nil
}

// resolving is the state of a retry or a drop.
type resolving struct {
	*Consumer
	stream  string
	drop    bool             // the event that parks the stream is to be skipped
	single  bool             // one event per write, because a write with several events failed
	applied int64            // number of events that the current step applies
	reached catalog.Position // position up to which the partition has passed over events of the stream
}

// step applies as many events as fit into one transaction, or a single event if r.single is set. It returns the
// stream's new row in the table of parked streams, or nil if the stream is no longer parked, and the error of the event
// that failed, or nil if none failed.
func (r *resolving) step(ctx context.Context, p inbox.Parked) (left *inbox.Parked, problem error, err error) {
	r.applied = 0
	events, next, err := r.read(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	c := batchWrite{w: eventlog.Write{Expected: eventlog.AnyVersion, Resolution: &inbox.Resolution{Of: p}}}
	if gone := len(events) == 0 || events[0].Position != p.Position; gone && !r.drop && p.Position <= r.reached {
		return nil, nil, refusal.New(refusal.NotFound, "the log of %s has no version %d of %s: it can only be dropped",
			r.o.Source, p.Version, p.Stream)
	}
	var s size
	taken, dropped := int64(0), false
	for n, e := range events {
		if r.drop && e.Position == p.Position {
			dropped, taken = true, taken+1
			continue
		}
		first := 0
		if e.Position == p.Position {
			first = p.Index
		}
		if r.single && n > 0 && r.applied > 0 {
			left = r.left(p, e, first, taken, nil)
			break
		}
		effects, err := r.effects(e)
		if err != nil {
			left, problem = r.left(p, e, first, taken, err), err
			break
		}
		first = min(first, len(effects))
		fits := first
		for fits < len(effects) && s.fits(effects[fits]) {
			s.add(effects[fits])
			fits++
		}
		c.add(r.Consumer, e, nil, first, effects[first:fits])
		if fits < len(effects) {
			left = r.left(p, e, fits, taken, nil)
			break
		}
		taken, r.applied = taken+1, r.applied+1
	}
	if left == nil && next != nil {
		left = r.left(p, *next, 0, taken, nil)
	}
	c.w.Resolution.Left = left
	_, err = r.o.Commit(ctx, c.commands, c.w)
	switch {
	case err == nil:
		r.drop = false // the event was skipped, or the owner's log no longer has it
		return left, problem, nil
	case isCausedByItems(err) && (!r.single || r.applied > 1):
		r.single = true
		return r.step(ctx, p)
	case isCausedByItems(err):
		// The write contained effects of only one event (see r.single), so the first event that is not skipped is at fault.
		e := events[0]
		skipped := int64(0)
		if dropped {
			e, skipped = events[1], 1
		}
		first := 0
		if e.Position == p.Position {
			first = p.Index
		}
		r.applied = 0
		left, problem = r.left(p, e, first, skipped, err), err
		_, err = r.o.Log.Commit(ctx, eventlog.Write{Expected: eventlog.AnyVersion,
			Resolution: &inbox.Resolution{Of: p, Left: left}})
		r.drop = r.drop && err != nil
		return left, problem, err
	}
	return nil, nil, err
}

// read returns at most maxStreams events of a stream, from the event that parks the stream up to the checkpoint of the
// stream's partition. The result next is the event after the returned events; nil: there are no more events up to the
// checkpoint.
func (r *resolving) read(ctx context.Context, p inbox.Parked) (events []envelope.Event, next *envelope.Event, err error) {
	limit, err := r.limit(ctx)
	r.reached = limit
	if err != nil || limit < p.Position {
		return nil, nil, err
	}
	for after := int64(p.Position - 1); ; {
		page, err := r.page(ctx, &meshv1.ReadLogRequest{After: after, Until: int64(limit), Topic: p.Topic, Stream: p.Stream,
			Limit: maxStreams + 1})
		if err != nil {
			return nil, nil, retry.Unavailable(r.o.Source, err)
		}
		for _, record := range page.GetRecords() {
			e, err := envelope.ReadRecord(record)
			if err != nil {
				return nil, nil, fmt.Errorf("the log of %s: %w", r.o.Source, err)
			}
			events = append(events, e)
		}
		if len(events) > maxStreams {
			return events[:maxStreams], &events[maxStreams], nil
		}
		complete := catalog.Position(page.GetComplete())
		if len(page.GetRecords()) == 0 || complete >= min(limit, catalog.Position(page.GetHead())) {
			return events, nil, nil
		}
		after = int64(complete)
	}
}

// limit returns the position of the checkpoint of the stream's partition. Up to this position, the partition has
// counted the events of the parked stream without applying them, so a retry or a drop reads them from the owner's log.
func (r *resolving) limit(ctx context.Context) (limit catalog.Position, err error) {
	all, err := r.o.Log.Inbox().Checkpoints(ctx, r.o.Source, r.o.Topic)
	for n, c := range all {
		// While the topic grows, a stream may have been in two partitions. The later partition began after the
		// checkpoint of the earlier one had reached the fence. So the higher position is that of the later partition.
		if c.Partitions > 0 && envelope.Partition(r.o.Catalog.KeyOf(r.stream), c.Partitions) == n {
			limit = max(limit, c.Position)
		}
	}
	return limit, err
}

// left returns the entry for a stream that remains parked from an event onwards. The parameter index is the number of
// the event's effects that are applied, taken is the number of events that the step has applied or skipped, and problem
// is the error of the event, or nil.
func (r *resolving) left(p inbox.Parked, e envelope.Event, index int, taken int64, problem error) *inbox.Parked {
	n := r.parkedBy(e, index, errors.New("a retry was interrupted before this event"))
	if problem != nil {
		n.Error = problem.Error()
	}
	n.Waiting = max(0, p.Waiting-taken)
	return n
}

// hold makes the partition wait before the next event of the stream.
func (r *resolving) hold(ctx context.Context, p inbox.Parked) error {
	_, err := r.o.Log.Commit(ctx, eventlog.Write{Expected: eventlog.AnyVersion,
		Resolution: &inbox.Resolution{Of: p, HoldUntil: r.now().Add(holdDuration)}})
	var changed *inbox.ParkedChangedError
	if errors.As(err, &changed) {
		return nil // another call has resolved the stream
	}
	return err
}

func (c *Consumer) now() time.Time { return time.Now().UTC() }

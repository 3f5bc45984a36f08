package consume

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// item is an event on its way into a write.
type item struct {
	event   envelope.Event
	trace   context.Context
	before  int64    // everything up to here precedes the event in its partition
	effects []Effect // of the event, from the index first on
	first   int
	problem error // why the event is parked
}

// size is what the effects of items write.
type size struct {
	streams map[string]bool
	events  int
	bytes   int
	appends bool // whether there are events that no command leads to
}

func (s *size) add(f Effect) {
	if s.streams == nil {
		s.streams = map[string]bool{}
	}
	s.streams[f.Stream] = true
	s.events += len(f.Events)
	for _, m := range f.Events {
		s.bytes += proto.Size(m)
	}
	if f.Command == nil {
		s.appends = true
		return
	}
	s.events++ // about
	s.bytes += proto.Size(f.Command)
}

// fits reports whether an effect may be added within the bounds of one transaction. One always does.
func (s *size) fits(f Effect) bool {
	if len(s.streams) == 0 {
		return true
	}
	if s.events+len(f.Events) > maxEvents || s.bytes >= maxBytes {
		return false
	}
	if f.Command != nil && s.appends {
		return false // a write has its commands first
	}
	return s.streams[f.Stream] || len(s.streams) < maxStreams
}

// consider finds what follows from the next event of the partition, and writes whenever a transaction is full.
// Considered events are in items, or stored.
func (a *applier) consider(e envelope.Event, trace context.Context, before int64) error {
	if a.past(e) {
		return nil
	}
	for {
		p, parked := a.parked[e.Stream]
		if !parked || e.Position < p.Position {
			break
		}
		if !p.HeldUntil.After(time.Now()) {
			a.items = append(a.items, &item{event: e, trace: trace, before: before})
			return nil
		}
		// A retry is about to end: it has to know how far the stream was passed over.
		if err := a.write(a.before(before)); err != nil {
			return err
		}
		if !pause(a.ctx, a.claim.Done(), firstPause) {
			return errOver
		}
		if err := a.reload(); err != nil {
			return err
		}
	}
	effects, err := a.effects(e)
	if err != nil {
		a.logger.Error("an event is parked, and what follows in its stream with it", "stream", e.Stream,
			"version", e.Version, "event", e.ID, "error", err)
		a.items = append(a.items, &item{event: e, trace: trace, before: before, problem: err, first: a.before(before).Index})
		return nil
	}
	first := min(a.before(before).Index, len(effects))
	i := &item{event: e, trace: trace, before: before, first: first}
	for n, f := range effects[first:] {
		if !a.size.fits(f) {
			a.add(i)
			if err := a.write(a.checkpoint(before, first+n)); err != nil {
				return err
			}
			i = &item{event: e, trace: trace, before: before, first: first + n}
		}
		a.size.add(f)
		i.effects = append(i.effects, f)
	}
	a.add(i)
	return nil
}

func (a *applier) add(i *item) {
	if len(i.effects) > 0 {
		a.items = append(a.items, i)
	}
}

// past reports whether an event is not news: it is older than the service reacts to, or an earlier release has applied
// it.
func (a *applier) past(e envelope.Event) bool {
	if !a.consumer.Since.IsZero() && e.Time.Before(a.consumer.Since) {
		return true
	}
	return e.Position <= a.consumer.ReadingsEnd && e.Version <= a.readings[e.Stream]
}

// effects asks the reaction. Its panic costs the event's stream, not the service.
func (c *Consumer) effects(e envelope.Event) (effects []Effect, err error) {
	m, err := c.o.Catalog.Decode(e.Type, e.Body)
	if err != nil {
		return nil, fmt.Errorf("%s at version %d: %w", e.Stream, e.Version, err)
	}
	defer func() {
		if p := recover(); p != nil {
			c.logger.Error("a reaction panicked", "event", e.ID, "type", e.Type, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("%s at version %d: panic: %v", e.Stream, e.Version, p)
		}
	}()
	effects = slices.Clone(c.o.React(e, m))
	for n := range effects {
		if err := c.check(e, n, &effects[n]); err != nil {
			return nil, fmt.Errorf("%s at version %d: effect %d: %w", e.Stream, e.Version, n, err)
		}
	}
	return effects, nil
}

// write stores all items and moves the checkpoint.
func (a *applier) write(to eventlog.Checkpoint) error {
	for {
		items := a.items
		err := a.commit(items, to)
		var changed *eventlog.ParkedChangedError
		if !errors.As(err, &changed) {
			a.items, a.size = nil, size{}
			return err
		}
		// A part may be stored already, if they were halved.
		if err := a.reload(); err != nil {
			return err
		}
		a.items, a.size = nil, size{}
		for _, i := range items {
			if i.before < a.saved.Position || i.before == a.saved.Position && i.first < a.saved.Index {
				continue
			}
			if err := a.consider(i.event, i.trace, i.before); err != nil {
				return err
			}
		}
	}
}

// commit stores items in one transaction. Where that fails because of what is in them it halves them, until the event to
// blame stands alone: that one is parked.
func (a *applier) commit(items []*item, to eventlog.Checkpoint) error {
	if len(items) == 0 && to == a.saved {
		a.savedAt = time.Now()
		return nil
	}
	var since time.Time // when a command could not be decided yet for the first time
	for {
		commands, w, parks := a.compose(items, to)
		err := a.patiently(a.claim.Done(), func() error {
			_, err := a.o.Commit(a.ctx, commands, w)
			return err
		})
		var stale *eventlog.StaleCheckpointError
		switch {
		case err == nil:
			for _, p := range parks {
				a.parked[p.Stream] = p
			}
			if len(parks) > 0 {
				a.revision++
			}
			a.stored(to)
			return nil
		case errors.As(err, &stale) && stale.Have == to:
			// The answer of a commit was lost. If it was not ours, the effects are the same all the same.
			if err := a.reload(); err != nil {
				return err
			}
			a.stored(to)
			return nil
		case errors.As(err, &stale):
			return a.failed("consume", err)
		case !ofItems(err):
			return err
		case len(items) > 1:
			half := len(items) / 2
			if err := a.commit(items[:half], a.checkpoint(items[half].before, items[half].first)); err != nil {
				return err
			}
			items = items[half:]
			since = time.Time{}
		case notYet(err) && (since.IsZero() || time.Since(since) < notYetPatience):
			if since.IsZero() {
				since = time.Now()
			}
			if !pause(a.ctx, a.claim.Done(), firstPause) {
				return errOver
			}
		default:
			e := items[0].event
			if items[0].problem != nil {
				a.logger.Error("an event is left out: not even its stream can be parked", "position", e.Position, "error", err)
				items = nil
				continue
			}
			a.logger.Error("an event is parked, and what follows in its stream with it", "stream", e.Stream,
				"version", e.Version, "event", e.ID, "error", err)
			items[0].problem, items[0].effects = err, nil
		}
	}
}

// ofItems reports whether a write fails because of what is in it.
func ofItems(err error) bool {
	var member *eventlog.MemberError
	var command *CommandError
	return errors.As(err, &member) || errors.As(err, &command)
}

// compose makes the write of items, and the commands that are decided with it. Items of parked streams are passed over.
func (a *applier) compose(items []*item, to eventlog.Checkpoint) ([]Command, eventlog.Write, []eventlog.Parked) {
	advance := &eventlog.Advance{Of: a.of, From: a.saved, To: to, Revision: a.revision}
	c := composed{w: eventlog.Write{Expected: eventlog.AnyVersion, Advance: advance}}
	parks, passed := map[string]*eventlog.Parked{}, map[string]int64{}
	var order []string
	for _, i := range items {
		stream := i.event.Stream
		if p := parks[stream]; p != nil {
			p.Waiting++
			continue
		}
		if p, ok := a.parked[stream]; ok && i.event.Position >= p.Position {
			if i.event.Position > p.Position {
				passed[stream]++
			}
			continue
		}
		if i.problem != nil {
			parks[stream] = a.parkedBy(i.event, i.first, i.problem)
			order = append(order, stream)
			continue
		}
		c.add(a.Consumer, i.event, i.trace, i.first, i.effects)
	}
	for stream, n := range passed {
		advance.Passed = append(advance.Passed, eventlog.Passed{Stream: stream, Events: n})
	}
	for _, stream := range order {
		advance.Park = append(advance.Park, *parks[stream])
	}
	return c.commands, c.w, advance.Park
}

// composed is a write, and the commands that are decided with it.
type composed struct {
	commands []Command
	w        eventlog.Write
}

// add adds effects of an event, of which the first has an index.
func (c *composed) add(of *Consumer, e envelope.Event, trace context.Context, first int, effects []Effect) {
	parent := ""
	if trace != nil {
		parent = telemetry.TraceParent(trace)
	}
	if parent == "" {
		parent = e.TraceParent
	}
	for n, f := range effects {
		if f.Command != nil {
			c.commands = append(c.commands, Command{ID: of.commandID(e, first+n), Actor: f.Actor,
				Correlation: e.Correlation, TraceParent: parent, Message: f.Command})
			continue
		}
		c.w.Appends = append(c.w.Appends, eventlog.Append{Stream: f.Stream, Expected: eventlog.AnyVersion, Actor: f.Actor,
			Cause: e.ID, Correlation: e.Correlation, TraceParent: parent, Events: f.Events})
	}
}

// parkedBy is a stream that an event parks.
func (c *Consumer) parkedBy(e envelope.Event, index int, cause error) *eventlog.Parked {
	record := e.Record(c.o.Topic)
	record.Body = nil
	return &eventlog.Parked{Source: c.o.Source, Topic: c.o.Topic, Stream: e.Stream, Position: e.Position, Index: index,
		Version: e.Version, Record: record, Error: cause.Error(), At: time.Now().UTC()}
}

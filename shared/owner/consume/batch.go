package consume

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// item is an event that waits to be written, with all or some of its effects.
type item struct {
	event   envelope.Event
	trace   context.Context
	before  catalog.Position // every earlier event of the partition is at or below this position
	effects []Effect         // the event's effects, beginning with the index in the field first
	first   int
	problem error // the error that parks the event's stream; nil: none
}

// size sums up effects: their streams, the number of their events, and the bytes of their events and commands.
type size struct {
	streams map[string]bool
	events  int
	bytes   int
	appends bool // whether some effects are events instead of commands
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
	s.events++ // an estimate of the events to which the command leads
	s.bytes += proto.Size(f.Command)
}

// fits reports whether an effect can be written in one transaction with the effects that were added before. The first
// effect always fits.
func (s *size) fits(f Effect) bool {
	if len(s.streams) == 0 {
		return true
	}
	if s.events+len(f.Events) > maxEvents || s.bytes >= maxBytes {
		return false
	}
	if f.Command != nil && s.appends {
		return false // a write decides its commands before it appends events
	}
	return s.streams[f.Stream] || len(s.streams) < maxStreams
}

// collectEffects determines the effects of the next event of the partition and adds them to a.items. Whenever the items
// fill a transaction, collectEffects writes them. An event that fails, or that belongs to a parked stream, is added
// without effects. An event for which isOld returns true is not added.
func (a *applier) collectEffects(e envelope.Event, trace context.Context, before catalog.Position) error {
	if a.isOld(e) {
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
		// An operator retries the parked stream, and the retry has almost reached this partition's checkpoint. So the
		// partition waits before the next event of the stream, at most until HeldUntil. First store the checkpoint,
		// because the retry applies the events of the stream up to the checkpoint.
		if err := a.write(a.before(before)); err != nil {
			return err
		}
		if !pause(a.ctx, a.claim.Done(), firstPause) {
			return errReleased
		}
		if err := a.reload(); err != nil {
			return err
		}
	}
	effects, err := a.effects(e)
	if err != nil {
		a.logger.Error("event failed, its stream is parked", "stream", e.Stream,
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

// isOld reports whether an event is ignored, because it is older than inbox.Consumer.Since or because an earlier
// release has applied it.
func (a *applier) isOld(e envelope.Event) bool {
	if !a.consumer.Since.IsZero() && e.Time.Before(a.consumer.Since) {
		return true
	}
	return e.Position <= a.consumer.LegacyEnd && e.Version <= a.legacyVersions[e.Stream]
}

// effects returns the effects that the reaction has for an event, after checking them. It turns a panic of the reaction
// into an error, which parks the event's stream.
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

// write stores all items and moves the checkpoint. If the parked streams have changed meanwhile, it reads them and
// collects the effects of the items again.
func (a *applier) write(to inbox.Checkpoint) error {
	for {
		items := a.items
		err := a.commit(items, to)
		var changed *inbox.ParkedChangedError
		if !errors.As(err, &changed) {
			a.items, a.size = nil, size{}
			return err
		}
		if err := a.reload(); err != nil {
			return err
		}
		a.items, a.size = nil, size{}
		for _, i := range items {
			if i.before < a.saved.Position || i.before == a.saved.Position && i.first < a.saved.Index {
				continue // stored already: commit may have halved the items and stored the first half
			}
			if err := a.collectEffects(i.event, i.trace, i.before); err != nil {
				return err
			}
		}
	}
}

// commit stores items in one transaction. If the transaction fails because of the items, commit halves them until the
// event at fault is alone, and parks that event's stream. If only a fact is missing (refusal.NotYetError), commit first
// tries again for notYetPatience. If the stream cannot be parked either, the event is dropped.
func (a *applier) commit(items []*item, to inbox.Checkpoint) error {
	if len(items) == 0 && to == a.saved {
		a.savedAt = time.Now()
		return nil
	}
	var since time.Time // when a command first lacked a fact; zero: none has
	for {
		commands, w, parks := a.compose(items, to)
		err := a.retryUnavailable(a.claim.Done(), func() error {
			_, err := a.o.Commit(a.ctx, commands, w)
			return err
		})
		var stale *inbox.StaleCheckpointError
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
			// The checkpoint was stored already: by an earlier commit whose result was lost, or by another instance,
			// whose effects are the same.
			if err := a.reload(); err != nil {
				return err
			}
			a.stored(to)
			return nil
		case errors.As(err, &stale):
			return a.failed("consume", err)
		case !isCausedByItems(err):
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
				return errReleased
			}
		default:
			e := items[0].event
			if items[0].problem != nil {
				a.logger.Error("event dropped: its stream cannot be parked", "position", e.Position, "error", err)
				items = nil
				continue
			}
			a.logger.Error("event failed, its stream is parked", "stream", e.Stream,
				"version", e.Version, "event", e.ID, "error", err)
			items[0].problem, items[0].effects = err, nil
		}
	}
}

// isCausedByItems reports whether a write failed because of its items.
func isCausedByItems(err error) bool {
	var member *eventlog.WriteError
	var command *CommandError
	return errors.As(err, &member) || errors.As(err, &command)
}

// compose returns the commands of items, the write that is committed with them, and the streams that the write parks.
// It leaves out the effects of the events of a parked stream. The write counts these events, except the event that
// parked the stream.
func (a *applier) compose(items []*item, to inbox.Checkpoint) ([]Command, eventlog.Write, []inbox.Parked) {
	advance := &inbox.Advance{Of: a.of, From: a.saved, To: to, Revision: a.revision}
	c := batchWrite{w: eventlog.Write{Expected: eventlog.AnyVersion, Advance: advance}}
	parks, passed := map[string]*inbox.Parked{}, map[string]int64{}
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
		advance.Passed = append(advance.Passed, inbox.Passed{Stream: stream, Events: n})
	}
	for _, stream := range order {
		advance.Park = append(advance.Park, *parks[stream])
	}
	return c.commands, c.w, advance.Park
}

// batchWrite is a write, and the commands that are decided with the write.
type batchWrite struct {
	commands []Command
	w        eventlog.Write
}

// add adds effects of an event. The parameter first is the index of the first of these effects.
func (c *batchWrite) add(of *Consumer, e envelope.Event, trace context.Context, first int, effects []Effect) {
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

// parkedBy returns the entry of the stream that an event parks. The parameter index is the number of the event's stored
// effects.
func (c *Consumer) parkedBy(e envelope.Event, index int, cause error) *inbox.Parked {
	record := e.Record(c.o.Topic)
	record.Body = nil
	return &inbox.Parked{Source: c.o.Source, Topic: c.o.Topic, Stream: e.Stream, Position: e.Position, Index: index,
		Version: e.Version, Record: record, Error: cause.Error(), At: time.Now().UTC()}
}

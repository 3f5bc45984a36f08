package owner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"connectrpc.com/connect"
	"github.com/ThreeDotsLabs/watermill/message"
	lru "github.com/hashicorp/golang-lru/v2"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// Reaction says what follows from an event of another owner: events for streams of this service's own log, or nothing.
// It is pure; ids are made from the event, so that a repeat makes the same ones.
type Reaction func(e envelope.Event, event proto.Message) []eventlog.Append

// reactor applies another owner's events to this service's log: of each stream each version once, in order. How far a
// stream was read is saved with what followed from it; what is newer than the next version waits until the missing ones
// were fetched from their owner.
type reactor struct {
	from    string // the owner whose events these are
	react   Reaction
	log     *eventlog.Log
	catalog *catalog.Catalog
	owner   meshv1connect.OwnerServiceClient
	logger  *slog.Logger
	waiting func(dependency string, err error)

	ctx   context.Context // ends when nothing may be committed any more
	boxes *mailboxes[*told]
	read  *lru.Cache[string, int64] // how far streams were read, as far as this instance knows
}

// gather is how long what leads to nothing may wait for its like: nobody waits for it, and all streams' readings of that
// time are saved in one transaction.
const gather = 100 * time.Millisecond

// told is an event that waits to be applied.
type told struct {
	event  envelope.Event
	trace  context.Context
	answer chan error // takes one
}

func newReactor(ctx context.Context, r reactor) (*reactor, error) {
	var err error
	if r.read, err = lru.New[string, int64](statesKept); err != nil {
		return nil, err
	}
	r.ctx = ctx
	r.boxes = newMailboxes(longestRun, r.run)
	return &r, nil
}

func (r *reactor) handle(m *message.Message) error {
	e, err := envelope.ReadEvent(m)
	if err != nil {
		return bus.Permanent(err)
	}
	if e.IsPosition() {
		return nil
	}
	t := &told{event: e, trace: m.Context(), answer: make(chan error, 1)}
	r.boxes.put(e.Stream, t)
	bus.Release(m)
	return <-t.answer
}

// run applies what waited for one stream in one commit, and one by one if that cannot be.
func (r *reactor) run(stream string, run []*told) {
	err := r.patiently(stream, run)
	if err == nil || len(run) == 1 {
		for _, t := range run {
			t.answer <- err
		}
		return
	}
	for _, t := range run {
		t.answer <- r.patiently(stream, []*told{t})
	}
}

// patiently waits for as long as Postgres or the owner is away.
func (r *reactor) patiently(stream string, run []*told) error {
	for wait, away := firstPause, ""; ; {
		err := r.apply(stream, run)
		var stale *eventlog.StaleReadingError
		var elsewhere *awayError
		switch {
		case err == nil:
			if away != "" {
				r.waiting(away, nil)
			}
			return nil
		case errors.As(err, &stale):
			r.read.Add(stream, stale.Have)
			continue // another instance applied some of them meanwhile
		case errors.As(err, &elsewhere), errors.Is(err, bus.ErrAway):
			away = "postgres"
			if elsewhere != nil {
				away = elsewhere.service
			}
			r.waiting(away, err)
			if pause(r.ctx, wait); r.ctx.Err() != nil {
				return err
			}
			wait = min(2*wait, longestWait)
		default:
			return err
		}
	}
}

func (r *reactor) apply(stream string, run []*told) error {
	have, known := r.read.Get(stream)
	if !known {
		var err error
		if have, err = r.log.ReadingOf(r.ctx, r.from, stream); err != nil {
			return err
		}
	}
	write := eventlog.Write{Reading: &eventlog.Reading{Source: r.from, Stream: stream, Version: have, Previous: have}}
	take := func(e envelope.Event, parent context.Context) error {
		m, err := r.catalog.Decode(e.Type, e.Body)
		if err != nil {
			return bus.Permanent(err)
		}
		for _, a := range r.react(e, m) {
			a.Expected, a.Cause, a.Correlation = eventlog.AnyVersion, e.ID, e.Correlation
			if a.TraceParent = telemetry.TraceParent(parent); a.TraceParent == "" {
				a.TraceParent = e.TraceParent
			}
			write.Appends = append(write.Appends, a)
		}
		write.Reading.Version = e.Version
		return nil
	}
	for _, t := range run {
		if t.event.Version <= write.Reading.Version {
			continue
		}
		if t.event.Version > write.Reading.Version+1 {
			if err := r.missing(stream, write.Reading.Version, t.event.Version, take); err != nil {
				return err
			}
		}
		if err := take(t.event, t.trace); err != nil {
			return fmt.Errorf("%s at version %d: %w", stream, t.event.Version, err)
		}
	}
	if write.Reading.Version == have {
		return nil
	}
	if len(write.Appends) == 0 {
		now := time.Now()
		pause(r.ctx, now.Truncate(gather).Add(gather).Sub(now)) // all wake at once
	}
	if _, err := r.log.Commit(r.ctx, write); err != nil {
		return err
	}
	r.read.Add(stream, write.Reading.Version)
	return nil
}

// pause waits for a time, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// missing takes the versions between two from the owner's log.
func (r *reactor) missing(stream string, after, before int64, take func(envelope.Event, context.Context) error) error {
	r.logger.Info("events are missing from the topic, reading them from their owner's log",
		"stream", stream, "after", after, "before", before)
	for position := int64(0); ; {
		page, err := r.owner.ReadLog(r.ctx, connect.NewRequest(&meshv1.ReadLogRequest{After: position, Stream: stream}))
		if err != nil {
			return &awayError{r.from, err}
		}
		for _, record := range page.Msg.GetRecords() {
			e, err := envelope.ReadRecord(record)
			if err != nil {
				return bus.Permanent(err)
			}
			if e.Version <= after || e.Version >= before {
				continue
			}
			if e.Version != after+1 {
				return bus.Permanent(fmt.Errorf("%s of %s has no version %d", stream, r.from, after+1))
			}
			if err := take(e, context.Background()); err != nil {
				return err
			}
			after = e.Version
		}
		if after == before-1 {
			return nil
		}
		if position = page.Msg.GetComplete(); position >= page.Msg.GetHead() {
			return bus.Permanent(fmt.Errorf("%s of %s has no version %d", stream, r.from, after+1))
		}
	}
}

// awayError says that another service does not answer.
type awayError struct {
	service string
	err     error
}

func (e *awayError) Error() string { return e.service + " does not answer: " + e.err.Error() }

func (e *awayError) Unwrap() error { return e.err }

package owner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
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
// were fetched from their owner. What fails by itself is parked, and what follows in its stream with it (park.go).
type reactor struct {
	from    string // the owner whose events these are
	topic   string // on which they come
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
	err := r.patiently(stream, func() error {
		have, err := r.position(stream)
		if err != nil {
			return err
		}
		_, err = r.apply(stream, run, have)
		return err
	})
	for _, t := range run {
		if err != nil && r.ctx.Err() == nil {
			t.answer <- r.carefully(stream, t)
		} else {
			t.answer <- err
		}
	}
}

// patiently tries for as long as Postgres or the owner is away, or another instance is faster.
func (r *reactor) patiently(stream string, try func() error) error {
	for wait, away := firstPause, ""; ; {
		err := try()
		var stale *eventlog.StaleReadingError
		var elsewhere *awayError
		switch {
		case errors.As(err, &stale):
			r.read.Add(stream, stale.Have)
			continue // another instance applied some of them meanwhile
		case errors.As(err, &elsewhere), errors.Is(err, bus.ErrAway):
			now := "postgres"
			if elsewhere != nil {
				now = elsewhere.service
			}
			if away != "" && away != now {
				r.waiting(away, nil) // it has answered, or the other would not have been asked
			}
			away = now
			r.waiting(away, err)
			if pause(r.ctx, wait); r.ctx.Err() != nil {
				return err
			}
			wait = min(2*wait, longestWait)
		default:
			if away != "" {
				r.waiting(away, nil)
			}
			return err
		}
	}
}

// position is how far a stream was read. A stream with something parked has to be looked at with care.
func (r *reactor) position(stream string) (int64, error) {
	if have, known := r.read.Get(stream); known {
		return have, nil
	}
	have, parked, err := r.log.Parking(r.ctx, r.from, stream)
	if err == nil && parked > 0 {
		err = errParked
	}
	return have, err
}

// mostFollowing is about how many events, of those that follow from what is applied, are written at once.
const mostFollowing = 4096

// apply takes a run of events, and what is missing before and between them, in one commit, or in several where more
// follows than one should write. It says how far the stream is read then.
func (r *reactor) apply(stream string, run []*told, have int64) (read int64, err error) {
	p := &following{reactor: r, stream: stream, written: have, reached: have}
	for _, t := range run {
		if t.event.Version <= p.reached {
			continue
		}
		if t.event.Version > p.reached+1 {
			if err := r.missing(stream, p.reached, t.event.Version, p.take); err != nil {
				return p.written, err
			}
		}
		if err := p.take(t.event, t.trace); err != nil {
			return p.written, err
		}
	}
	if p.reached > p.written && len(p.appends) == 0 {
		now := time.Now()
		pause(r.ctx, now.Truncate(gather).Add(gather).Sub(now)) // all wake at once
	}
	err = p.commit()
	return p.written, err
}

// following is what follows from events of a stream, on its way into the log.
type following struct {
	*reactor
	stream  string
	written int64 // up to this version
	reached int64 // up to this version it is here
	appends []eventlog.Append
	events  int // in those
}

func (p *following) take(e envelope.Event, parent context.Context) error {
	appends, err := p.follows(e)
	if err != nil {
		return &faultError{fmt.Errorf("%s at version %d: %w", p.stream, e.Version, err)}
	}
	for _, a := range appends {
		a.Expected, a.Cause, a.Correlation = eventlog.AnyVersion, e.ID, e.Correlation
		if a.TraceParent = telemetry.TraceParent(parent); a.TraceParent == "" {
			a.TraceParent = e.TraceParent
		}
		p.appends = append(p.appends, a)
		p.events += len(a.Events)
	}
	if p.reached = e.Version; p.events >= mostFollowing {
		return p.commit()
	}
	return nil
}

func (p *following) commit() error {
	if p.reached == p.written {
		return nil
	}
	_, err := p.log.Commit(p.ctx, eventlog.Write{Appends: p.appends, Reading: &eventlog.Reading{Source: p.from,
		Stream: p.stream, Version: p.reached, Previous: p.written}})
	if err != nil {
		return err
	}
	p.read.Add(p.stream, p.reached)
	p.written, p.appends, p.events = p.reached, nil, 0
	return nil
}

// follows asks the reaction; its panic costs the event, not the service.
func (r *reactor) follows(e envelope.Event) (appends []eventlog.Append, err error) {
	m, err := r.catalog.Decode(e.Type, e.Body)
	if err != nil {
		return nil, err
	}
	defer func() {
		if p := recover(); p != nil {
			r.logger.Error("a reaction panicked", "event", e.ID, "type", e.Type, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return r.react(e, m), nil
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
		page, err := r.page(r.ctx, &meshv1.ReadLogRequest{After: position, Stream: stream, AfterVersion: after,
			Limit: int32(min(before-after-1, 500))})
		if err != nil {
			return err
		}
		for _, record := range page.GetRecords() {
			e, err := envelope.ReadRecord(record)
			if err != nil {
				return &faultError{err}
			}
			if e.Version <= after || e.Version >= before {
				continue
			}
			if e.Version != after+1 {
				return r.lacks(stream, after+1)
			}
			if err := take(e, context.Background()); err != nil {
				return err
			}
			after = e.Version
		}
		if after == before-1 {
			return nil
		}
		if position = page.GetComplete(); position >= page.GetHead() {
			return r.lacks(stream, after+1)
		}
	}
}

// pageWithin is how long the owner may take for a page of its log.
const pageWithin = 10 * time.Second

func (r *reactor) page(ctx context.Context, request *meshv1.ReadLogRequest) (*meshv1.ReadLogResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, pageWithin)
	defer cancel()
	page, err := r.owner.ReadLog(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, &awayError{r.from, err}
	}
	return page.Msg, nil
}

func (r *reactor) lacks(stream string, version int64) error {
	return &faultError{fmt.Errorf("the log of %s has no version %d of %s", r.from, version, stream)}
}

// faultError says that no retry helps: the event, or what is missing before it, is not as it has to be.
type faultError struct{ err error }

func (e *faultError) Error() string { return e.err.Error() }

func (e *faultError) Unwrap() error { return e.err }

// awayError says that another service does not answer.
type awayError struct {
	service string
	err     error
}

func (e *awayError) Error() string { return e.service + " does not answer: " + e.err.Error() }

func (e *awayError) Unwrap() error { return e.err }

package owner

import (
	"context"
	"errors"
	"math"
	"slices"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
)

// An event that fails by itself is parked with its error, and goes to the dead letters; the later ones of its stream are
// parked behind it, in the database, so that neither it nor they hold up anything else. Then somebody has it applied
// (retry) or left out (drop), and those behind it follow in order. An event is parked before it is acknowledged, and
// forgotten only after it was applied: whatever is killed in between comes again, and readings tell what was applied.

// errParked says that something of the stream is parked.
var errParked = errors.New("something of the stream is parked")

// careTries is how often what might go better is tried again.
const careTries = 3

// carefully deals with one event of a stream in which something fails, or is parked. It answers with an error for the
// one that failed, which makes it a dead letter, and with none for those that wait behind it.
func (r *reactor) carefully(stream string, t *told) error {
	for failures := 0; ; {
		have, parked, err := r.parking(stream)
		switch {
		case err != nil:
			return err
		case t.event.Version <= have:
			return nil
		case parked > 0 && parked <= t.event.Version:
			if waits, err := r.behind(stream, t.event); err != nil || waits {
				return err
			}
			continue // it was resolved meanwhile
		}
		// One version at a time, also of those that are missing from the topic, so that it is known which one fails.
		next := t
		if t.event.Version > have+1 {
			next, err = r.fetch(stream, have+1)
		}
		if err == nil {
			err = r.patiently(stream, func() error {
				_, err := r.apply(stream, []*told{next}, have)
				return unlessStale(err)
			})
		}
		switch {
		case err == nil:
			failures = 0
			continue
		case r.ctx.Err() != nil:
			return err
		}
		if failures++; failures <= careTries && !hopeless(err) {
			pause(r.ctx, firstPause<<failures)
			continue
		}
		if next == nil {
			next = t // what is missing before it cannot be had
		}
		if err := r.fails(stream, next.event, err); err != nil {
			return err
		}
		r.logger.Error("an event is parked, and what follows in its stream with it", "stream", stream,
			"version", next.event.Version, "event", next.event.ID, "error", err)
	}
}

// unlessStale: where another instance was faster, look again.
func unlessStale(err error) error {
	var stale *eventlog.StaleReadingError
	if errors.As(err, &stale) {
		return nil
	}
	return err
}

// hopeless: it is pure, or the database has said so.
func hopeless(err error) bool {
	var fault *faultError
	var member *eventlog.MemberError
	return errors.As(err, &fault) || errors.As(err, &member)
}

// parking is read anew, past what this instance remembers.
func (r *reactor) parking(stream string) (have, parked int64, err error) {
	r.read.Remove(stream)
	err = r.patiently(stream, func() (err error) {
		have, parked, err = r.log.Parking(r.ctx, r.from, stream)
		return err
	})
	return have, parked, err
}

// behind has an event wait, if there is still something to wait for. The error is that of the event itself, if it is the
// one that failed.
func (r *reactor) behind(stream string, e envelope.Event) (waits bool, err error) {
	var own []eventlog.Parked
	err = r.patiently(stream, func() (err error) {
		if waits, err = r.log.Park(r.ctx, r.parked(stream, e, "")); err != nil || !waits {
			return err
		}
		own, err = r.log.ParkedOf(r.ctx, r.from, stream, e.Version, e.Version)
		return err
	})
	if err == nil && len(own) == 1 && own[0].Error != "" {
		err = bus.Permanent(&parkedError{errors.New(own[0].Error)})
	}
	return waits, err
}

// fails parks an event with why it failed.
func (r *reactor) fails(stream string, e envelope.Event, cause error) error {
	return r.patiently(stream, func() error {
		_, err := r.log.Park(r.ctx, r.parked(stream, e, cause.Error()))
		return err
	})
}

func (r *reactor) parked(stream string, e envelope.Event, problem string) eventlog.Parked {
	record := e.Record(r.topic)
	record.Body = nil
	return eventlog.Parked{Source: r.from, Stream: stream, Version: e.Version, Record: record, Error: problem}
}

// fetch reads one version from its owner's log.
func (r *reactor) fetch(stream string, version int64) (found *told, err error) {
	err = r.patiently(stream, func() error {
		return r.missing(stream, version-1, version+1, func(e envelope.Event, trace context.Context) error {
			found = &told{event: e, trace: trace}
			return nil
		})
	})
	return found, err
}

// resolved is what came of dealing with a parked stream.
type resolved struct {
	applied int64
	left    int64
	problem string // of the event at which it stopped
}

// resolve applies the first event that is parked of a stream, or leaves it out, and those behind it, in order, until one
// fails.
func (r *reactor) resolve(ctx context.Context, stream string, version int64, drop bool) (done resolved, err error) {
	defer func() {
		r.read.Remove(stream)
		r.logger.Info("a parked stream was dealt with", "stream", stream, "version", version, "drop", drop,
			"applied", done.applied, "left", done.left, "problem", done.problem, "error", err)
	}()
	have, parked, err := r.log.Parking(ctx, r.from, stream)
	if err != nil {
		return done, err
	}
	if parked != version {
		if parked == 0 {
			return done, refusal.New(refusal.NotFound, "nothing of %s is parked", stream)
		}
		return done, refusal.New(refusal.NotFound, "version %d of %s waits behind version %d, which is parked first",
			version, stream, parked)
	}
	if drop {
		if have, err = r.leaveOut(ctx, stream, have, version); err != nil {
			return done, err
		}
	}
	for {
		waiting, err := r.log.ParkedOf(ctx, r.from, stream, have+1, math.MaxInt64)
		if err != nil {
			return done, err
		}
		var problem *parkedError
		if len(waiting) > 0 {
			have, problem, err = r.drain(ctx, stream, have, waiting, &done)
		}
		var undone error
		if done.left, undone = r.log.Unpark(ctx, r.from, stream, 0); err != nil || undone != nil {
			return done, errors.Join(err, undone)
		}
		if problem != nil {
			done.problem = problem.Error()
			return done, nil
		}
		if done.left == 0 {
			return done, nil
		}
	}
}

// leaveOut counts a parked event as read. One whose predecessors were never read, as their owner does not have them, is
// only forgotten: nothing that the stream may still bring is left out with it.
func (r *reactor) leaveOut(ctx context.Context, stream string, have, version int64) (read int64, err error) {
	if version != have+1 {
		_, err := r.log.Unpark(ctx, r.from, stream, version)
		return have, err
	}
	_, err = r.log.Commit(ctx, eventlog.Write{Reading: &eventlog.Reading{Source: r.from, Stream: stream,
		Version: version, Previous: have}})
	return version, err
}

// parkedError is why an event is parked, again.
type parkedError struct{ err error }

func (e *parkedError) Error() string { return e.err.Error() }

func (e *parkedError) Unwrap() error { return e.err }

// drain applies a stream from where it was read up to the last one that waits, as its owner's log has it now. What cannot
// be applied is parked with its error.
func (r *reactor) drain(ctx context.Context, stream string, have int64, waiting []eventlog.Parked, done *resolved) (
	read int64, problem *parkedError, err error) {
	last := waiting[len(waiting)-1].Version
	for have < last {
		if ctx.Err() != nil {
			return have, nil, ctx.Err()
		}
		var run []*told
		collect := func(e envelope.Event, trace context.Context) error {
			run = append(run, &told{event: e, trace: trace})
			return nil
		}
		lacking := r.missing(stream, have, min(last, have+longestRun)+1, collect)
		if len(run) == 0 {
			if !hopeless(lacking) {
				return have, nil, lacking
			}
			// What comes before the first one that waits cannot be had.
			first := waiting[slices.IndexFunc(waiting, func(p eventlog.Parked) bool { return p.Version > have })]
			first.Error = lacking.Error()
			_, err := r.log.Park(ctx, first)
			return have, &parkedError{lacking}, err
		}
		if have, err = r.drainRun(stream, run, have, done); errors.As(err, &problem) {
			return have, problem, nil
		} else if err != nil {
			return have, nil, err
		}
	}
	return have, nil, nil
}

// drainRun applies a run in one commit, and one by one if that cannot be, up to the one that fails.
func (r *reactor) drainRun(stream string, run []*told, have int64, done *resolved) (read int64, err error) {
	read, err = r.apply(stream, run, have)
	done.applied += read - have
	have = read
	var stale *eventlog.StaleReadingError
	var elsewhere *awayError
	switch {
	case err == nil:
		return have, nil
	case errors.As(err, &stale):
		return stale.Have, nil // another instance applied some of them
	case errors.As(err, &elsewhere), errors.Is(err, bus.ErrAway), r.ctx.Err() != nil:
		return have, err
	case len(run) > 1:
		for _, one := range run {
			if have >= one.event.Version {
				continue
			}
			if have, err = r.drainRun(stream, []*told{one}, have, done); err != nil {
				return have, err
			}
		}
		return have, nil
	}
	if _, undone := r.log.Park(r.ctx, r.parked(stream, run[0].event, err.Error())); undone != nil {
		return have, undone
	}
	return have, &parkedError{err}
}

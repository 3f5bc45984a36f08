package owner

import (
	"context"
	"errors"
	"fmt"
	"time"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
)

// catchUpEvery is how often the owner's log is read on after the start.
const catchUpEvery = time.Minute

// catchUp reads the events of the topic from their owner's log, from where all of them are known to be applied to its
// head: at the start, and then by the minute. The topic is the quick way, and may have forgotten what came while this
// service was away, or lose it; the log is the whole. What was applied already is dropped by its version.
func (r *reactor) catchUp(ctx context.Context) {
	for ctx.Err() == nil {
		every := catchUpEvery
		if err := r.readOn(ctx); err != nil && ctx.Err() == nil {
			r.logger.Warn("catching up from the owner's log does not go on, trying again", "owner", r.from,
				"topic", r.topic, "error", err)
			every = longestWait
		}
		pause(ctx, every)
	}
}

func (r *reactor) readOn(ctx context.Context) error {
	mark := "topic " + r.topic // no stream is called so
	position, err := r.log.ReadingOf(ctx, r.from, mark)
	if err != nil {
		return err
	}
	for {
		page, err := r.page(ctx, &meshv1.ReadLogRequest{After: position, Topic: r.topic, Limit: 1000})
		if err != nil {
			return err
		}
		if err := r.applyAll(ctx, page.GetRecords()); err != nil {
			return err
		}
		complete := page.GetComplete()
		if complete <= position {
			return nil
		}
		_, err = r.log.Commit(ctx, eventlog.Write{Reading: &eventlog.Reading{Source: r.from, Stream: mark,
			Version: complete, Previous: position}})
		var stale *eventlog.StaleReadingError
		switch {
		case errors.As(err, &stale):
			position = stale.Have // another instance reads on as well
		case err != nil:
			return err
		default:
			position = complete
		}
		if position >= page.GetHead() {
			return nil
		}
	}
}

// applyAll has a page's events applied, each in its place among those that the topic brings meanwhile. What is parked is
// dealt with: it waits for somebody, and nothing waits for it here.
func (r *reactor) applyAll(ctx context.Context, records []*meshv1.Record) error {
	var waiting []*told
	for _, record := range records {
		e, err := envelope.ReadRecord(record)
		if err != nil {
			return err
		}
		t := &told{event: e, trace: ctx, answer: make(chan error, 1)}
		waiting = append(waiting, t)
		r.boxes.put(e.Stream, t)
	}
	for _, t := range waiting {
		var parked *parkedError
		if err := <-t.answer; err != nil && !errors.As(err, &parked) {
			return fmt.Errorf("apply %s at version %d: %w", t.event.Stream, t.event.Version, err)
		}
	}
	return nil
}

package owner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/timer"
	"github.com/edumatrix/interlinked/shared/retry"
)

const (
	timersAtOnce = 500 // maximum number of timers that are read at a time
	// timerLane is the maximum number of timers' commands that are decided concurrently. It is so small that a group
	// commit has room for other commands even if many timers are due.
	timerLane = 32
)

// timers passes the commands of due timers to the decider of this instance. One instance at a time sends timers'
// commands, except after a turn that takes too long (see timer.Turn).
type timers struct {
	log     *eventlog.Log
	catalog *catalog.Catalog
	decider *decider
	logger  *slog.Logger
	waiting func(dependency string, err error)
}

// run sends commands until ctx ends. It returns after the commands that are being decided have their outcomes.
func (t *timers) run(ctx context.Context) {
	unavailable := false
	for ctx.Err() == nil {
		err := t.turn(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			unavailable = true
			t.waiting("postgres", err)
			t.logger.WarnContext(ctx, "sending timers' commands failed, retrying", "error", err)
			retry.Sleep(ctx, time.Second)
		case unavailable:
			unavailable = false
			t.waiting("postgres", nil)
		}
	}
}

// turn waits until timers are due and sends their commands, unless another instance is sending commands.
func (t *timers) turn(ctx context.Context) error {
	now, err := timer.Await(ctx, t.log)
	if err != nil {
		return err
	}
	got, err := timer.Turn(ctx, t.log, func(ctx context.Context) error { return t.send(ctx, now) })
	if err == nil && !got {
		retry.Sleep(ctx, 500*time.Millisecond)
	}
	return err
}

// send sends the commands of up to timersAtOnce timers, those that have been due for longest, and waits for their
// outcomes. The parameter now is the time of the log's clock.
func (t *timers) send(ctx context.Context, now time.Time) error {
	all, err := timer.Due(ctx, t.log, now, timersAtOnce)
	if err != nil {
		return err
	}
	var sending sync.WaitGroup
	lane := make(chan struct{}, timerLane)
	var mu sync.Mutex
	var failed error
	for _, due := range all {
		select {
		case lane <- struct{}{}:
		case <-ctx.Done():
			sending.Wait()
			return ctx.Err()
		}
		sending.Go(func() {
			defer func() { <-lane }()
			if err := t.sendOne(ctx, due); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = err
			}
		})
	}
	sending.Wait()
	return failed
}

// sendOne sends the command of a timer. The transaction that stores the outcome removes the timer. If no outcome is
// stored, the timer remains, and a later turn sends its command again.
func (t *timers) sendOne(ctx context.Context, due timer.Timer) error {
	pc, err := t.command(due)
	if err == nil {
		t.decider.enqueue(pc)
		outcome := <-pc.outcome
		switch err = outcome.err; {
		case errors.Is(err, errTimer), errors.Is(err, retry.ErrUnavailable):
			// errTimer means that the timer was replaced or canceled meanwhile, or is not due. If the database is
			// unavailable, the next turn sends the command again.
			if errors.Is(err, retry.ErrUnavailable) {
				return err
			}
			return nil
		case err == nil && outcome.repeated:
			return timer.Drop(ctx, t.log, due.TimerKey) // a rebuild set the timer again after its command had been sent
		case err == nil:
			return nil
		}
	}
	t.logger.ErrorContext(ctx, "the command of a timer failed", "stream", due.Stream, "timer", due.Key,
		"command", due.Command, "error", err)
	if _, err = t.decider.recordFailure(ctx, timerCommand(due), &due.TimerKey); err != nil {
		var gone *eventlog.TimerError
		if errors.As(err, &gone) {
			return nil
		}
		return err
	}
	return nil
}

func timerCommand(due timer.Timer) envelope.Command {
	return envelope.Command{ID: due.CommandID(), Type: due.Command, Stream: due.Stream, Actor: catalog.TimerActor,
		Time: due.Due, Body: due.Body}
}

func (t *timers) command(due timer.Timer) (*pendingCommand, error) {
	declared, ok := t.catalog.Command(due.Command)
	if !ok {
		return nil, fmt.Errorf("command %q is not declared", due.Command)
	}
	body := declared.Type.New().Interface()
	if err := proto.Unmarshal(due.Body, body); err != nil {
		return nil, fmt.Errorf("command %s: %w", due.Command, err)
	}
	c := timerCommand(due)
	return &pendingCommand{command: c, declared: declared, message: body, timer: &due.TimerKey,
		digest: digestOfMessage(c, body), trace: context.Background(), outcome: make(chan commandOutcome, 1)}, nil
}

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
	"github.com/edumatrix/interlinked/shared/retry"
)

const (
	timersAtOnce = 500 // timers read at a time
	// timerLane is the number of timers' commands that are decided concurrently: few enough that a group commit has
	// room for other commands, however many timers are due.
	timerLane = 32
)

// timers passes the commands of due timers to the decider of this instance. Only one instance does so at a time.
type timers struct {
	log     *eventlog.Log
	catalog *catalog.Catalog
	decider *decider
	logger  *slog.Logger
	waiting func(dependency string, err error)
}

// run sends commands until ctx ends. It finishes commands that are being decided.
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

// turn waits until timers are due and sends their commands, unless it is another instance's turn.
func (t *timers) turn(ctx context.Context) error {
	now, err := t.log.AwaitTimer(ctx)
	if err != nil {
		return err
	}
	got, err := t.log.TimerTurn(ctx, func(ctx context.Context) error { return t.send(ctx, now) })
	if err == nil && !got {
		retry.Sleep(ctx, 500*time.Millisecond)
	}
	return err
}

// send sends the commands of one page of timers and waits for their outcomes.
func (t *timers) send(ctx context.Context, now time.Time) error {
	due, err := t.log.DueTimers(ctx, now, timersAtOnce)
	if err != nil {
		return err
	}
	var sending sync.WaitGroup
	lane := make(chan struct{}, timerLane)
	var mu sync.Mutex
	var failed error
	for _, timer := range due {
		select {
		case lane <- struct{}{}:
		case <-ctx.Done():
			sending.Wait()
			return ctx.Err()
		}
		sending.Go(func() {
			defer func() { <-lane }()
			if err := t.sendOne(ctx, timer); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = err
			}
		})
	}
	sending.Wait()
	return failed
}

// sendOne sends the command of a timer. The transaction of the outcome removes the timer.
func (t *timers) sendOne(ctx context.Context, timer eventlog.Timer) error {
	pc, err := t.command(timer)
	if err == nil {
		t.decider.enqueue(pc)
		outcome := <-pc.outcome
		switch err = outcome.err; {
		case errors.Is(err, errTimer), errors.Is(err, retry.ErrUnavailable):
			// The timer was replaced or cancelled meanwhile, or its command will be sent again.
			if errors.Is(err, retry.ErrUnavailable) {
				return err
			}
			return nil
		case err == nil && outcome.repeated:
			return t.log.DropTimer(ctx, timer.TimerKey) // a rebuild set the timer again after its command had been sent
		case err == nil:
			return nil
		}
	}
	t.logger.ErrorContext(ctx, "the command of a timer failed", "stream", timer.Stream, "timer", timer.Key,
		"command", timer.Command, "error", err)
	if _, err = t.decider.recordFailure(ctx, timerCommand(timer), &timer.TimerKey); err != nil {
		var gone *eventlog.TimerError
		if errors.As(err, &gone) {
			return nil
		}
		return err
	}
	return nil
}

func timerCommand(timer eventlog.Timer) envelope.Command {
	return envelope.Command{ID: timer.CommandID(), Type: timer.Command, Stream: timer.Stream, Actor: catalog.TimerActor,
		Time: timer.Due, Body: timer.Body}
}

func (t *timers) command(timer eventlog.Timer) (*pendingCommand, error) {
	declared, ok := t.catalog.Command(timer.Command)
	if !ok {
		return nil, fmt.Errorf("command %q is not declared", timer.Command)
	}
	body := declared.Type.New().Interface()
	if err := proto.Unmarshal(timer.Body, body); err != nil {
		return nil, fmt.Errorf("command %s: %w", timer.Command, err)
	}
	c := timerCommand(timer)
	return &pendingCommand{command: c, declared: declared, message: body, timer: &timer.TimerKey,
		digest: digestOfMessage(c, body), trace: context.Background(), outcome: make(chan commandOutcome, 1)}, nil
}

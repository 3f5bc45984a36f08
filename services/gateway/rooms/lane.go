package rooms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/services/gateway/guard"
	"github.com/edumatrix/interlinked/shared/retry"
)

const (
	// maxCall is how many are asked for in one call, so that no answer gets too large.
	maxCall  = 500
	deadline = 5 * time.Second
	// minPause and maxPause bound the pause before an owner that does not answer is asked again.
	minPause, maxPause = 50 * time.Millisecond, 2 * time.Second
)

// lane holds those who wait for one kind of answer of an owner, and asks for many of them in one call.
//
// A call may fail, or take too long, because of one of those it asks for. They all go on in the next lane, which asks
// for fewer at a time, and the last one for each alone: so one costs the others a few calls, and delays only itself. An
// owner that is unavailable is not the fault of one connection: all stay where they are.
//
// A call asks for only so many of one user, and for none who is to wait. Those who come behind the many connections of
// somebody else are asked for before most of these. Where a user is to be in one call at a time, the others go on in the
// calls beside it.
type lane[T any] struct {
	kind[T]
	max  int      // in one call
	next *lane[T] // of those whose call failed; nil: failed takes them

	mu      sync.Mutex
	waiting []T
	wake    chan struct{}
	timer   *time.Timer     // for those who are to wait
	asked   map[string]bool // users in calls under way, where alone
}

// kind is what lanes have in common that ask for the same.
type kind[T any] struct {
	name  string
	calls int // under way at a time
	// ask returns who has to be asked for again. With an error nobody was answered.
	ask    func(ctx context.Context, batch []T) (again []T, err error)
	ended  func(T) bool // reports who needs no answer any more
	user   func(T) string
	each   int                   // of one user, in one call
	alone  bool                  // only one call under way in a lane contains any of one user
	wait   func(T) time.Duration // how long somebody is not asked for yet; nil: nobody waits
	failed func(one T, err error)
	gather time.Duration
	guard  *guard.Guard
	log    *slog.Logger
}

// lanes makes a lane and the lanes behind it, each of which asks for fewer at a time than the one before.
func lanes[T any](k kind[T], sizes ...int) (first *lane[T]) {
	for _, size := range slices.Backward(sizes) {
		first = &lane[T]{kind: k, max: size, next: first, wake: make(chan struct{}, 1), asked: map[string]bool{}}
	}
	return first
}

// add lets somebody wait.
func (l *lane[T]) add(more ...T) {
	l.mu.Lock()
	l.waiting = append(l.waiting, more...)
	l.mu.Unlock()
	l.ring()
}

func (l *lane[T]) addFirst(more []T) {
	if len(more) == 0 {
		return
	}
	l.mu.Lock()
	l.waiting = slices.Concat(more, l.waiting)
	l.mu.Unlock()
	l.ring()
}

func (l *lane[T]) ring() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// take forgets those who need no answer any more, wherever they wait, and takes some for one call: in order, but for those
// who are to wait, and those whose users have as many in it as one user may.
func (l *lane[T]) take() (batch []T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = slices.DeleteFunc(l.waiting, l.ended)
	taken := map[string]int{}
	left := l.waiting[:0]
	more := false // to be asked for now, by another call
	soonest := time.Duration(math.MaxInt64)
	for i, one := range l.waiting {
		if len(batch) == l.max {
			left = append(left, l.waiting[i:]...)
			more = true
			break
		}
		var wait time.Duration
		if l.wait != nil {
			wait = l.wait(one)
		}
		switch user := l.user(one); {
		case wait > 0:
			soonest = min(soonest, wait)
		case l.asked[user] && taken[user] == 0: // until that call is over
		case taken[user] == l.each:
			more = true
		default:
			taken[user]++
			batch = append(batch, one)
			continue
		}
		left = append(left, one)
	}
	clear(l.waiting[len(left):])
	if l.waiting = left; len(left) == 0 {
		l.waiting = nil
	}
	if l.alone {
		for user := range taken {
			l.asked[user] = true
		}
	}
	if more {
		l.ring()
	}
	if soonest < math.MaxInt64 {
		if l.timer == nil {
			l.timer = time.AfterFunc(soonest, l.ring)
		} else {
			l.timer.Reset(soonest)
		}
	}
	return batch
}

// run asks until the context ends.
func (l *lane[T]) run(ctx context.Context) {
	var calls sync.WaitGroup
	defer calls.Wait()
	for one := l; one != nil; one = one.next {
		for range one.calls {
			calls.Go(func() { one.work(ctx) })
		}
	}
}

func (l *lane[T]) work(ctx context.Context) {
	crowd := false
	for {
		select {
		case <-l.wake:
		case <-ctx.Done():
			return
		}
		// Where many came a moment ago more will follow: they are worth a longer wait.
		if !retry.Sleep(ctx, l.gather) || crowd && !retry.Sleep(ctx, 9*l.gather) {
			return
		}
		crowd = false
		pause := minPause
		for batch := l.take(); len(batch) > 0; batch = l.take() {
			crowd = crowd || len(batch) > 2
			progress, err := l.serve(ctx, batch)
			l.over(batch)
			switch {
			case ctx.Err() != nil:
				return
			case progress:
				pause = minPause
				continue
			case err != nil && pause == minPause:
				l.log.Warn("rooms: a call failed, asking again", "call", l.name, "for", len(batch), "error", err)
			}
			if !retry.Sleep(ctx, pause) {
				return
			}
			pause = min(2*pause, maxPause)
		}
	}
}

// serve asks for a batch, and reports whether somebody got on by it.
func (l *lane[T]) serve(ctx context.Context, batch []T) (progress bool, err error) {
	again, err := l.guarded(ctx, batch)
	switch {
	case err == nil:
		l.addFirst(again)
		return len(again) < len(batch), nil
	case connect.CodeOf(err) == connect.CodeUnavailable || ctx.Err() != nil:
		l.addFirst(batch)
	case l.next != nil:
		l.next.add(batch...)
		return true, err
	default:
		for _, one := range batch {
			l.failed(one, err)
		}
		return true, err
	}
	return false, err
}

// over notes that the call for a batch is over. The worker that has made it takes the next batch, so nobody need be woken.
func (l *lane[T]) over(batch []T) {
	if !l.alone {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range batch {
		delete(l.asked, l.user(one))
	}
}

// errPanic reports that asking has panicked.
var errPanic = errors.New("panic")

func (l *lane[T]) guarded(ctx context.Context, batch []T) (again []T, err error) {
	defer l.guard.Recover("rooms", func() { err = fmt.Errorf("%s: %w", l.name, errPanic) })
	return l.ask(ctx, batch)
}

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
	// maxCall bounds the connections or rooms of one call, so that no answer gets too large.
	maxCall  = 500
	deadline = 5 * time.Second
	// minPause and maxPause bound the pause before an owner that is unavailable is asked again.
	minPause, maxPause = 50 * time.Millisecond, 2 * time.Second
)

// lane has the entries that wait for one kind of answer of an owner, and asks for many of them in one call.
//
// A call may fail, or take too long, because of one of its entries. Then all of them move to the next lane, which asks
// for fewer at a time; the last one asks for each entry alone. So a bad entry costs the others a few calls, and delays
// only itself. When the owner is unavailable no entry is to blame: all of them stay in their lane.
//
// One call has at most each entries of one user, and none whose wait has not passed, so that entries behind the many
// connections of another user are asked for before most of those. With alone, a user is in one call at a time, and the
// calls beside it ask for others.
type lane[T any] struct {
	kind[T]
	max  int      // in one call
	next *lane[T] // of entries whose call failed; nil: failed is called for them

	mu      sync.Mutex
	waiting []T
	wake    chan struct{}
	timer   *time.Timer     // wakes a worker for entries that have to wait
	asked   map[string]bool // users in calls under way, with alone
}

// kind has what lanes that ask for the same have in common.
type kind[T any] struct {
	name  string
	calls int // under way at a time
	// ask returns the entries that have to be asked for again. With an error no entry was answered.
	ask    func(ctx context.Context, batch []T) (retry []T, err error)
	ended  func(T) bool // reports whether an entry needs no answer any more
	user   func(T) string
	each   int                   // entries of one user in one call
	alone  bool                  // a user is in one call of a lane at a time
	wait   func(T) time.Duration // how long an entry has to wait before it is asked for; nil: not at all
	failed func(one T, err error)
	gather time.Duration
	guard  *guard.Guard
	log    *slog.Logger
}

// lanes makes a lane and those behind it, each with a smaller size of calls than the one before.
func lanes[T any](k kind[T], sizes ...int) (first *lane[T]) {
	for _, size := range slices.Backward(sizes) {
		first = &lane[T]{kind: k, max: size, next: first, wake: make(chan struct{}, 1), asked: map[string]bool{}}
	}
	return first
}

// add appends entries to those that wait.
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

// take removes the entries that have ended, and returns the entries of the next call, in order. It skips entries that
// have to wait, and those beyond one user's share of a call.
func (l *lane[T]) take() (batch []T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = slices.DeleteFunc(l.waiting, l.ended)
	taken := map[string]int{}
	left := l.waiting[:0]
	more := false // entries are left for another call
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
		// After a call for several users more are likely to follow, which are worth a longer wait.
		if !retry.Sleep(ctx, l.gather) || crowd && !retry.Sleep(ctx, 9*l.gather) {
			return
		}
		crowd = false
		backoff := retry.Backoff{First: minPause, Max: maxPause}
		for batch := l.take(); len(batch) > 0; batch = l.take() {
			crowd = crowd || l.crowded(batch)
			progress, err := l.serve(ctx, batch)
			l.finished(batch)
			switch {
			case ctx.Err() != nil:
				return
			case progress:
				backoff.Reset()
				continue
			case err != nil && backoff.Failures == 0:
				l.log.Warn("rooms: a call failed, asking again", "call", l.name, "for", len(batch), "error", err)
			}
			if !backoff.Wait(ctx) {
				return
			}
		}
	}
}

// crowded reports whether a batch has entries of more than two users. The many connections of one user make nobody else
// wait longer.
func (l *lane[T]) crowded(batch []T) bool {
	users := map[string]bool{}
	for _, one := range batch {
		if users[l.user(one)] = true; len(users) > 2 {
			return true
		}
	}
	return false
}

// serve asks for a batch, and reports whether some of its entries were answered or moved to another lane.
func (l *lane[T]) serve(ctx context.Context, batch []T) (progress bool, err error) {
	retry, err := l.guarded(ctx, batch)
	switch {
	case err == nil:
		l.addFirst(retry)
		return len(retry) < len(batch), nil
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

// finished notes that the call for a batch has returned. Its worker takes the next batch, so that no worker has to be
// woken.
func (l *lane[T]) finished(batch []T) {
	if !l.alone {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range batch {
		delete(l.asked, l.user(one))
	}
}

// errPanic is the error of a call that has panicked.
var errPanic = errors.New("panic")

func (l *lane[T]) guarded(ctx context.Context, batch []T) (retry []T, err error) {
	defer l.guard.Recover("rooms", func() { err = fmt.Errorf("%s: %w", l.name, errPanic) })
	return l.ask(ctx, batch)
}

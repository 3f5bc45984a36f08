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
	// maxCall bounds the connections in one call of Rooms, and the subscriptions in one call of AuthorizeSubscriptions,
	// so that no answer gets too large.
	maxCall  = 500
	deadline = 5 * time.Second
	// minPause and maxPause bound the pause before an owner that is unavailable is asked again.
	minPause, maxPause = 50 * time.Millisecond, 2 * time.Second
)

// lane contains the entries that wait for one kind of call to an owner, and serves many of them with one call.
//
// A call may fail, or take too long, because of one of its entries. All of its entries then move to the next lane,
// whose calls have fewer entries; the calls of the last lane have one entry each. So a bad entry costs the other
// entries only a few more calls. If the owner is unavailable, no entry is to blame, and all of them stay in their lane.
//
// A call has at most kind.maxPerUser entries of one user, so that a user with many entries does not delay other users.
// Entries that still have to wait (kind.wait) are left out. If kind.oneCallPerUser is set, a user's entries are in one
// call of the lane at a time, while the lane's other calls serve other users.
type lane[T any] struct {
	kind[T]
	max  int      // the maximum number of entries in one call
	next *lane[T] // for entries whose call failed; if nil, kind.failed is called for them

	mu       sync.Mutex
	waiting  []T
	wake     chan struct{}
	timer    *time.Timer     // wakes a worker when an entry has waited long enough
	inFlight map[string]bool // the users in calls in flight, if oneCallPerUser is set
}

// kind contains the properties that all lanes for the same kind of call have in common.
type kind[T any] struct {
	name  string
	calls int // the maximum number of calls in flight at a time, for each lane
	// ask makes one call for a batch, and returns the entries for which the owner must be asked again. If ask returns
	// an error, no entry was answered.
	ask            func(ctx context.Context, batch []T) (retry []T, err error)
	ended          func(T) bool // reports whether an entry needs no answer any more
	user           func(T) string
	maxPerUser     int                   // the maximum number of entries of one user in one call
	oneCallPerUser bool                  // whether a user is in at most one call of a lane at a time
	wait           func(T) time.Duration // how much longer an entry has to wait; nil if no entry has to wait
	failed         func(one T, err error)
	gather         time.Duration // the wait for more entries before a call; see lane.work
	guard          *guard.Guard
	log            *slog.Logger
}

// lanes returns the first of a sequence of lanes. The sizes are the maximum numbers of entries in a call of each lane,
// in descending order.
func lanes[T any](k kind[T], sizes ...int) (first *lane[T]) {
	for _, size := range slices.Backward(sizes) {
		first = &lane[T]{kind: k, max: size, next: first, wake: make(chan struct{}, 1), inFlight: map[string]bool{}}
	}
	return first
}

// add appends entries to the entries that wait.
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

// take removes and returns the entries of the next call, in order. It also removes the entries that have ended. It
// skips entries that have to wait, entries beyond one user's share of a call (kind.maxPerUser), and, if
// kind.oneCallPerUser is set, entries of users who are in a call in flight.
func (l *lane[T]) take() (batch []T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = slices.DeleteFunc(l.waiting, l.ended)
	taken := map[string]int{}
	left := l.waiting[:0]
	more := false // whether another call can take entries now
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
		case l.inFlight[user] && taken[user] == 0: // the user is in a call that has not returned yet
		case taken[user] == l.maxPerUser:
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
	if l.oneCallPerUser {
		for user := range taken {
			l.inFlight[user] = true
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

// run makes the calls of this lane and of the lanes after it until the context ends.
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
		// After a call for several users, more entries are likely to follow, so a longer wait saves calls.
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

// crowded reports whether a batch has entries of more than two users. The number of entries does not matter: if it did,
// one user with many entries would make other users wait longer.
func (l *lane[T]) crowded(batch []T) bool {
	users := map[string]bool{}
	for _, one := range batch {
		if users[l.user(one)] = true; len(users) > 2 {
			return true
		}
	}
	return false
}

// serve makes a call for a batch, and returns the error of the call. The result progress is true if some of the entries
// were answered, moved to the next lane, or passed to kind.failed.
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

// finished records that the call for a batch has returned. The worker that made the call takes the next batch, so no
// worker has to be woken.
func (l *lane[T]) finished(batch []T) {
	if !l.oneCallPerUser {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range batch {
		delete(l.inFlight, l.user(one))
	}
}

// errPanic is the error of a call that has panicked.
var errPanic = errors.New("panic")

func (l *lane[T]) guarded(ctx context.Context, batch []T) (retry []T, err error) {
	defer l.guard.Recover("rooms", func() { err = fmt.Errorf("%s: %w", l.name, errPanic) })
	return l.ask(ctx, batch)
}

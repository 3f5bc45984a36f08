package rooms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Many entries of one user wait, and entries of other users wait behind them. A call must contain only a few entries of
// one user, so that the entries of the other users are in the same call. The remaining entries must follow in order.
func TestLane_TakesOnlySoManyOfOneUserInOneCall(t *testing.T) {
	t.Parallel()
	batches := make(chan []string, 100)
	l := lanes(kind[string]{name: "test", calls: 1, maxPerUser: 2, log: slog.New(slog.DiscardHandler),
		ask: func(_ context.Context, batch []string) ([]string, error) {
			batches <- batch
			if len(batch) > 1 && batch[0] == "eve 2" {
				return nil, errors.New("this call fails, so each of its entries gets a call alone")
			}
			return nil, nil
		},
		ended:  func(one string) bool { return one == "eve 5" },
		user:   func(one string) string { user, _, _ := strings.Cut(one, " "); return user },
		failed: func(string, error) {},
	}, 10, 1)
	for n := range 8 {
		l.add(fmt.Sprint("eve ", n))
	}
	l.add("bob 0", "ann 0", "bob 1")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go l.run(ctx)
	var got []string
	for range 6 {
		select {
		case batch := <-batches:
			got = append(got, strings.Join(batch, ","))
		case <-time.After(10 * time.Second):
			t.Fatal("there was no call")
		}
	}
	require.Equal(t, "eve 0,eve 1,bob 0,ann 0,bob 1", got[0])
	require.ElementsMatch(t, []string{"eve 2,eve 3", "eve 4,eve 6", "eve 7", "eve 2", "eve 3"}, got[1:])
	l.mu.Lock()
	defer l.mu.Unlock()
	require.Empty(t, l.waiting)
}

// An entry of a lane has to wait. The entry must be in a call as soon as its time has come, even if no other entry is
// added then.
func TestLane_AsksForAnEntryThatHadToWait(t *testing.T) {
	t.Parallel()
	var looked atomic.Int64
	batches := make(chan []string, 100)
	l := lanes(kind[string]{name: "test", calls: 1, maxPerUser: 2, log: slog.New(slog.DiscardHandler),
		ask:   func(_ context.Context, batch []string) ([]string, error) { batches <- batch; return nil, nil },
		ended: func(string) bool { return false },
		user:  func(one string) string { return one },
		wait: func(one string) time.Duration {
			if one == "eve" && looked.Add(1) <= 2 { // when the lane takes bob's entry, and when it looks again after that
				return time.Millisecond
			}
			return 0
		},
	}, 10)
	l.add("eve", "bob")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go l.run(ctx)
	for _, want := range []string{"bob", "eve"} {
		select {
		case batch := <-batches:
			require.Equal(t, []string{want}, batch)
		case <-time.After(10 * time.Second):
			t.Fatal("there was no call")
		}
	}
}

// A call for a user is in flight. Until it has returned, no other call may contain an entry of this user, although the
// lane may have more calls in flight. Calls for other users must continue.
func TestLane_AsksForOneUserInOneCallAtATime(t *testing.T) {
	t.Parallel()
	batches, release := make(chan string, 100), make(chan struct{})
	l := lanes(kind[string]{name: "test", calls: 3, maxPerUser: 1, oneCallPerUser: true, log: slog.New(slog.DiscardHandler),
		ask: func(_ context.Context, batch []string) ([]string, error) {
			batches <- strings.Join(batch, ",")
			if strings.HasPrefix(batch[0], "eve") {
				<-release
			}
			return nil, nil
		},
		ended: func(string) bool { return false },
		user:  func(one string) string { user, _, _ := strings.Cut(one, " "); return user },
	}, 1)
	next := func() string {
		select {
		case batch := <-batches:
			return batch
		case <-time.After(10 * time.Second):
			t.Fatal("there was no call")
			return ""
		}
	}
	l.add("eve 0", "eve 1", "eve 2")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go l.run(ctx)
	for n := range 3 {
		require.Equal(t, fmt.Sprint("eve ", n), next())
		for m := range 20 {
			l.add(fmt.Sprint("bob ", m))
			require.Equal(t, fmt.Sprint("bob ", m), next())
		}
		release <- struct{}{}
	}
}

// After a call for several users, the lane must wait longer for further entries before the next call. After a call for
// many entries of one user the lane must not wait longer, because this user would then delay other users.
func TestLane_WaitsLongerAfterACallForSeveralUsersOnly(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before []string
		want   time.Duration
	}{
		"several users": {[]string{"ann 0", "bob 0", "eve 0"}, 20 * time.Millisecond},
		"one user":      {[]string{"eve 0", "eve 1", "eve 2", "eve 3"}, 2 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				asked := make(chan time.Time)
				l := lanes(kind[string]{name: "test", calls: 1, maxPerUser: 4, gather: 2 * time.Millisecond, log: slog.New(slog.DiscardHandler),
					ask:   func(context.Context, []string) ([]string, error) { asked <- time.Now(); return nil, nil },
					ended: func(string) bool { return false },
					user:  func(one string) string { user, _, _ := strings.Cut(one, " "); return user },
				}, 10)
				go l.run(t.Context())
				l.add(c.before...)
				<-asked
				synctest.Wait()
				began := time.Now()
				l.add("dan 0")
				require.Equal(t, c.want, (<-asked).Sub(began))
			})
		})
	}
}

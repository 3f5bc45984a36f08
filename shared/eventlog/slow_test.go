package eventlog

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/edumatrix/interlinked/shared/retry"
)

// slowed returns a log whose lock may be held for 400 ms. If an event's stream matches the pattern in the parameter
// streams, inserting the event takes the time in the parameter each.
func slowed(t *testing.T, each time.Duration, streams string) *Log {
	t.Helper()
	l := instance(t, database(t))
	l.times.hold = 400 * time.Millisecond
	_, err := l.o.Pool.Exec(t.Context(), fmt.Sprintf(`CREATE FUNCTION chat.slow() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN IF NEW.stream LIKE '%s' THEN PERFORM pg_sleep(%f); END IF; RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON chat.events FOR EACH ROW EXECUTE FUNCTION chat.slow()`, streams, each.Seconds()))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func several(n int) (writes []Write) {
	for i := range n {
		writes = append(writes, said(fmt.Sprint(i), fmt.Sprint("c", i)))
	}
	return writes
}

func TestCommit_BisectsASlowTransaction(t *testing.T) {
	t.Parallel()
	l := slowed(t, 20*time.Millisecond, "%")
	_, errs := togetherIn(t, l, several(40)...)
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if head, err := l.Head(t.Context()); err != nil || head != 40 {
		t.Errorf("head %d %v", head, err)
	}
}

func TestCommit_ATimeoutOfOneWriteAffectsNoOther(t *testing.T) {
	t.Parallel()
	l := slowed(t, 600*time.Millisecond, "conversation:7")
	writes := several(20)
	_, errs := togetherIn(t, l, writes...)
	for i, err := range errs {
		if slow := i == 7; slow != (err != nil) || slow && !errors.Is(err, retry.ErrUnavailable) {
			t.Errorf("write %d: %v", i, err)
		}
	}
	// The slow write is in quarantine now: the next attempt to commit it has a transaction of its own.
	again, other := make(chan error, 1), make(chan error, 1)
	begun := time.Now()
	go func() { _, err := l.Commit(t.Context(), writes[7]); again <- err }()
	go func() { _, err := l.Commit(t.Context(), said("100", "new")); other <- err }()
	if err := <-other; err != nil {
		t.Error(err)
	}
	if err := <-again; !errors.Is(err, retry.ErrUnavailable) {
		t.Error(err)
	}
	if took := time.Since(begun); took > time.Second {
		t.Errorf("at most one transaction should have timed out, but the commits took %v", took)
	}
	if _, err := l.o.Pool.Exec(t.Context(), "DROP TRIGGER slow ON chat.events"); err != nil {
		t.Fatal(err)
	}
	commit(t, l, writes[7])
	if head, err := l.Head(t.Context()); err != nil || head != 21 {
		t.Errorf("head %d %v", head, err)
	}
}

func TestCommit_StopsBisectingIfTheDatabaseIsSlow(t *testing.T) {
	t.Parallel()
	l := slowed(t, 600*time.Millisecond, "%")
	begun := time.Now()
	_, errs := togetherIn(t, l, several(64)...)
	for i, err := range errs {
		if !errors.Is(err, retry.ErrUnavailable) {
			t.Errorf("write %d: %v", i, err)
		}
	}
	// If the bisection continued down to each write, its 127 transactions would take 50 s.
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("the commits took %v", took)
	}
}

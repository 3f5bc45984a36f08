package bus

import (
	"log/slog"
	"time"

	"github.com/edumatrix/interlinked/shared/retry"
)

const (
	firstPause = 100 * time.Millisecond
	// pauseGrowth is the ratio of the longest pause to the first one, before jitter (see retry.Backoff). Pauses that
	// begin with firstPause grow up to 5 s.
	pauseGrowth = 50
)

// pause returns the delay before the nth repeat; n is 1 for the first repeat.
func pause(first time.Duration, n int) time.Duration { return retry.Delay(n, first, pauseGrowth*first) }

// sleep waits for the duration d. It returns false if one of the channels is closed first.
func sleep(d time.Duration, over, orOver <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-over:
	case <-orOver:
	}
	return false
}

// throttledLogger logs errors that occur again and again: the same text with the same error at most every 30 s. It
// remembers about 100 different lines and then forgets all of them, so it may repeat a line sooner. It is not safe for
// concurrent use.
type throttledLogger struct {
	log        *slog.Logger
	lastLogged map[string]time.Time
}

func newThrottledLogger(log *slog.Logger) *throttledLogger {
	return &throttledLogger{log: log, lastLogged: map[string]time.Time{}}
}

func (g *throttledLogger) warn(text string, err error) {
	const again = 30 * time.Second
	key := text + err.Error()
	if time.Since(g.lastLogged[key]) < again {
		return
	}
	if len(g.lastLogged) > 100 {
		clear(g.lastLogged)
	}
	g.lastLogged[key] = time.Now()
	g.log.Warn(text, "error", err)
}

package embedded

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// One step takes less than a second, and another takes longer. The longer step must be logged while it runs, and the
// shorter step must not be logged.
func TestSlow_LogsStepsOfOverASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		log := slog.New(slog.NewTextHandler(&said, nil))
		over := slow(log, "a quick one")
		time.Sleep(900 * time.Millisecond)
		over()
		over = slow(log, "creating PostgreSQL's data folder", "dir", "data")
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if got := said.String(); !strings.Contains(got, "creating PostgreSQL's data folder") || !strings.Contains(got, "dir=data") ||
			strings.Contains(got, "quick") {
			t.Errorf("logged: %s", got)
		}
		over()
	})
}

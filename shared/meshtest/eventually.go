package meshtest

import (
	"testing"
	"time"
)

// maxWait is how long Eventually waits. It is long, because a condition that usually holds within milliseconds may take
// more than a minute on a busy machine.
const maxWait = 2 * time.Minute

// Eventually waits until a condition holds, and fails the test if it does not hold within 2 minutes. It checks the
// condition every 5 ms, in the goroutine of the caller, so that the condition may fail the test itself.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(maxWait); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", maxWait, what)
		}
	}
}

package harness

import (
	"fmt"
	"testing"
	"time"
)

// Eventually waits until cond holds and fails the test when that takes longer
// than timeout. what says what was waited for: a format and its arguments.
func Eventually(t testing.TB, timeout time.Duration, cond func() bool, what ...any) {
	t.Helper()
	if !WaitFor(timeout, cond) {
		t.Fatalf("not within %s: %s", timeout, describe(what))
	}
}

// WaitFor waits until cond holds, and tells whether it did within timeout.
func WaitFor(timeout time.Duration, cond func() bool) bool {
	deadline := time.Now().Add(timeout)
	pause := 500 * time.Microsecond
	for {
		if cond() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(pause)
		pause = min(2*pause, 20*time.Millisecond)
	}
}

// Throughout checks that cond holds all the time for d: for what must not
// happen.
func Throughout(t testing.TB, d time.Duration, cond func() bool, what ...any) {
	t.Helper()
	deadline := time.Now().Add(d)
	for time.Now().Before(deadline) {
		if !cond() {
			t.Fatalf("did not hold for %s: %s", d, describe(what))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func describe(what []any) string {
	if len(what) == 0 {
		return "the condition"
	}
	if format, ok := what[0].(string); ok {
		return fmt.Sprintf(format, what[1:]...)
	}
	return fmt.Sprint(what...)
}

package tasks

import (
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// Caddy is killed while 32 clients hand in requests and while these are executed, and
// instances are killed.
func TestG15_EveryStoredRequestHasOneOutcome(t *testing.T) {
	w := New(t, 1, func(*harness.Caddy) string { return "" })
	w.Run()
}

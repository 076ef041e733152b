package hub

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/caddy-usher/usher/test/harness"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, cond, "%s", what)
}

//go:build unix

package process

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/caddy-usher/usher/scaler"
)

func TestLinesAreHandedOnWithTheInstanceThatWroteThem(t *testing.T) {
	var mu sync.Mutex
	var lines []scaler.OutputLine
	take := func(env *scaler.Env, _ *scaler.LocalOptions) {
		env.Output = func(l scaler.OutputLine) {
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, l)
		}
	}
	bn := open(t, shell(`echo "one $USHER_INSTANCE"; echo two >&2; exec sleep 100`), take)
	in := bn.one()
	has := func(stream, text string) bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.ContainsFunc(lines, func(l scaler.OutputLine) bool {
			return l.Instance == in.ID && l.Stream == stream && l.Text == text && !l.Time.IsZero()
		})
	}
	eventually(t, "both lines", func() bool { return has("stdout", "one "+in.ID) && has("stderr", "two") })

	end := filepath.Join(t.TempDir(), "end")
	b := shell("echo secret; while [ ! -e " + end + " ]; do sleep 0.01; done; exit 3")
	b.Output = "discard"
	bn = open(t, b, take)
	quiet := bn.one()
	if err := os.WriteFile(end, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if ended := bn.awaitEnd(quiet.ID); ended.Failure == nil {
		t.Fatal("it has not failed")
	}
	mu.Lock()
	defer mu.Unlock()
	if slices.ContainsFunc(lines, func(l scaler.OutputLine) bool { return l.Instance == quiet.ID }) {
		t.Errorf("output that is discarded is handed on: %+v", lines)
	}
	told := shell("true")
	provision(t, told)
	if b.TellsOutput() || !told.TellsOutput() {
		t.Error("what is discarded is told, or what is not is not")
	}
}

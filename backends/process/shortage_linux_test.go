package process

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caddy-usher/usher/scaler"
)

// TestStartThatLacksFileDescriptorsLeavesNothing makes starts fail at every
// step that needs a file descriptor.
func TestStartThatLacksFileDescriptorsLeavesNothing(t *testing.T) {
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprintf("keep %t", keep), func(t *testing.T) {
			b := open(t, shell("exec sleep 100"), func(_ *scaler.Env, local *scaler.LocalOptions) { local.Keep = keep })
			failed := 0
			for spare := range uint64(40) {
				err := withFiles(t, spare, func() error { return b.order(1, 5*time.Second) })
				if err == nil {
					break
				}
				failed++
				left, _ := filepath.Glob(filepath.Join(recordDir(b.dataDir), "*"))
				if len(left) > 0 {
					t.Fatalf("with %d file descriptors, %v: left over: %v", spare, err, left)
				}
			}
			if failed < 5 {
				t.Errorf("only %d starts have failed", failed)
			}
			for _, in := range b.latest().Instances {
				b.order(0, time.Second, in.ID)
				b.awaitEnd(in.ID)
			}
		})
	}
}

// withFiles calls f while the process may open only so many files more.
func withFiles(t *testing.T, spare uint64, f func() error) error {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	// The limit is on the number of the next descriptor.
	next, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	now := before
	now.Cur = uint64(next.Fd()) + spare
	next.Close()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	}()
	return f()
}

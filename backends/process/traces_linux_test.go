package process

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caddy-usher/usher/scaler"
)

// TestStartThatLacksFileDescriptorsLeavesNothing makes starts fail at every
// step that needs a file descriptor.
func TestStartThatLacksFileDescriptorsLeavesNothing(t *testing.T) {
	for name, keep := range map[string]bool{"stop": false, "keep": true} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			t.Setenv("RUNTIME_DIRECTORY", base)
			b := open(t, onSocket(), func(_ *scaler.Env, local *scaler.LocalOptions) { local.Keep = keep })
			failed := 0
			for spare := range uint64(40) {
				err := withFiles(t, spare, func() error { return b.order(1, 5*time.Second) })
				if err == nil {
					break
				}
				failed++
				if left := traces(t, base, recordDir(b.dataDir)); len(left) > 0 {
					t.Fatalf("with %d file descriptors, %v: left over: %v", spare, err, left)
				}
			}
			if failed < 5 {
				t.Errorf("only %d starts have failed", failed)
			}
			for _, in := range b.latest().Instances {
				_ = b.order(0, time.Second, in.ID)
				b.awaitEnd(in.ID)
			}
		})
	}
}

// TestWhateverAnInstanceHasIsOnRecord looks all the time while instances come
// and go: a Caddy that is killed in that moment leaves nothing that the next
// one does not find.
func TestWhateverAnInstanceHasIsOnRecord(t *testing.T) {
	base := t.TempDir()
	t.Setenv("RUNTIME_DIRECTORY", base)
	b := open(t, onSocket(), func(_ *scaler.Env, local *scaler.LocalOptions) { local.Keep = true })
	dir := recordDir(b.dataDir)

	stop, unknown := make(chan struct{}), make(chan string, 1)
	var looking sync.WaitGroup
	looking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, path := range traces(t, base, dir) {
				id, _, _ := strings.Cut(filepath.Base(path), ".")
				if _, err := os.Stat(filepath.Join(dir, id+recordSuffix)); err == nil {
					continue
				}
				// What goes is forgotten last: without a record it is gone, too.
				// The mark of the script is no instance's, and Recover removes it.
				if _, err := os.Stat(path); err == nil && !strings.HasSuffix(path, draftSuffix) && filepath.Base(path) != trimMark {
					select {
					case unknown <- path:
					default:
					}
				}
			}
		}
	})
	for range 30 {
		b.scale(1)
		in := b.latest().Instances[0]
		b.scale(0, in.ID)
		b.awaitEnd(in.ID)
	}
	close(stop)
	looking.Wait()
	select {
	case path := <-unknown:
		t.Errorf("%s was there without a record", path)
	default:
	}
}

func TestIdentityThatCannotBeFoundOutIsLookedForAgain(t *testing.T) {
	known := thisCaddy.Swap(nil)
	defer thisCaddy.Store(known)
	if err := withFiles(t, 0, func() error { _, err := ownIdentity(); return err }); err == nil {
		t.Fatal("found out without a file descriptor")
	}
	if own, err := ownIdentity(); err != nil || own.PID != os.Getpid() {
		t.Errorf("%+v, %v", own, err)
	}
}

func TestProcessThatCannotBeLookedAtIsNotGone(t *testing.T) {
	own, err := ownIdentity()
	if err != nil {
		t.Fatal(err)
	}
	_ = withFiles(t, 0, func() error {
		if own.gone() {
			t.Error("without a file descriptor a process that lives is taken for gone")
		}
		return nil
	})
	other := own
	other.StartTime--
	if own.gone() || !other.gone() {
		t.Error("a process that lives is gone, or one with its pid before it is not")
	}
	if never := (identity{PID: 1 << 30}); !never.gone() {
		t.Error("a process that there never was is not gone")
	}
}

// onSocket returns a backend whose instances get a socket each.
func onSocket() *Backend {
	b := shell("exec sleep 100")
	b.Listen = listenUnix
	return b
}

// traces lists what is in the directories.
func traces(t *testing.T, dirs ...string) (found []string) {
	for _, dir := range dirs {
		paths, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Error(err)
		}
		found = append(found, paths...)
	}
	return found
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

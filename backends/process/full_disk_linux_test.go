package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caddy-usher/usher/scaler"
)

// fullDisk returns a directory of a file system on which nothing can be
// written. Empty files can still be made there.
func fullDisk(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := os.MkdirAll(recordDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	// It ends with "no space left on device", which is what is wanted.
	_ = os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 1<<20), 0o600)
	return dir
}

// What has no record would be neither adopted nor ended by the next Caddy.
func TestWhatCannotBeRecordedOnAFullDiskEndsWithCaddy(t *testing.T) {
	dir := fullDisk(t)
	b := open(t, shell("echo hello; exec sleep 100"), func(env *scaler.Env, l *scaler.LocalOptions) {
		env.Host.DataDir, l.Keep = dir, true
	})
	in := b.one()
	pid := b.pid(in.ID)
	eventually(t, "its output", func() bool { return len(b.messages("stdout")) == 1 })
	b.runner.mu.Lock()
	kept := b.runner.instances[0].keep
	b.runner.mu.Unlock()
	if kept {
		t.Error("it would live on without a record when Caddy is killed")
	}
	b.close(5 * time.Second)
	if stat, err := readStat(pid); err == nil && !stat.dead() {
		t.Error("it lives on after Caddy")
	}
	warned := false
	for _, e := range b.logs.All() {
		warned = warned || strings.Contains(e.Message, "cannot be recorded, so they end with Caddy")
	}
	if !warned {
		t.Error("nothing was said")
	}
	entries, err := os.ReadDir(recordDir(dir))
	if err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

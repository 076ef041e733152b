package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caddy-usher/usher/test/harness"
)

// No file of Caddy may grow any more, so writes fail as on a full disk.
func TestWhatIsStoredIsReadableWhileFilesCannotGrow(t *testing.T) {
	fullDisk(t, newCaddy(t), "file too large", func(c *harness.Caddy) (lift func()) {
		info, err := os.Stat(inStore(c, "tasks.db"))
		if err != nil {
			t.Fatal(err)
		}
		var before unix.Rlimit
		if err := unix.Prlimit(c.PID(), unix.RLIMIT_FSIZE, nil, &before); err != nil {
			t.Fatal(err)
		}
		limit := unix.Rlimit{Cur: uint64(info.Size()) + 64<<10, Max: before.Max}
		set := func(l unix.Rlimit) {
			if err := unix.Prlimit(c.PID(), unix.RLIMIT_FSIZE, &l, nil); err != nil {
				t.Fatal(err)
			}
		}
		set(limit)
		return func() { set(before) }
	})
}

// The file system of the store is a small one, and full.
func TestWhatIsStoredIsReadableWhileTheDiskIsFull(t *testing.T) {
	c := newCaddy(t)
	dir := filepath.Dir(inStore(c, ""))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("a file system for the test cannot be mounted: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	fullDisk(t, c, "no space left on device", func(c *harness.Caddy) (lift func()) {
		filler, err := os.Create(filepath.Join(dir, "filler"))
		if err != nil {
			t.Fatal(err)
		}
		defer filler.Close()
		for _, err = filler.Write(make([]byte, 4096)); err == nil; _, err = filler.Write(make([]byte, 4096)) {
		}
		return func() {
			if err := os.Remove(filler.Name()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func fullDisk(t *testing.T, c *harness.Caddy, words string, fill func(*harness.Caddy) (lift func())) {
	t.Helper()
	c.Start(web(c, nil, "async"))
	done := accepted(t, later(c, "POST", "/echo", "hello"))
	ends(t, c, done.URL, "done")
	c.Post("web/suspend", "{}")
	waits := accepted(t, later(c, "POST", "/echo", "later"))
	lift := fill(c)
	for what, size := range map[string]int{"a body in the database": 60_000, "a body in a file": 10_000_000} {
		var r harness.Response
		for range 200 { // until what is free in the database is used
			if r = later(c, "POST", "/echo", strings.Repeat("x", size)); r.Status != http.StatusAccepted {
				break
			}
		}
		if r.Status != http.StatusServiceUnavailable || !strings.Contains(r.Body, words) || r.Header.Get("Retry-After") == "" {
			t.Errorf("%s: status %d, error %v, header %v: %s", what, r.Status, r.Err, r.Header, r.Body)
		}
	}
	if r := c.Get(done.URL + "/result"); r.Status != http.StatusOK || r.Body != "hello" {
		t.Errorf("a result that is stored: status %d, %q", r.Status, r.Body)
	}
	if s, _ := look(t, c, waits.URL); s.State != "pending" {
		t.Errorf("a task that is stored: %+v", s)
	}
	if n := c.Metrics("caddy_usher_tasks_refused_total"); n[`caddy_usher_tasks_refused_total{reason="store",service="web"}`] != "2" {
		t.Errorf("the metric of refused requests: %v", n)
	}

	lift()
	last := accepted(t, later(c, "POST", "/echo", strings.Repeat("x", 100_000)))
	c.Post("web/resume", "")
	ends(t, c, waits.URL, "done")
	ends(t, c, last.URL, "done")
	c.Stop() // before the file system goes
}

package caddymodule

import (
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// unaccepting returns an address at which connecting takes for ever: nothing
// accepts there, and the backlog is full.
func unaccepting(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	t.Cleanup(func() { _ = file.Close() })
	l, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	for range 4 {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 100*time.Millisecond)
		if err != nil {
			return l.Addr().String()
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("the backlog does not fill")
	return ""
}

func TestRequestWhoseConnectionIsOutstandingGoesToAnotherInstanceWhenTheFirstIsGone(t *testing.T) {
	t.Parallel()
	for name, transport := range map[string]string{
		"http":    "transport http {\ndial_timeout 1m\n}",
		"other":   "transport other {\ndial_timeout 1m\n}",
		"fastcgi": "transport fastcgi {\ndial_timeout 1m\n}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, up := byHand(t, "2 2", transport)
			c := up()
			f.ordered(2)
			hangs := f.at("tcp", unaccepting(t), none)
			f.at("tcp", serverFor(t, name), none)
			f.ready(2)
			waits := []func() reply{c.begin("POST", "/", "a body"), c.begin("GET", "/", "")}
			eventually(t, "the dials", func() bool { return serving(t, f.name).Reserver.Stats().InUse == 2 })
			f.die(hangs)
			for _, wait := range waits {
				if r := wait(); r.status != 200 || r.err != nil {
					t.Errorf("%+v", r)
				}
			}
			if n := serving(t, f.name).Reserver.Stats(); n.InUse != 0 || n.Open != 1 {
				t.Errorf("%+v", n)
			}
		})
	}
}

func TestRequestThatNoInstanceHasSeenWaitsForTheNextWhenItsInstanceIsGone(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "1 1", "transport http {\ndial_timeout 1m\n}")
	c := up()
	f.ordered(1)
	hangs := f.at("tcp", unaccepting(t), none)
	f.ready(1)
	wait := c.begin("POST", "/", "a body")
	eventually(t, "the dial", func() bool { return serving(t, f.name).Reserver.Stats().InUse == 1 })
	f.die(hangs)
	f.waiting(1)
	f.at("tcp", serverFor(t, "http"), none)
	if r := wait(); r.status != 200 || r.err != nil {
		t.Errorf("%+v", r)
	}
}

package process

import (
	"runtime"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"golang.org/x/sys/unix"
)

func TestSwitchingTheUserNeedsTheRight(t *testing.T) {
	// Rights are those of a thread, which ends with the goroutine.
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&head, &none[0]); err != nil {
			t.Error(err)
		}
		b := &Backend{Command: "/bin/true", User: "nobody"}
		if err := b.Provision(caddy.Context{}); err != nil {
			t.Error(err)
		}
		done <- checked(b)
	}()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "CAP_SETUID, CAP_SETGID and CAP_KILL") {
		t.Fatalf("%v", err)
	}
}

package process

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caddy-usher/usher/scaler"
)

// statusOf returns /proc/<pid>/status.
func statusOf(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestInstancesGetTheDefaultSignalHandlingBack(t *testing.T) {
	b := open(t, shell("exec sleep 100"))
	for i, sig := range []os.Signal{syscall.SIGPIPE, syscall.SIGUSR2} {
		// The first as Caddy does it, the second when the starter runs already.
		signal.Ignore(sig)
		t.Cleanup(func() { signal.Reset(sig) })
		b.scale(i + 1)
		pid := b.pid(b.latest().Instances[i].ID)
		status := statusOf(t, pid)
		if mask := statusMask(status, "SigIgn"); mask != 0 {
			t.Fatalf("ignored signals: %x", mask)
		}
		if mask := statusMask(status, "SigBlk"); mask != 0 {
			t.Fatalf("blocked signals: %x", mask)
		}
		if stat, err := readStat(pid); err != nil || stat.group != pid {
			t.Fatalf("it is in group %d: %v", stat.group, err)
		}
	}
}

func TestWhatCaddyWasStartedToIgnoreIsNotIgnoredByInstances(t *testing.T) {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// As nohup and a shell without job control do it.
	out := filepath.Join(t.TempDir(), "status")
	cmd := exec.Command("/bin/sh", "-c", `trap "" HUP INT TTOU; exec "$@"`, "sh",
		path, "child", "caddy", t.TempDir(), "stop", "grep SigIgn /proc/self/status >"+out+"; exec sleep 100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	status := readEventually(t, out)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if mask := statusMask(status, "SigIgn"); mask != 0 {
		t.Fatalf("ignored signals: %x", mask)
	}
}

func TestABrokenPipeStillDoesNotEndCaddy(t *testing.T) {
	signal.Ignore(syscall.SIGPIPE)
	t.Cleanup(func() { signal.Reset(syscall.SIGPIPE) })
	b := open(t, shell("exec sleep 100"))
	b.one()
	if err := syscall.Kill(os.Getpid(), syscall.SIGPIPE); err != nil {
		t.Fatal(err)
	}
}

func TestInstancesGetNoAmbientCapabilities(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("raising a capability needs root")
	}
	// The capability is raised on a thread of its own, and the forks come from
	// threads that descend from it.
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		done <- raiseAmbient(unix.CAP_NET_BIND_SERVICE, func() error {
			prepareThread()
			c, err := fork(launch{path: "/bin/sleep", argv: []string{"sleep", "100"}, files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
			if err != nil {
				return err
			}
			defer c.close()
			defer c.reap()
			defer c.kill()
			if mask := statusMask(statusOf(t, c.pid), "CapAmb"); mask != 0 {
				return fmt.Errorf("ambient capabilities: %x", mask)
			}
			return nil
		})
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// raiseAmbient raises an ambient capability of the calling thread for f.
func raiseAmbient(capability int, f func() error) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return err
	}
	data[capability/32].Inheritable |= 1 << (capability % 32)
	if err := unix.Capset(&head, &data[0]); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(capability), 0, 0); err != nil {
		return err
	}
	if text, err := os.ReadFile("/proc/thread-self/status"); err != nil || statusMask(string(text), "CapAmb") == 0 {
		return fmt.Errorf("the test is void, nothing was raised: %w", err)
	}
	return f()
}

func TestTheEnvironmentIsMinimal(t *testing.T) {
	t.Setenv("TEST_OF_CADDY", "secret")
	t.Setenv("LANG", "C.UTF-8")
	t.Setenv("TZ", "UTC")
	t.Setenv("HOME", "/root")
	b := self(t, "environment")
	b.Env = map[string]string{"MINE": "{usher.instance}@{usher.address}", "HOST": "localhost", "EMPTY": ""}
	bn := open(t, b)
	in := bn.one()
	_, port, _ := strings.Cut(in.Address, ":")
	want := []string{
		"EMPTY=", "HOME=/root", "HOST=localhost", "LANG=C.UTF-8", "MINE=" + in.ID + "@" + in.Address,
		"PATH=" + os.Getenv("PATH"), "PORT0=" + port, "PORT=" + port, "TZ=UTC",
		"USHER_INSTANCE=" + in.ID, "USHER_SERVICE=web",
	}
	eventually(t, "the environment", func() bool { return len(bn.messages("stdout")) == len(want) })
	if got := bn.messages("stdout"); !slices.Equal(sorted(got), sorted(want)) {
		t.Fatalf("got %q\nwant %q", got, want)
	}
}

func TestStandardInputIsNullAndNothingElseIsInherited(t *testing.T) {
	// Like a listener of socket activation, it is not marked close-on-exec.
	inherited, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inherited)
	b := open(t, shell("exec sleep 100"))
	pid := b.pid(b.one().ID)
	if target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/0", pid)); target != os.DevNull {
		t.Fatalf("stdin is %s", target)
	}
	// The loader opens files too, and closes them again.
	eventually(t, "three open files and no more", func() bool {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		return err == nil && len(entries) == 3
	})
	// What is written is not refused with EAGAIN when the pipe is full.
	for _, fd := range []int{1, 2} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
		if err != nil {
			t.Fatal(err)
		}
		var pos, flags int
		if _, err := fmt.Sscanf(string(text), "pos: %d\nflags: %o", &pos, &flags); err != nil || flags&unix.O_NONBLOCK != 0 {
			t.Fatalf("fd %d: flags %o, %v", fd, flags, err)
		}
	}
}

func TestInstancesRunAsTheirUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("switching needs root")
	}
	for _, name := range []string{"nobody", "65534"} {
		b := shell("id -u; id -g; id -G; echo $HOME >/dev/stdout; exec sleep 100")
		b.User = name
		bn := open(t, b)
		in := bn.one()
		eventually(t, "the answers", func() bool { return len(bn.messages("stdout")) == 4 })
		if got := strings.Join(bn.messages("stdout"), " "); got != "65534 65534 65534 /nonexistent" {
			t.Fatalf("it runs as %s", got)
		}
		bn.scale(0, in.ID)
		bn.awaitEnd(in.ID)
	}
}

func TestCaddysOwnUserNeedsNoRight(t *testing.T) {
	a, err := lookupAccount(fmt.Sprint(os.Geteuid()))
	if err != nil {
		t.Fatal(err)
	}
	if !a.Own || a.credential() != nil || a.checkRight() != nil {
		t.Fatalf("%+v", a)
	}
}

func TestUnixSocketsWorkForAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("switching needs root")
	}
	// A directory in which no user may create files.
	base, err := os.MkdirTemp("", "u")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	if err := os.Chmod(base, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Setenv("RUNTIME_DIRECTORY", base+":/other")
	b := &Backend{
		Command: "perl", Args: []string{"-MIO::Socket::UNIX", "-e", `$s = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 5) or die "$!"; sleep 100`, "{usher.socket}"},
		Listen: "unix", User: "nobody",
	}
	bn := open(t, b)
	in := bn.one()
	got := bn.await("an address", in.ID, func(in scaler.Instance) bool { return in.Address != "" })
	info, err := os.Stat(filepath.Dir(got.Address))
	if err != nil {
		t.Fatal(err)
	}
	if s := info.Sys().(*syscall.Stat_t); s.Uid != 65534 || info.Mode().Perm() != 0o710 || !strings.HasPrefix(got.Address, base+"/") {
		t.Fatalf("%s: owner %d, mode %s", got.Address, s.Uid, info.Mode())
	}
	bn.scale(0, in.ID)
	bn.close(patience)
	if left, _ := os.ReadDir(base); len(left) != 0 {
		t.Fatalf("left: %v", left)
	}
}

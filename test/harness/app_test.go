package harness

import (
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// command prepares an instance that is not started yet.
func command(c *Caddy, args ...string) *exec.Cmd {
	cmd := exec.Command(c.App(), args...)
	cmd.Env = []string{
		"HOST=127.0.0.1", "PORT=" + port(c.SpareAddr), "APP_JOURNAL=" + c.journalPath(),
		markVariable + "=" + c.mark, "USHER_INSTANCE=i1",
	}
	return cmd
}

func TestAppEndsAsItIsTold(t *testing.T) {
	for name, f := range map[string]struct {
		args   []string
		status int
	}{
		"at once":             {[]string{"-exit-code", "3"}, 3},
		"later":               {[]string{"-exit-code", "7", "-exit-after", "20ms"}, 7},
		"shortly after ready": {[]string{"-die-after-ready", "20ms"}, 4},
		"while a file exists": {[]string{"-exit-while", "/"}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := New(t)
			cmd := command(c, f.args...)
			_ = cmd.Run()
			if got := cmd.ProcessState.ExitCode(); got != f.status {
				t.Errorf("exit status %d, want %d", got, f.status)
			}
			if last := c.Journal().Of("exit"); len(last) != 1 || last[0].Status != f.status {
				t.Errorf("journal: %+v", last)
			}
		})
	}
}

func TestAppObeysOrIgnoresTheStopSignal(t *testing.T) {
	for _, flag := range []string{"-never-listen", "-ignore-term"} {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			c := New(t)
			cmd := command(c, flag)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			Eventually(t, 5*time.Second, func() bool { return c.Journal().Starts() == 1 && signalled(cmd) }, "it has started")
			Eventually(t, 5*time.Second, func() bool { return len(c.Journal().Of("term")) > 0 }, "it has seen the signal")
			if flag == "-ignore-term" {
				_ = cmd.Process.Kill()
			}
			_ = cmd.Wait()
			if ended := len(c.Journal().Of("exit")) == 1; ended != (flag == "-never-listen") {
				t.Errorf("orderly end: %t", ended)
			}
		})
	}
}

// signalled sends the stop signal once the app catches it.
func signalled(cmd *exec.Cmd) bool {
	status, _ := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/status")
	_, caught, _ := strings.Cut(string(status), "SigCgt:\t")
	if len(caught) < 16 || !strings.ContainsAny(caught[12:13], "4567cdef") {
		return false
	}
	return cmd.Process.Signal(syscall.SIGTERM) == nil
}

func TestAppLeavesItsParent(t *testing.T) {
	t.Parallel()
	c := New(t)
	cmd := command(c, "-daemonize")
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	Eventually(t, 5*time.Second, func() bool { return len(c.Journal().Of("listen")) == 1 }, "the child listens")
	if c.Count() != 1 {
		t.Errorf("%d processes", c.Count())
	}
	endApps(c)
}

func TestAppServesOnAPassedSocketAndOnAUnixSocket(t *testing.T) {
	t.Parallel()
	c := New(t)
	ln, err := net.Listen("tcp", c.SpareAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()

	passed := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", c.App())
	passed.Env = append(command(c).Env, "LISTEN_FDS=1")
	passed.ExtraFiles = []*os.File{file}
	unix := command(c, "-socket", c.Path("s"))
	for i, f := range []struct {
		cmd           *exec.Cmd
		network, addr string
	}{{passed, "tcp", c.SpareAddr}, {unix, "unix", c.Path("s")}} {
		if err := f.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		Eventually(t, 5*time.Second, func() bool { return len(c.Journal().Of("listen")) == i+1 }, "it listens")
		conn, err := net.Dial(f.network, f.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
		answer := make([]byte, 15)
		if _, err := conn.Read(answer); err != nil || string(answer) != "HTTP/1.0 200 OK" {
			t.Errorf("%s: %q, %v", f.network, answer, err)
		}
		conn.Close()
		_ = f.cmd.Process.Kill()
		_ = f.cmd.Wait()
	}
}

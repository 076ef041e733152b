package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal returns the two ends of a new pseudo-terminal.
func terminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("this machine has no pseudo-terminals:", err)
	}
	t.Cleanup(func() { ours.Close() })
	fd := int(ours.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("the pseudo-terminal cannot be opened:", err)
	}
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

// With the terminal of Caddy an instance could read what the operator types,
// and type commands itself.
func TestInstancesDoNotGetTheTerminalOfCaddy(t *testing.T) {
	users := []string{""}
	if os.Geteuid() == 0 {
		users = append(users, "nobody")
	}
	for _, user := range users {
		t.Run("user "+user, func(t *testing.T) {
			_, tty := terminal(t)
			dir := t.TempDir()
			for d := dir; d != os.TempDir(); d = filepath.Dir(d) {
				if err := os.Chmod(d, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			path, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			result := filepath.Join(dir, "result")
			open := `if (: </dev/tty) 2>/dev/null; then echo open; else echo none; fi >` + result
			args := []string{"child", "caddy", t.TempDir(), "stop", open + "; exec sleep 100"}
			if user != "" {
				args = append(args, user)
			}
			// A shell shows first that Caddy itself has the terminal.
			cmd := exec.Command("/bin/sh", append([]string{"-c", `: </dev/tty || exit 9; exec "$@"`, "sh", path}, args...)...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}()
			if got := readEventually(t, result); got != "none" {
				t.Errorf("the instance opened the terminal: %s", got)
			}
		})
	}
}

func init() {
	// leaves its process group, but not its session, and writes its pid
	roles["own-group"] = func(args []string) int {
		if err := syscall.Setpgid(0, 0); err != nil {
			fmt.Println(err)
			return 1
		}
		if err := os.WriteFile(args[0], fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
			fmt.Println(err)
			return 1
		}
		select {}
	}
}

// A shell with job control puts each job into a group of its own.
func TestAProcessThatIsOnlyInTheSessionOfAnInstanceEndsWithIt(t *testing.T) {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pid")
	b := open(t, shell("env -i "+path+" child own-group "+file+" & while [ ! -s "+file+" ]; do sleep 0.01; done; exit 1"))
	b.scale(1)
	b.awaitEnd(b.firstID())
	pid := pidIn(t, file)
	eventually(t, "its end", func() bool { return gone(pid) })
}

func TestEachInstanceLeadsASessionOfItsOwn(t *testing.T) {
	b := open(t, shell("exec sleep 100"))
	pid := b.pid(b.one().ID)
	session, err := unix.Getsid(pid)
	if err != nil || session != pid {
		t.Fatalf("the instance %d is in session %d: %v", pid, session, err)
	}
}

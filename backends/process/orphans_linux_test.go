package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"golang.org/x/sys/unix"

	"github.com/caddy-usher/usher/scaler"
)

// zombies returns the children of this process that have ended and were not
// reaped.
func zombies() (pids []int) {
	for _, pid := range children() {
		if stat, err := readStat(pid); err == nil && stat.dead() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// reapsOrphans makes the children of processes that end children of this one,
// as PID 1 gets them.
func reapsOrphans(t *testing.T) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })
}

func TestAStopLeavesNoZombies(t *testing.T) {
	reapsOrphans(t)
	for name, script := range map[string]string{
		"a server behind a shell":        "sleep 100 & wait",
		"one that ends later than it":    `sh -c 'trap "sleep 0.2; exit" TERM; while :; do sleep 0.02; done' & wait`,
		"one in a session of its own":    "setsid sleep 100 & wait",
		"one whose parent has ended":     "(setsid sleep 100 &); (sleep 100 &); wait; sleep 100",
		"one that ignores the signal":    `sh -c 'trap "" TERM; while :; do sleep 0.02; done' & wait`,
		"one that has no environment":    "env -i /bin/sleep 100 & wait",
		"a main process that was killed": "sleep 100 & sleep 0.1; kill -KILL $$",
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, shell(script))
			for range 3 {
				if err := b.order(1, 500*time.Millisecond); err != nil {
					t.Fatal(err)
				}
				id := b.latest().Instances[0].ID
				time.Sleep(50 * time.Millisecond) // what it starts may be there, or not
				if err := b.order(0, 500*time.Millisecond, id); err != nil {
					t.Fatal(err)
				}
				b.awaitEnd(id)
			}
			b.close(time.Second)
			if left := zombies(); len(left) > 0 {
				t.Errorf("zombies: %v", left)
			}
		})
	}
}

func TestOrphansAreReapedWhileTheirInstanceRuns(t *testing.T) {
	reapsOrphans(t)
	dir := t.TempDir()
	// Its pid is written by one that is an orphan by then.
	orphan := func(name, start string, lives string) string {
		return "(" + start + " sh -c 'echo $$ >" + dir + "/" + name + "; exec sleep " + lives + "' &); "
	}
	b := open(t, shell(orphan("group", "", "0.1")+orphan("bare", "env -i PATH=$PATH", "0.1")+orphan("session", "setsid", "2.5")+"exec sleep 100"))
	b.one()
	for _, name := range []string{"group", "bare", "session"} {
		pid := pidIn(t, filepath.Join(dir, name))
		eventually(t, "the end of the orphan "+name, func() bool {
			_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
			return errors.Is(err, os.ErrNotExist)
		})
	}
}

func TestChildrenOfOtherModulesAreNotReaped(t *testing.T) {
	reapsOrphans(t)
	b := open(t, shell("sleep 100 & wait"))
	in := b.one()
	var others []*exec.Cmd
	for range 3 {
		cmd := exec.Command("/bin/sh", "-c", "exit 7")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		others = append(others, cmd)
	}
	for _, cmd := range others {
		eventually(t, "its end", func() bool { return gone(cmd.Process.Pid) })
	}
	orphans.sweep()
	b.scale(0, in.ID)
	b.close(time.Second)
	for _, cmd := range others {
		if err := cmd.Wait(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 7 {
			t.Errorf("its exit status was taken away: %v", err)
		}
	}
}

func init() {
	// a Caddy that starts and stops instances and counts its zombies
	roles["cycles"] = func(args []string) int {
		b := shell(args[1])
		if err := b.Provision(caddy.Context{}); err != nil {
			fmt.Println(err)
			return 1
		}
		s, err := b.Open(scaler.Env{
			Service: "web", Revision: "r1", Logger: quiet,
			Host: &scaler.Host{DataDir: args[0], Local: func() scaler.LocalOptions {
				return scaler.LocalOptions{PortFrom: 26000, PortTo: 26999}
			}},
			Report: func(scaler.Report) {},
		})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		r := s.(*runner)
		for range 5 {
			if err := r.Scale(context.Background(), scaler.Order{Instances: 1}); err != nil {
				fmt.Println(err)
				return 1
			}
			time.Sleep(100 * time.Millisecond)
			r.mu.Lock()
			id := r.instances[0].id
			r.mu.Unlock()
			if err := r.Scale(context.Background(), scaler.Order{Stop: []string{id}, StopTimeout: time.Second}); err != nil {
				fmt.Println(err)
				return 1
			}
		}
		if err := r.Close(context.Background(), time.Second); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Printf("pid %d, %d zombies\n", os.Getpid(), len(zombies()))
		return 0
	}
}

func TestAsPID1CaddyKeepsNoZombies(t *testing.T) {
	needRoot(t)
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// As npm does it: a wrapper that ends before what it has started.
	script := `sh -c 'trap "exit" TERM; (sh -c "trap \"sleep 0.1; exit\" TERM; while :; do sleep 0.02; done" &); wait; while :; do sleep 0.02; done' & wait`
	cmd := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", path, "child", "cycles", t.TempDir(), script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Skipf("this machine makes no namespaces: %v: %s", err, out)
	}
	if got := string(out); got != "pid 1, 0 zombies\n" {
		t.Errorf("%s", got)
	}
}

package process

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// gone tells that a process has ended, reaped or not.
func gone(pid int) bool {
	stat, err := readStat(pid)
	return err != nil || stat.dead()
}

// leaver is a script whose main process leaves others behind: one in its
// group and one in a session of its own, both of which ignore TERM if told so.
func leaver(dir, trap, last string) string {
	loop := `sh -c '` + trap + `echo $$ >` + dir + `/$0; while :; do sleep 0.05; done' `
	return loop + `group & setsid ` + loop + `session & while [ ! -s ` + dir + `/group ] || [ ! -s ` + dir + `/session ]; do :; done; ` + last
}

func TestWhatAnInstanceLeavesBehindEndsWithIt(t *testing.T) {
	for name, test := range map[string]struct {
		trap, last string
		stop       bool
	}{
		"after an exit":                       {"", "exit 3", false},
		"after an exit, with TERM ignored":    {`trap "" TERM; `, "exit 3", false},
		"after a stop":                        {"", "wait", true},
		"after a stop, with TERM ignored":     {`trap "" TERM; `, "wait", true},
		"after the main process was killed":   {"", "kill -KILL $$", false},
		"after a fork that leaves its parent": {"", "exit 0", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			b := open(t, shell(leaver(dir, test.trap, test.last)))
			if err := b.order(1, 300*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			id := b.firstID()
			pids := []int{pidIn(t, dir+"/group"), pidIn(t, dir+"/session")}
			if test.stop {
				if err := b.order(0, 300*time.Millisecond, id); err != nil {
					t.Fatal(err)
				}
			}
			b.awaitEnd(id)
			for _, pid := range pids {
				eventually(t, "the end of what was left", func() bool { return gone(pid) })
			}
			eventually(t, "the record to go", func() bool { return len(records(t, b.dataDir)) == 0 })
		})
	}
}

func TestWhoIsInTheGroupIsFoundWithoutTheVariable(t *testing.T) {
	dir := t.TempDir()
	b := open(t, shell(`env -i /bin/sh -c 'echo $$ >`+dir+`/pid; while :; do /bin/sleep 0.05; done' & while [ ! -s `+dir+`/pid ]; do :; done; exit 1`))
	b.scale(1)
	b.awaitEnd(b.firstID())
	pid := pidIn(t, dir+"/pid")
	eventually(t, "its end", func() bool { return gone(pid) })
}

func TestWhatIsLeftMayFinishUntilTheStopTimeout(t *testing.T) {
	dir := t.TempDir()
	// The shell in front ends at once, as wrappers do; the work behind it
	// takes its time.
	b := open(t, shell(`sh -c 'trap "sleep 0.4; echo done >`+dir+`/done; exit" TERM; echo >`+dir+`/ready; while :; do sleep 0.02; done' & wait`))
	in := b.one()
	readEventually(t, dir+"/ready")
	b.scale(0, in.ID)
	b.awaitEnd(in.ID)
	b.close(5 * time.Second)
	if got, _ := os.ReadFile(dir + "/done"); string(got) != "done\n" {
		t.Fatal("it was cut off")
	}
}

func TestCloseShortensTheTimeOfWhatIsLeft(t *testing.T) {
	dir := t.TempDir()
	b := open(t, shell(leaver(dir, `trap "" TERM; `, "exit 3")))
	b.scale(1) // with a stop timeout of 5 s
	b.awaitEnd(b.firstID())
	began := time.Now()
	b.close(100 * time.Millisecond)
	if took := time.Since(began); took > 4*time.Second {
		t.Fatalf("close took %s", took)
	}
	if pid := pidIn(t, dir+"/session"); !gone(pid) {
		t.Fatal("it lives on")
	}
}

func TestOthersAreNotTouched(t *testing.T) {
	// One with the id of another instance, one whose variable only begins
	// like it, and one whose argument, not environment, has it.
	const id = "0123456789abcdef"
	var others []*exec.Cmd
	for _, env := range [][]string{
		{"USHER_INSTANCE=fedcba9876543210"},
		{"USHER_INSTANCE=" + id + "0"},
		{"NOT_USHER_INSTANCE=" + id},
		{"X=USHER_INSTANCE=" + id},
	} {
		cmd := exec.Command("sleep", "100")
		cmd.Env = env
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		others = append(others, cmd)
	}
	own := exec.Command("sleep", "100")
	own.Env = []string{"A=B", "USHER_INSTANCE=" + id, "C=D"}
	if err := own.Start(); err != nil {
		t.Fatal(err)
	}
	s := &search{instance: id}
	if !s.end(syscall.SIGTERM, false, func() time.Time { return time.Now().Add(patience) }) {
		t.Fatal("something is left")
	}
	if err := own.Wait(); err == nil || err.Error() != "signal: terminated" {
		t.Fatalf("its own ended with %v", err)
	}
	for _, cmd := range others {
		if gone(cmd.Process.Pid) {
			t.Fatalf("%v was ended", cmd.Env)
		}
	}
}

func TestAProcessIsHeldByMoreThanItsPid(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	stat, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if i := (identity{PID: cmd.Process.Pid, StartTime: stat.startTime}); !i.alive() {
		t.Fatal("it lives")
	}
	if i := (identity{PID: cmd.Process.Pid, StartTime: stat.startTime - 1}); i.alive() {
		t.Fatal("that was another process with this pid")
	}
	// The same with a record: another process has the pid now.
	r := &record{Instance: newID(), PID: cmd.Process.Pid, StartTime: stat.startTime - 1}
	if s := r.search(); s.group != 0 || len(s.find()) != 0 {
		t.Fatal("the pid alone was enough")
	}
}

func TestTheStarterLastsAsLongAsItIsNeeded(t *testing.T) {
	b := open(t, shell("exec sleep 100"))
	b.scale(2)
	if forks.holders != 3 {
		t.Fatalf("%d holders: the runner and two instances", forks.holders)
	}
	b.close(time.Second)
	if forks.holders != 0 {
		t.Fatalf("%d holders after close", forks.holders)
	}
	again := open(t, shell("exec sleep 100"))
	again.scale(1)
	if gone(again.pid(again.firstID())) {
		t.Fatal("the second start does not live")
	}
}

func TestLimitsAreNamed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs another user to limit")
	}
	b := shell("exec sleep 100")
	b.User = "nobody"
	bn := open(t, b)
	bn.scale(1) // the kernel counts those that the user has already
	var old syscall.Rlimit
	const processes = 6 // RLIMIT_NPROC
	if err := syscall.Getrlimit(processes, &old); err != nil {
		t.Fatal(err)
	}
	// Root itself is not bound by it.
	if err := syscall.Setrlimit(processes, &syscall.Rlimit{Cur: 0, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	err := bn.order(2, time.Second)
	if err := syscall.Setrlimit(processes, &old); err != nil {
		t.Fatal(err)
	}
	f, ok := errors.AsType[*scaler.Failure](err)
	if !ok || f.Reason != scaler.ReasonQuota || f.ForGood || !strings.Contains(f.Detail, "ulimit -u is 0") || !strings.Contains(f.Detail, "TasksMax") {
		t.Fatalf("%+v", f)
	}

	for _, listen := range []string{"tcp", "fd", "unix"} {
		b := shell("exec sleep 100")
		b.Listen = listen
		bn := open(t, b)
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
		// No number below the next one is free.
		probe, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		highest := int(probe.Fd())
		probe.Close()
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: uint64(highest), Max: old.Max}); err != nil {
			t.Fatal(err)
		}
		err = bn.order(1, time.Second)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
		f, ok := errors.AsType[*scaler.Failure](err)
		if !ok || f.Reason != scaler.ReasonQuota || !strings.Contains(f.Detail, "ulimit -n is "+strconv.Itoa(highest)) {
			t.Fatalf("listen %s: %+v", listen, f)
		}
	}
}

func TestAnUnwritableDataDirectoryIsSaidOnceAndDoesNotKeepServicesAsleep(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := open(t, shell("exec sleep 100"), func(env *scaler.Env, _ *scaler.LocalOptions) { env.DataDir = file })
	b.scale(2)
	if n := b.logs.FilterMessageSnippet("cannot be recorded").Len(); n != 1 {
		t.Fatalf("said %d times", n)
	}
}

func TestInstancesThatEndTogetherShareOneLookAtTheMachine(t *testing.T) {
	look := &scan{done: make(chan struct{}), processes: []scanned{{pid: 1}}}
	c := scanner{next: look} // about to begin
	results := make(chan []scanned)
	for range 10 {
		go func() { results <- c.take() }()
	}
	close(look.done)
	for range 10 {
		if got := <-results; len(got) != 1 || got[0].pid != 1 {
			t.Fatalf("another look: %v", got)
		}
	}
	c.next = nil
	if len(c.take()) < 2 || c.next != nil {
		t.Fatal("a look that has begun is joined")
	}
}

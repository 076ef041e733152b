package process

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/caddy-usher/usher/scaler"
)

// The pids of a record mean nothing on another machine, but its Caddy may live.
func TestRecordsOfAnotherMachineAreNotTouched(t *testing.T) {
	b := open(t, shell("exec sleep 100"), func(_ *scaler.Env, l *scaler.LocalOptions) { l.Keep = true })
	b.one()
	changeOwner(t, b.dataDir, func(i *identity) { i.BootID, i.Machine = "another", "another" })
	recoverNow(t, b.dataDir)
	if len(records(t, b.dataDir)) != 1 {
		t.Error("the record is gone")
	}
	if _, err := os.Stat(outputFile(t, b.dataDir)); err != nil {
		t.Error(err)
	}
	// The same with another boot of this machine.
	changeOwner(t, b.dataDir, func(i *identity) { i.Machine = "" })
	recoverNow(t, b.dataDir)
	if len(records(t, b.dataDir)) != 0 {
		t.Error("the record of an earlier boot is left")
	}
}

func TestRecordsOfAContainerThatIsGoneAreRemoved(t *testing.T) {
	elsewhere := func(path string, pid int) {
		t.Helper()
		r, err := readRecord(path)
		if err != nil {
			t.Fatal(err)
		}
		r.Owner.Namespace, r.Owner.PID, r.Lock = "pid:[1]", pid, ownerPrefix+newID()+ownerSuffix
		if err := r.rewrite(path); err != nil {
			t.Fatal(err)
		}
	}
	b := open(t, shell("exec sleep 100"))
	b.one()
	// This Caddy has its lock.
	changeOwner(t, b.dataDir, func(i *identity) { i.Namespace = "pid:[1]" })
	recoverNow(t, b.dataDir)
	if len(records(t, b.dataDir)) != 1 {
		t.Fatal("the record of a Caddy that lives is gone")
	}
	// With PID 1 the whole container is gone.
	elsewhere(records(t, b.dataDir)[0], 1)
	recoverNow(t, b.dataDir)
	if len(records(t, b.dataDir)) != 0 {
		t.Fatal("the record is left")
	}

	b = open(t, shell("exec sleep 100"))
	b.one()
	path := records(t, b.dataDir)[0]
	elsewhere(path, 7)
	recoverNow(t, b.dataDir)
	r, err := readRecord(path)
	if err != nil || time.Since(r.Lost) > time.Minute {
		t.Fatalf("a Caddy could be started anew in that container: %+v, %v", r, err)
	}
	recoverNow(t, b.dataDir)
	r.Lost = r.Lost.Add(-lostGrace)
	if err := r.rewrite(path); err != nil {
		t.Fatal(err)
	}
	recoverNow(t, b.dataDir)
	if len(records(t, b.dataDir)) != 0 {
		t.Error("the record is left")
	}
}

func TestLocksOfCaddysThatAreGoneAreRemoved(t *testing.T) {
	b := open(t, shell("exec sleep 100"))
	b.one()
	dir := locksOf(recordDir(b.dataDir))
	left := filepath.Join(dir, ownerPrefix+newID()+ownerSuffix)
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	recoverNow(t, b.dataDir)
	locks, err := filepath.Glob(filepath.Join(dir, ownerPrefix+"*"))
	if err != nil || len(locks) != 1 || locks[0] == left {
		t.Errorf("%v %v", locks, err)
	}
}

func TestTheSocketsGoElsewhereIfAnotherUserHasTheirDirectory(t *testing.T) {
	needRoot(t)
	tmp := shortDir(t)
	t.Setenv("TMPDIR", tmp)
	t.Setenv("RUNTIME_DIRECTORY", "")
	taken, _ := socketBase()
	if err := os.Mkdir(taken, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(taken, someUser, someUser); err != nil {
		t.Fatal(err)
	}
	b := shell(perlUnix)
	b.Listen, b.User = listenUnix, "nobody"
	bn := open(t, b)
	for range 2 {
		in := bn.await("an address", bn.one().ID, func(in scaler.Instance) bool { return in.Address != "" })
		if err := bn.reach(in); err != nil || strings.HasPrefix(in.Address, taken+"/") {
			t.Fatalf("%s: %v", in.Address, err)
		}
		bn.scale(0, in.ID)
		bn.awaitEnd(in.ID)
	}
	if dirs, _ := filepath.Glob(filepath.Join(tmp, "usher-*")); len(dirs) != 2 {
		t.Errorf("each start makes a directory: %v", dirs)
	}
}

func TestTheDirectoryOfASocketGoesWithAllThatIsInIt(t *testing.T) {
	base := shortDir(t)
	t.Setenv("RUNTIME_DIRECTORY", base)
	kept := filepath.Join(t.TempDir(), "kept")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := shell(`d=$(dirname {usher.socket}); mkdir $d/more; echo x >$d/more/file; ln -s ` + kept + ` {usher.socket}; exec sleep 100`)
	b.Listen = listenUnix
	bn := open(t, b)
	in := bn.one()
	dir := filepath.Join(base, in.ID)
	eventually(t, "the files", func() bool { _, err := os.Lstat(filepath.Join(dir, socketName)); return err == nil })
	bn.scale(0, in.ID)
	bn.close(patience)
	if left := traces(t, base); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
}

func TestCapabilitiesThatAreMissingAreNamedAtLoad(t *testing.T) {
	needRoot(t)
	done := make(chan *bench)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		defer close(done)
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var some [2]unix.CapUserData
		some[0].Permitted = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_KILL
		some[0].Effective = some[0].Permitted
		if err := unix.Capset(&head, &some[0]); err != nil {
			t.Error(err)
			return
		}
		b := shell("exec sleep 100")
		b.User, b.Listen = "nobody", listenUnix
		done <- open(t, b)
	}()
	b := <-done
	if b == nil {
		t.Fatal("not opened")
	}
	var said string
	for _, e := range b.logs.FilterMessageSnippet("lacks capabilities").All() {
		said += fmt.Sprint(e.ContextMap()["missing"])
	}
	for _, name := range []string{"CAP_SYS_PTRACE", "CAP_CHOWN", "CAP_DAC_OVERRIDE"} {
		if !strings.Contains(said, name) {
			t.Errorf("%s is not named: %q", name, said)
		}
	}
	all := shell("exec sleep 100")
	all.User, all.Listen = "nobody", listenUnix
	if n := open(t, all).logs.FilterMessageSnippet("lacks capabilities").Len(); n != 0 {
		t.Errorf("said although nothing lacks")
	}
}

// The kernel clears the parent-death signal when such a program is executed.
func TestASetuidProgramIsToldOfAndEndedByTheNextCaddy(t *testing.T) {
	needRoot(t)
	program := filepath.Join(shortDir(t), "sleep")
	text, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, text, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(program, 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	b := &Backend{Command: program, Args: []string{"100"}, User: "nobody"}
	told := open(t, b).logs.FilterMessageSnippet("setuid").FilterField(zap.String("command", program)).Len()
	if told != 1 {
		t.Errorf("told %d times", told)
	}
	dataDir := t.TempDir()
	pid := killedCaddy(t, dataDir, "stop", "exec "+program+" 100", func() {}, "nobody")
	recoverNow(t, dataDir)
	eventually(t, "its end", func() bool { return gone(pid) })
	if left := records(t, dataDir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

package process

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-usher/usher/scaler"
)

// idler is a script that is there until it is told to end.
const idler = "exec sleep 100"

// leftByKilledCaddy leaves a kept instance, and returns its pid.
func leftByKilledCaddy(t *testing.T, dataDir, script string, ready func()) int {
	t.Helper()
	pid := killedCaddy(t, dataDir, "keep", script, ready)
	start := startOf(t, pid)
	t.Cleanup(func() {
		if stat, err := readStat(pid); err == nil && stat.startTime == start {
			_ = syscall.Kill(-pid, syscall.SIGKILL)
		}
	})
	return pid
}

// heir opens the same as the next Caddy does.
func heir(t *testing.T, dataDir, script string, options ...func(*scaler.Env, *scaler.LocalOptions)) *bench {
	t.Helper()
	first := func(env *scaler.Env, l *scaler.LocalOptions) { env.DataDir, l.Keep = dataDir, true }
	return open(t, shell(script), append([]func(*scaler.Env, *scaler.LocalOptions){first}, options...)...)
}

// onlyRecord reads the only record.
func onlyRecord(t *testing.T, dataDir string) *record {
	t.Helper()
	paths := records(t, dataDir)
	if len(paths) != 1 {
		t.Fatalf("records: %v", paths)
	}
	r, err := readRecord(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// portState tells what the pool knows about a port.
func portState(port int) (used, rests bool) {
	ports.mu.Lock()
	defer ports.mu.Unlock()
	_, rests = ports.resting[port]
	return ports.used[onLoopback(port)], rests
}

func TestAKeptInstanceIsAdoptedAndStoppedLikeAChild(t *testing.T) {
	dir, dataDir := t.TempDir(), t.TempDir()
	// One of the group does not carry the variable, one of another session does.
	script := `trap 'echo asked >` + dir + `/asked; exit' TERM
env -i /bin/sh -c 'trap "echo asked >` + dir + `/group-asked; exit" TERM; echo $$ >` + dir + `/group; while :; do /bin/sleep 0.02; done' &
setsid sh -c 'echo $$ >` + dir + `/session; while :; do sleep 0.02; done' &
while :; do sleep 0.02; done`
	var others []int
	pid := leftByKilledCaddy(t, dataDir, script, func() {
		others = []int{pidIn(t, dir+"/group"), pidIn(t, dir+"/session")}
	})
	before := onlyRecord(t, dataDir)

	b := heir(t, dataDir, script, func(env *scaler.Env, _ *scaler.LocalOptions) { env.Revision = "r7" })
	in := b.history()[0].Instances[0] // in the first report
	if in.ID != before.Instance || !in.Adopted || in.WasReady || in.Address != before.Address || !in.Since.Equal(before.Since) || b.pid(in.ID) != pid {
		t.Fatalf("%+v of %+v", in, before)
	}
	own, _ := ownIdentity()
	if after := onlyRecord(t, dataDir); after.Owner != own || after.Revision != "r7" || after.PID != pid {
		t.Errorf("the record says %+v", after)
	}
	if used, _ := portState(int(before.loopbackAddress().Port())); !used {
		t.Error("its port may be given to another instance")
	}
	b.scale(1) // it counts
	if n := len(b.latest().Instances); n != 1 {
		t.Fatalf("%d instances", n)
	}
	b.scale(0, in.ID)
	if end := b.awaitEnd(in.ID); end.Failure != nil {
		t.Errorf("%v", end.Failure)
	}
	readEventually(t, dir+"/asked")
	readEventually(t, dir+"/group-asked")
	for _, pid := range others {
		eventually(t, "the end of what it had forked", func() bool { return gone(pid) })
	}
	eventually(t, "its files to go", func() bool {
		entries, _ := os.ReadDir(recordDir(dataDir))
		return len(entries) == 0
	})
	eventually(t, "its port to rest", func() bool { used, rests := portState(int(before.loopbackAddress().Port())); return !used && rests })
}

func TestAnAdoptedInstanceThatIgnoresItsSignalIsKilledWithItsGroup(t *testing.T) {
	dir, dataDir := t.TempDir(), t.TempDir()
	script := `trap '' TERM; env -i /bin/sh -c 'echo $$ >` + dir + `/group; while :; do /bin/sleep 0.02; done' & while :; do sleep 0.02; done`
	var member int
	pid := leftByKilledCaddy(t, dataDir, script, func() { member = pidIn(t, dir+"/group") })
	b := heir(t, dataDir, script)
	id := b.firstID()
	if err := b.order(0, 200*time.Millisecond, id); err != nil {
		t.Fatal(err)
	}
	b.awaitEnd(id)
	eventually(t, "the end of both", func() bool { return gone(pid) && gone(member) })
}

func TestWhoWasInTheGroupOfAnAdoptedInstanceIsKilledWhenThatHasEnded(t *testing.T) {
	dir, dataDir := t.TempDir(), t.TempDir()
	script := `trap 'exit' TERM; env -i /bin/sh -c 'trap "" TERM; echo $$ >` + dir + `/group; while :; do /bin/sleep 0.02; done' & while :; do sleep 0.02; done`
	var member int
	leftByKilledCaddy(t, dataDir, script, func() { member = pidIn(t, dir+"/group") })
	b := heir(t, dataDir, script)
	id := b.firstID()
	if err := b.order(0, 300*time.Millisecond, id); err != nil {
		t.Fatal(err)
	}
	b.awaitEnd(id)
	eventually(t, "its end", func() bool { return gone(member) })
}

func TestAPidWithAnotherStartTimeIsNotTakenForTheInstance(t *testing.T) {
	dataDir := t.TempDir()
	leftByKilledCaddy(t, dataDir, idler, func() {})
	r := onlyRecord(t, dataDir)
	r.StartTime++
	if c, err := adoptChild(r); err == nil {
		c.close()
		t.Error("it is")
	}
}

func TestTheEndOfAnAdoptedInstanceIsSeenAndSaidToBeUnknown(t *testing.T) {
	dataDir := t.TempDir()
	pid := leftByKilledCaddy(t, dataDir, idler, func() {})
	b := heir(t, dataDir, idler)
	_ = syscall.Kill(pid, syscall.SIGKILL)
	if f := b.awaitEnd(b.firstID()).Failure; f == nil || !strings.Contains(f.Short, "exit status unknown") {
		t.Errorf("%v", f)
	}
	eventually(t, "the record to go", func() bool { return len(records(t, dataDir)) == 0 })
}

func TestAnAdoptedInstanceIsLeftRunningByClose(t *testing.T) {
	dataDir := t.TempDir()
	pid := leftByKilledCaddy(t, dataDir, idler, func() {})
	b := heir(t, dataDir, idler)
	b.close(0)
	if gone(pid) {
		t.Fatal("it was stopped")
	}
	if own, _ := ownIdentity(); onlyRecord(t, dataDir).Owner != own {
		t.Error("the record names another owner")
	}
}

// awaitSleep waits until the last program of the process runs. That its
// environment is empty does not show it: it is so in the midst of every exec.
func awaitSleep(t *testing.T, pid int) {
	t.Helper()
	eventually(t, "its last program", func() bool {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err == nil && string(name) == "sleep\n"
	})
}

func TestWhatIsNotCertainlyAnInstanceOfTheRevisionIsNotAdopted(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		change func(*testing.T, *record)
		option func(*scaler.Env, *scaler.LocalOptions)
	}{
		"of another service":             {option: func(env *scaler.Env, _ *scaler.LocalOptions) { env.Service = "other" }},
		"of another fingerprint":         {change: func(_ *testing.T, r *record) { r.Fingerprint = "other" }},
		"nothing is to be kept any more": {option: func(_ *scaler.Env, l *scaler.LocalOptions) { l.Keep = false }},
		"it was not to be kept":          {change: func(_ *testing.T, r *record) { r.Keep = false }},
		"the pid is another process's":   {change: func(_ *testing.T, r *record) { r.StartTime++ }},
		"no process is known":            {change: func(_ *testing.T, r *record) { r.PID = 0 }},
		"its Caddy lives": {change: func(t *testing.T, r *record) {
			r.Owner.PID = os.Getppid()
			r.Owner.StartTime = startOf(t, os.Getppid())
		}},
		"its Caddy may live where we see not":   {change: func(_ *testing.T, r *record) { r.Owner.Namespace = "pid:[1]" }},
		"the pids are those of another boot":    {change: func(_ *testing.T, r *record) { r.Owner.BootID = "another" }},
		"no port of this machine":               {change: func(_ *testing.T, r *record) { r.Address = "192.0.2.1:80" }},
		"the process shows no mark whose it is": {script: "exec env -i /bin/sleep 100 >/dev/null 2>&1"},
	} {
		t.Run(name, func(t *testing.T) {
			script := idler
			if test.script != "" {
				script = test.script
			}
			dataDir := t.TempDir()
			pid := leftByKilledCaddy(t, dataDir, script, func() {})
			if test.script != "" {
				awaitSleep(t, pid)
			}
			r := onlyRecord(t, dataDir)
			if test.change != nil {
				test.change(t, r)
				path := records(t, dataDir)[0]
				if err := r.rewrite(path); err != nil {
					t.Fatal(err)
				}
			}
			var options []func(*scaler.Env, *scaler.LocalOptions)
			if test.option != nil {
				options = append(options, test.option)
			}
			b := heir(t, dataDir, script, options...)
			if list := b.latest().Instances; len(list) != 0 {
				t.Errorf("adopted: %+v", list)
			}
			if gone(pid) {
				t.Error("it was ended")
			}
			if after := onlyRecord(t, dataDir); after.Owner != r.Owner {
				t.Error("its record was taken over")
			}
		})
	}
}

func TestAProgramThatHidesItsEnvironmentIsKnownByItsOutput(t *testing.T) {
	const script = "exec env -i /bin/sleep 100"
	dataDir := t.TempDir()
	pid := leftByKilledCaddy(t, dataDir, script, func() {})
	awaitSleep(t, pid)
	b := heir(t, dataDir, script)
	b.scale(0, b.firstID())
	eventually(t, "its end", func() bool { return gone(pid) })
}

func TestAfterRecoverNothingIsAdopted(t *testing.T) {
	dataDir := t.TempDir()
	recoverNow(t, dataDir)
	pid := leftByKilledCaddy(t, dataDir, idler, func() {})
	if list := heir(t, dataDir, idler).latest().Instances; len(list) != 0 || gone(pid) {
		t.Errorf("adopted %+v, gone %v", list, gone(pid))
	}
}

func TestOfManyThatTakeARecordOverOneSucceeds(t *testing.T) {
	dataDir := t.TempDir()
	leftByKilledCaddy(t, dataDir, idler, func() {})
	own, err := ownIdentity()
	if err != nil {
		t.Fatal(err)
	}
	var succeeded atomic.Int32
	var all sync.WaitGroup
	for range 20 {
		r := onlyRecord(t, dataDir)
		all.Go(func() {
			switch err := r.takeOver(recordDir(dataDir), own, "r1"); {
			case err == nil:
				succeeded.Add(1)
			case !errors.Is(err, errOwned):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := succeeded.Load(); n != 1 {
		t.Errorf("%d of them have it", n)
	}
}

func TestThePortOfWhatIsNotAdoptedIsFreeWhenItHasEnded(t *testing.T) {
	dataDir := t.TempDir()
	pid := leftByKilledCaddy(t, dataDir, idler, func() {}) // it does not even listen
	port := int(onlyRecord(t, dataDir).loopbackAddress().Port())
	heir(t, dataDir, "exec sleep 200") // another revision
	if used, _ := portState(port); !used {
		t.Error("the port of a process that may yet listen there can be given to another")
	}
	recoverNow(t, dataDir)
	if used, rests := portState(port); used || !rests || !gone(pid) {
		t.Errorf("used %v, rests %v, gone %v", used, rests, gone(pid))
	}
}

func TestThatAnInstanceWasReadyIsOnRecord(t *testing.T) {
	b := open(t, self(t, "serve"), func(_ *scaler.Env, l *scaler.LocalOptions) { l.Keep = true })
	in := b.one()
	eventually(t, "it to listen", func() bool {
		conn, err := net.Dial("tcp", in.Address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if onlyRecord(t, b.dataDir).Ready {
		t.Error("before anybody knows")
	}
	if err := b.runner.Confirm(t.Context(), in.ID); err != nil {
		t.Fatal(err)
	}
	if !onlyRecord(t, b.dataDir).Ready {
		t.Error("it is not")
	}
	b.scale(0, in.ID)
	b.awaitEnd(in.ID)
}

func TestConnectionsThatWaitAreCountedWithoutTheSocket(t *testing.T) {
	var l *passedListener
	port, f := ports.take(26000, 26999, func(port int) (err error) {
		l, err = listenOn(port)
		return err
	})
	if f != nil {
		t.Fatal(f)
	}
	defer ports.give(onLoopback(port), true)
	ln, err := net.FileListener(l.file)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l.close()
	for n := range 2 {
		if got := unaccepted(port); got != n {
			t.Errorf("%d wait, want %d", got, n)
		}
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	for range 2 {
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	if got := unaccepted(port); got != 0 {
		t.Errorf("%d wait after all were accepted", got)
	}
}

func TestOutputIsReadOnWhereTheEarlierCaddyStopped(t *testing.T) {
	for name, test := range map[string]struct {
		marks string
		file  string
		want  []string
	}{
		"in the middle":                  {fmt.Sprintf(marksFormat, 4, 0), "old\nnew\npart", []string{"new", "part"}},
		"at the beginning":               {fmt.Sprintf(marksFormat, 0, 0), "new\n", []string{"new"}},
		"the file was cut meanwhile":     {fmt.Sprintf(marksFormat, 400, 0), "new\n", []string{"new"}},
		"there are no marks":             {"", "old\n", nil},
		"the marks are none":             {strings.Repeat("?", marksLength), "old\n", nil},
		"nothing was written since then": {fmt.Sprintf(marksFormat, 4, 0), "old\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			core, logs := observer.New(zapcore.DebugLevel)
			out := newOutput(slog.New(zapslog.NewHandler(core)))
			f := reopened(t, out, test.marks, test.file)
			f.begin()
			f.close()
			out.finish()
			var got []string
			for _, e := range logs.FilterField(zap.String("stream", "stdout")).All() {
				got = append(got, e.Message)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// reopened returns the output of an instance that an earlier Caddy has read as
// far as the marks say.
func reopened(t *testing.T, out *output, marks, stdout string) *followed {
	t.Helper()
	files := outputFilesOf(t.TempDir(), newID())
	for path, text := range map[string]string{files.streams[0]: stdout, files.streams[1]: "", files.marks: marks} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := reopenFollowed(out, files, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestOfAFloodWithoutACaddyOnlyTheEndIsRead(t *testing.T) {
	line := strings.Repeat("x", 1<<10) + "\n"
	out := newOutput(nil)
	f := reopened(t, out, fmt.Sprintf(marksFormat, 4, 0), "old\n"+strings.Repeat(line, 9<<10)+"new\n")
	if left := int64(4+9<<20+9<<10+4) - f.streams[0].offset; left != maxOutputFile {
		t.Errorf("%d bytes are read", left)
	}
	f.begin()
	f.close()
	if !strings.HasSuffix(out.tail(), "x\nnew") {
		t.Errorf("it ends with %q", out.tail())
	}
	if info, err := os.Stat(f.streams[0].read.Name()); err != nil || info.Size() != 0 {
		t.Errorf("the file is not cut: %v, %v", info.Size(), err)
	}
}

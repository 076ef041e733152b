//go:build unix

package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

func get(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestAnEmptyReportComesAtOnce(t *testing.T) {
	b := open(t, shell("exec sleep 100"))
	if got := b.history(); len(got) != 1 || len(got[0].Instances) != 0 || got[0].Trouble != nil {
		t.Fatalf("reports after open: %+v", got)
	}
	if forks.holders != 0 {
		t.Fatal("the starter runs before anything was started")
	}
	if !b.runner.Traits().Owned {
		t.Fatal("processes are local instances")
	}
}

func TestAnInstanceServesAtItsReportedAddress(t *testing.T) {
	b := open(t, self(t, "serve"))
	in := b.one()
	if in.Phase != scaler.PhaseStarting || in.Network != "tcp" || time.Since(in.Since) > patience {
		t.Fatalf("reported %+v", in)
	}
	eventually(t, "the server", func() bool {
		resp, err := http.Get("http://" + in.Address)
		if err != nil {
			return false
		}
		resp.Body.Close()
		http.DefaultClient.CloseIdleConnections()
		return true
	})
	if got := get(t, "http://"+in.Address); got != "hello" {
		t.Fatalf("got %q", got)
	}
}

func TestAnOrderIsAbsoluteAndReportedBeforeItReturns(t *testing.T) {
	b := open(t, shell("exec sleep 100"))
	b.scale(3)
	r := b.latest()
	if len(r.Instances) != 3 || r.Desired != 3 {
		t.Fatalf("after scale to 3: %+v", r)
	}
	b.scale(3)
	if again := b.latest(); fmt.Sprint(again) != fmt.Sprint(r) {
		t.Fatalf("the same order changed something: %+v", again)
	}

	// One is stopped by name, and as two shall be left nothing is started.
	victim := r.Instances[1].ID
	b.scale(2, victim)
	if r = b.latest(); r.Desired != 2 {
		t.Fatalf("desired %d", r.Desired)
	}
	b.awaitEnd(victim)

	// More than ordered stay until they are named.
	b.scale(1)
	if r = b.latest(); len(r.Instances) != 2 {
		t.Fatalf("an unnamed instance was stopped: %+v", r)
	}

	// One stops while another one starts, and an unknown id is no error.
	victim = r.Instances[0].ID
	b.scale(2, victim, "missing")
	r = b.latest()
	if r.Desired != 2 {
		t.Fatalf("desired %d", r.Desired)
	}
	ids := make(map[string]bool)
	for _, report := range b.history() {
		for _, in := range report.Instances {
			ids[in.ID] = true
		}
	}
	if len(ids) != 4 {
		t.Fatalf("%d instances were ever started", len(ids))
	}
}

func TestAStopIsReportedAndThenItsEndExactlyOnce(t *testing.T) {
	dir := t.TempDir()
	b := open(t, shell("trap 'exit 7' TERM; echo $$ >"+dir+"/pid; while :; do sleep 0.01; done"))
	in := b.one()
	readEventually(t, dir+"/pid")
	b.scale(0, in.ID)
	if got := b.awaitEnd(in.ID); got.Failure != nil {
		t.Fatalf("an end that was asked for is no failure: %v", got.Failure)
	}
	b.scale(0)
	stopping, ended := 0, 0
	for _, r := range b.history() {
		for _, in := range r.Instances {
			switch in.Phase {
			case scaler.PhaseStopping:
				if ended > 0 {
					t.Fatal("stopping after the end")
				}
				stopping++
			case scaler.PhaseEnded:
				ended++
			}
		}
	}
	if stopping == 0 || ended != 1 {
		t.Fatalf("%d reports of stopping, %d of the end", stopping, ended)
	}
}

func TestTheStopSignalGoesToTheWholeGroup(t *testing.T) {
	dir := t.TempDir()
	b := shell(`(trap 'echo child >` + dir + `/child; exit' USR1; echo >` + dir + `/ready; while :; do sleep 0.01; done) & trap 'wait; exit' USR1; wait`)
	b.StopSignal = "usr1"
	bn := open(t, b)
	in := bn.one()
	readEventually(t, dir+"/ready")
	bn.scale(0, in.ID)
	bn.awaitEnd(in.ID)
	if got := readEventually(t, dir+"/child"); got != "child" {
		t.Fatalf("got %q", got)
	}
}

func TestWhoIgnoresTheStopSignalIsKilledAfterTheStopTimeout(t *testing.T) {
	b := open(t, self(t, "stubborn"))
	in := b.one()
	eventually(t, "the instance", func() bool { return len(b.messages("stdout")) > 0 })
	began := time.Now()
	if err := b.order(0, 300*time.Millisecond, in.ID); err != nil {
		t.Fatal(err)
	}
	b.awaitEnd(in.ID)
	if took := time.Since(began); took < 300*time.Millisecond || took > 4*time.Second {
		t.Fatalf("it was killed after %s", took)
	}
}

func TestCloseStopsAllAtOnceAndWaits(t *testing.T) {
	b := open(t, self(t, "stubborn"))
	b.scale(4)
	eventually(t, "the instances", func() bool { return len(b.messages("stdout")) == 4 })
	var pids []int
	for _, in := range b.latest().Instances {
		pids = append(pids, b.pid(in.ID))
	}
	began := time.Now()
	b.close(time.Second)
	if took := time.Since(began); took > 3*time.Second { // 4 s one after the other
		t.Fatalf("close took %s", took)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Fatalf("process %d is still there: %v", pid, err)
		}
	}
	if left := records(t, b.dataDir); len(left) != 0 {
		t.Fatalf("records left: %v", left)
	}
	count := len(b.history())
	if err := b.order(1, time.Second); err == nil {
		t.Fatal("an order after close was accepted")
	}
	if len(b.history()) != count {
		t.Fatal("a report after close")
	}
}

func TestCloseGivesUpWaitingWithItsContextButNotTheKill(t *testing.T) {
	b := open(t, self(t, "stubborn"))
	in := b.one()
	eventually(t, "the instance", func() bool { return len(b.messages("stdout")) == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.runner.Close(ctx, 300*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("close: %v", err)
	}
	count := len(b.history())
	if r := b.latest(); len(r.Instances) != 1 || r.Instances[0].ID != in.ID || r.Instances[0].Phase != scaler.PhaseStopping {
		t.Fatalf("last report %+v", r)
	}
	eventually(t, "the kill", func() bool { return len(records(t, b.dataDir)) == 0 })
	if len(b.history()) != count {
		t.Fatal("a report after close")
	}
}

func TestAnExitIsAFailureWithItsStatusAndTheLastLines(t *testing.T) {
	tests := []struct{ script, short, detail string }{
		{"echo one; echo two >&2; exit 127", "exit status 127", "one\ntwo"},
		{"for i in $(seq 30); do echo line $i; done; exit 1", "exit status 1", "line 11\n"},
		{"printf 'without a newline'; exit 0", "the program ended by itself without an error (exit status 0)", "without a newline"},
		{"kill -KILL $$", "signal: killed", ""},
		{"kill -SEGV $$", "signal: segmentation fault", ""},
	}
	for _, output := range []string{"log", "discard"} {
		for _, test := range tests {
			b := shell(test.script)
			b.Output = output
			bn := open(t, b)
			bn.scale(1)
			// It may have ended before the order returned.
			in := bn.awaitEnd(bn.firstID())
			f := in.Failure
			if f == nil || f.Reason != scaler.ReasonExit || f.ForGood || !strings.HasPrefix(f.Short, test.short) {
				t.Fatalf("%s: failure %+v", test.script, f)
			}
			if test.script[:4] == "echo" { // two pipes have no order between them
				f.Detail = strings.Join(sorted(strings.Split(f.Detail, "\n")), "\n")
			}
			if !strings.HasPrefix(f.Detail, test.detail) || strings.Count(f.Detail, "\n") >= keptLines {
				t.Fatalf("%s: detail %q", test.script, f.Detail)
			}
			bn.close(time.Second)
			if logged := len(bn.messages("stdout")); (logged > 0) != (output == "log" && test.detail != "") {
				t.Fatalf("output %s: %d lines logged", output, logged)
			}
		}
	}
}

func TestAnExitIsSeenAtOnceWhileAGrandchildHoldsThePipe(t *testing.T) {
	dir := t.TempDir()
	// The grandchild has no mercy and no variable, and is in no group that is
	// known: nothing but the pipe is left of it.
	b := open(t, shell(`env -i setsid sh -c 'echo $$ >`+dir+`/pid; trap "" TERM; exec sleep 8' & while [ ! -s `+dir+`/pid ]; do :; done; echo last words; exit 5`))
	b.scale(1)
	pid := pidIn(t, filepath.Join(dir, "pid"))
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	began := time.Now()
	in := b.awaitEnd(b.firstID())
	if took := time.Since(began); took > 5*time.Second {
		t.Fatalf("the end was seen after %s", took)
	}
	if in.Failure.Short != "exit status 5" || in.Failure.Detail != "last words" {
		t.Fatalf("failure %v", in.Failure)
	}
	b.close(time.Second)
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the test is void, the grandchild is gone: %v", err)
	}
}

func TestAStartThatCannotSucceedSaysSoForGood(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	gone := filepath.Join(dir, "gone")
	tests := []struct {
		name    string
		backend Backend
		break_  func()
		reason  scaler.Reason
		words   string
	}{
		{"command gone", Backend{Command: write("cmd", "#!/bin/sh\n", 0o755)}, func() { os.Remove(filepath.Join(dir, "cmd")) }, scaler.ReasonExec, "does not exist"},
		{"not executable", Backend{Command: write("noexec", "#!/bin/sh\n", 0o755)}, func() { os.Chmod(filepath.Join(dir, "noexec"), 0o644) }, scaler.ReasonExec, "not executable"},
		{"no program", Backend{Command: write("garbage", "\x01\x02", 0o755)}, nil, scaler.ReasonExec, "no program of this machine"},
		{"no interpreter", Backend{Command: write("script", "#!/no/such/interpreter\n", 0o755)}, nil, scaler.ReasonExec, "interpreter"},
		{"directory gone", Backend{Command: "/bin/true", Dir: mkdir(t, gone)}, func() { os.Remove(gone) }, scaler.ReasonNotFound, "directory does not exist"},
		{"only known at start", Backend{Command: "/no/{usher.instance}"}, nil, scaler.ReasonExec, "does not exist"},
		{"too long", Backend{Command: "/bin/true", Args: []string{strings.Repeat("x", 1<<20)}}, nil, scaler.ReasonExec, "too long"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := open(t, &test.backend)
			if test.break_ != nil {
				test.break_()
			}
			f, ok := errors.AsType[*scaler.Failure](b.order(2, time.Second))
			if !ok || !f.ForGood || f.Reason != test.reason || !strings.Contains(f.Short, test.words) {
				t.Fatalf("failure %+v", f)
			}
			if strings.Contains(f.Short, "/") {
				t.Fatalf("%q shows a path to clients", f.Short)
			}
			if r := b.latest(); len(r.Instances) != 0 || r.Desired != 0 {
				t.Fatalf("report %+v", r)
			}
			if left := records(t, b.dataDir); len(left) != 0 {
				t.Fatalf("records left: %v", left)
			}
		})
	}
}

func mkdir(t *testing.T, path string) string {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

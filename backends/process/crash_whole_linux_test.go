package process

import (
	"os"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// A server behind a wrapper keeps its lock while it ends. The wrapper's crash is
// told at once, and that something is left until nothing is.
func TestACrashIsToldAtOnceAndItsEndWhenAllHasEnded(t *testing.T) {
	dir := t.TempDir()
	b := open(t, shell(`sh -c 'trap "sleep 0.5; echo done >`+dir+`/done; exit" TERM; echo >`+dir+`/ready; while :; do sleep 0.02; done' & while [ ! -e `+dir+`/ready ]; do sleep 0.02; done; sleep 0.1; kill -KILL $$`))
	if err := b.order(1, patience); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the rest", func() bool {
		reports := b.history()
		last := reports[len(reports)-1]
		return len(last.Instances) == 0 && last.Remains == 0 && len(reports) > 2
	})
	if got, _ := os.ReadFile(dir + "/done"); string(got) != "done\n" {
		t.Error("nothing was left, it says, while the server still ran")
	}
	told := false
	for _, r := range b.history() {
		for _, in := range r.Instances {
			if in.Phase == scaler.PhaseEnded {
				told = true
				if r.Remains != 1 || in.Failure == nil {
					t.Errorf("the crash is reported as %+v", r)
				}
			}
		}
	}
	if !told {
		t.Error("the crash was not reported")
	}
}

// What is left and ignores the signal is killed after stop_timeout.
func TestWhatACrashLeavesIsKilledInTime(t *testing.T) {
	dir := t.TempDir()
	b := open(t, shell(`sh -c 'trap "" TERM; echo >`+dir+`/ready; while :; do sleep 0.02; done' & while [ ! -e `+dir+`/ready ]; do sleep 0.02; done; kill -KILL $$`))
	start := time.Now()
	if err := b.order(1, 500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a report that nothing is left", func() bool {
		reports := b.history()
		last := reports[len(reports)-1]
		return len(last.Instances) == 0 && last.Remains == 0 && len(reports) > 2
	})
	if took := time.Since(start); took < 500*time.Millisecond {
		t.Errorf("it had %v to end", took)
	}
}

// The next start, which the report sets off, finds the address free.
func TestAFixedAddressIsFreeWhenTheEndIsReported(t *testing.T) {
	port := fixedPort(t)
	for how, script := range map[string]string{"stopped": "exec sleep 100", "crashed": "sleep 0.1; exit 7"} {
		b := shell(script)
		b.Address = onLoopback(port).String()
		bn := open(t, b, func(env *scaler.Env, _ *scaler.LocalOptions) {
			report := env.Report
			ended := false
			env.Report = func(r scaler.Report) {
				for _, in := range r.Instances {
					ended = ended || in.Phase == scaler.PhaseEnded
				}
				if ended && r.Remains == 0 && ports.isUsed(port) {
					t.Errorf("%s: its end is reported before its address is free", how)
				}
				report(r)
			}
		})
		in := bn.one()
		if how == "stopped" {
			bn.scale(0, in.ID)
		}
		bn.awaitEnd(in.ID)
		bn.close(patience)
	}
}

//go:build unix

package process

import (
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-usher/usher/scaler"
)

func TestAThousandSleepingServicesHaveNoGoroutine(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	runners := make([]scaler.Scaler, 1000)
	for i := range runners {
		b := &Backend{Command: "/bin/sleep", Args: []string{strconv.Itoa(i), "{usher.port}"}, Env: map[string]string{"A": "b"}}
		provision(t, b)
		var err error
		runners[i], err = b.Open(scaler.Env{
			Service: "s" + strconv.Itoa(i), Logger: quiet,
			Host:   &scaler.Host{Local: func() scaler.LocalOptions { return scaler.LocalOptions{} }},
			Report: func(scaler.Report) {},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines more", n-goroutines)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d bytes for each", (after.HeapAlloc-before.HeapAlloc)/1000)
	for _, r := range runners {
		if err := r.Close(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAReloadLeavesNothingOfThePlanBefore(t *testing.T) {
	b := open(t, shell("exec sleep 100"))
	next := shell("exec sleep 100")
	provision(t, next)
	if !b.runner.Update(next) {
		t.Error("an equal backend is not taken over")
	}
	if b.runner.plan.Load() != next.state.current() {
		t.Fatal("the runner goes on with the plan of an earlier configuration")
	}
	b.one()
}

func TestASleepingServiceThatWasAwakeHasNoGoroutine(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	b := open(t, shell("echo awake; exec sleep 100"))
	for range 2 {
		in := b.one()
		b.scale(0, in.ID)
		b.awaitEnd(in.ID)
	}
	// The starter is left, one for all services.
	eventually(t, "the goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines+1 })
}

func TestWhatAServiceManagerWouldDoIsSaidToItsServicesOnly(t *testing.T) {
	t.Setenv("INVOCATION_ID", "")
	t.Setenv("SYSTEMD_EXEC_PID", strconv.Itoa(os.Getpid()))
	if underSystemd() {
		t.Error("there is no invocation")
	}
	t.Setenv("INVOCATION_ID", "x")
	if !underSystemd() {
		t.Error("this is the main process of a service")
	}
	t.Setenv("SYSTEMD_EXEC_PID", "1")
	if underSystemd() {
		t.Error("the service is another process")
	}
	for keep, words := range map[bool]string{true: "KillMode=process", false: "KillMode=mixed and a TimeoutStopSec"} {
		core, logs := observer.New(zap.WarnLevel)
		warnSystemd(slog.New(zapslog.NewHandler(core)), keep)
		if logs.Len() != 1 || !strings.Contains(logs.All()[0].Message, words) {
			t.Errorf("keep %v: %v", keep, logs.All())
		}
	}
}

func BenchmarkStart(b *testing.B) {
	bk := &Backend{Command: "/bin/sleep", Args: []string{"100"}}
	if err := bk.Provision(caddy.Context{}); err != nil {
		b.Fatal(err)
	}
	s, err := bk.Open(scaler.Env{
		Service: "web", Logger: quiet,
		Host: &scaler.Host{
			DataDir: b.TempDir(),
			Local:   func() scaler.LocalOptions { return scaler.LocalOptions{PortFrom: 21000, PortTo: 31000} },
		},
		Report: func(scaler.Report) {},
	})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if f := s.(*runner).start(); f != nil {
			b.Fatal(f)
		}
	}
	if err := s.Close(b.Context(), 0); err != nil {
		b.Fatal(err)
	}
}

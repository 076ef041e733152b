//go:build unix

package process

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/test/harness"
)

// The test binary is also the program of the instances: `<binary> child <role>`.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "child" {
		os.Exit(roles[os.Args[2]](os.Args[3:]))
	}
	goleak.VerifyTestMain(m)
}

// The ports of this run. Another run at the same time has others: a program that
// a test has started cannot listen while another run tries whether its port is
// free.
const portsOfRun = 100

var firstPort = 27000 + portsOfRun*(os.Getpid()%40)

// patience is how long a test waits for something that should happen soon.
const patience = 10 * time.Second

// bench is a runner with its surroundings.
type bench struct {
	t       *testing.T
	backend *Backend
	runner  *runner
	logs    *observer.ObservedLogs
	dataDir string

	mu      sync.Mutex
	local   scaler.LocalOptions
	reports []scaler.Report
	changed chan struct{}
}

// open provisions a backend and opens it.
func open(t *testing.T, b *Backend, options ...func(*scaler.Env, *scaler.LocalOptions)) *bench {
	t.Helper()
	provision(t, b)
	core, logs := observer.New(zapcore.DebugLevel)
	bn := &bench{
		t: t, backend: b, logs: logs, dataDir: t.TempDir(),
		local:   scaler.LocalOptions{PortFrom: firstPort, PortTo: firstPort + portsOfRun - 1},
		changed: make(chan struct{}, 1),
	}
	env := scaler.Env{
		Service: "web", Revision: "r1", Logger: func() *slog.Logger { return slog.New(zapslog.NewHandler(core)) },
		Host: &scaler.Host{DataDir: bn.dataDir, Local: func() scaler.LocalOptions {
			bn.mu.Lock()
			defer bn.mu.Unlock()
			return bn.local
		}},
		Report: bn.report,
	}
	for _, o := range options {
		o(&env, &bn.local)
	}
	s, err := b.Open(env)
	if err != nil {
		t.Fatal(err)
	}
	bn.runner = s.(*runner)
	t.Cleanup(func() { bn.close(2 * time.Second) })
	return bn
}

func provision(t *testing.T, b *Backend) {
	t.Helper()
	if err := b.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	if f := b.Check(); f != nil {
		t.Fatal(f)
	}
}

// loaded returns the error with which a reload would refuse the backend.
func loaded(b *Backend) error {
	if err := b.Provision(caddy.Context{}); err != nil {
		return err
	}
	return checked(b)
}

// checked returns what Check says, as an error.
func checked(b *Backend) error {
	if f := b.Check(); f != nil {
		return f
	}
	return nil
}

func (b *bench) report(r scaler.Report) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reports = append(b.reports, r)
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

func (b *bench) close(stopTimeout time.Duration) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.runner.Close(ctx, stopTimeout); err != nil {
		b.t.Errorf("close: %v", err)
	}
}

// latest returns the last report.
func (b *bench) latest() scaler.Report {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reports[len(b.reports)-1]
}

// history returns all reports.
func (b *bench) history() []scaler.Report {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.reports)
}

// scale gives an order that must succeed.
func (b *bench) scale(n int, stop ...string) {
	b.t.Helper()
	if err := b.order(n, 5*time.Second, stop...); err != nil {
		b.t.Fatalf("scale to %d: %v", n, err)
	}
}

func (b *bench) order(n int, timeout time.Duration, stop ...string) error {
	return b.runner.Scale(b.t.Context(), scaler.Order{Instances: n, Stop: stop, StopTimeout: timeout})
}

// one starts one instance and returns it.
func (b *bench) one() scaler.Instance {
	b.t.Helper()
	b.scale(1)
	r := b.latest()
	if len(r.Instances) != 1 {
		b.t.Fatalf("%d instances after scale to 1", len(r.Instances))
	}
	return r.Instances[0]
}

// pid returns the pid of an instance.
func (b *bench) pid(id string) int {
	b.t.Helper()
	b.runner.mu.Lock()
	defer b.runner.mu.Unlock()
	for _, in := range b.runner.instances {
		if in.id == id {
			return in.child.pid
		}
	}
	b.t.Fatalf("no instance %s", id)
	return 0
}

// await waits for a report, old or new, that has the instance in a certain
// state, and returns it.
func (b *bench) await(what string, id string, is func(scaler.Instance) bool) scaler.Instance {
	b.t.Helper()
	deadline := time.After(patience)
	for seen := 0; ; {
		b.mu.Lock()
		news := b.reports[seen:]
		seen = len(b.reports)
		b.mu.Unlock()
		for _, r := range news {
			for _, in := range r.Instances {
				if in.ID == id && is(in) {
					return in
				}
			}
		}
		select {
		case <-b.changed:
		case <-deadline:
			b.t.Fatalf("instance %s: waited in vain for: %s; last report %+v", id, what, b.latest())
		}
	}
}

func (b *bench) awaitEnd(id string) scaler.Instance {
	b.t.Helper()
	return b.await("its end", id, func(in scaler.Instance) bool { return in.Phase == scaler.PhaseEnded })
}

// eventually polls for something that no report tells.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	harness.Eventually(t, patience, is, "%s", what)
}

// messages returns what was logged for the output of instances.
func (b *bench) messages(stream string) []string {
	var lines []string
	for _, e := range b.logs.FilterField(zap.String("stream", stream)).All() {
		lines = append(lines, e.Message)
	}
	return lines
}

// self returns a backend whose instances play a role of this test binary.
func self(t *testing.T, role string, args ...string) *Backend {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &Backend{Command: path, Args: append([]string{"child", role}, args...)}
}

// shell returns a backend that runs a script.
func shell(script string) *Backend {
	return &Backend{Command: "/bin/sh", Args: []string{"-c", script}}
}

// readEventually returns the content of a file once it ends with a newline.
func readEventually(t *testing.T, path string) string {
	t.Helper()
	var text []byte
	eventually(t, path+" to be written", func() bool {
		var err error
		text, err = os.ReadFile(path)
		return err == nil && strings.HasSuffix(string(text), "\n")
	})
	return strings.TrimSuffix(string(text), "\n")
}

func pidIn(t *testing.T, path string) int {
	t.Helper()
	var pid int
	if _, err := fmt.Sscan(readEventually(t, path), &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

// records lists the instances that have a record.
func records(t *testing.T, dataDir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dataDir, "process", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// firstID returns the id of the first instance that was ever reported.
func (b *bench) firstID() string {
	b.t.Helper()
	for _, r := range b.history() {
		for _, in := range r.Instances {
			return in.ID
		}
	}
	b.t.Fatal("no instance was ever reported")
	return ""
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}

// quiet is a logger for what a test does not look at.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

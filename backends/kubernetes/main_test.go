package kubernetes

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/goleak"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/test/harness"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for something that should happen soon.
const patience = 10 * time.Second

// bench is a runner with its surroundings.
type bench struct {
	t      *testing.T
	server *apiServer
	scaler scaler.Scaler
	runner *runner // the same, but for Jobs
	logs   *observer.ObservedLogs
	config string

	mu      sync.Mutex
	reports []scaler.Report
	changed chan struct{}
	closed  bool
}

// byDefault stands for no kubeconfig of the service's own.
const byDefault = "default"

// options of a bench.
type options struct {
	backend  Backend
	service  string
	revision string
	dataDir  string
	cluster  string
}

// openOn opens a backend on the server.
func openOn(t *testing.T, s *apiServer, resource string, change ...func(*options)) *bench {
	t.Helper()
	o := options{backend: Backend{Resource: resource}, service: "web", revision: "r1", dataDir: "/data"}
	for _, f := range change {
		f(&o)
	}
	switch o.backend.Kubeconfig {
	case "":
		o.backend.Kubeconfig = s.kubeconfig()
	case byDefault:
		o.backend.Kubeconfig = ""
	}
	b := &o.backend
	if err := b.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zapcore.DebugLevel)
	bn := &bench{t: t, server: s, logs: logs, config: b.Kubeconfig, changed: make(chan struct{}, 1)}
	sc, err := b.Open(scaler.Env{
		Service: o.service, Revision: o.revision, Logger: func() *slog.Logger { return slog.New(zapslog.NewHandler(core)) }, Report: bn.report,
		Host: &scaler.Host{DataDir: o.dataDir, Cluster: func() string { return o.cluster }},
	})
	if err != nil {
		t.Fatal(err)
	}
	bn.scaler = sc
	bn.runner, _ = sc.(*runner)
	t.Cleanup(bn.close)
	return bn
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

func (b *bench) close() {
	b.t.Helper()
	b.mu.Lock()
	closed := b.closed
	b.closed = true
	b.mu.Unlock()
	if closed {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.scaler.Close(ctx, time.Second); err != nil {
		b.t.Errorf("close: %v", err)
	}
}

// history returns all reports.
func (b *bench) history() []scaler.Report {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.reports)
}

// await waits for a report, old or new, from the mark on that is as wanted.
func (b *bench) await(what string, is func(scaler.Report) bool) scaler.Report {
	b.t.Helper()
	deadline := time.After(patience)
	for seen := 0; ; {
		all := b.history()
		for _, r := range all[seen:] {
			if is(r) {
				return r
			}
		}
		seen = len(all)
		select {
		case <-b.changed:
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			last := scaler.Report{}
			if len(all) > 0 {
				last = all[len(all)-1]
			}
			b.t.Fatalf("waited in vain for: %s; last report %+v, trouble %v, hold %+v", what, last, last.Trouble, last.Hold)
		}
	}
}

// settled waits until the latest report is as wanted.
func (b *bench) settled(what string, is func(scaler.Report) bool) scaler.Report {
	b.t.Helper()
	var last scaler.Report
	deadline := time.Now().Add(patience)
	for {
		if all := b.history(); len(all) > 0 {
			if last = all[len(all)-1]; is(last) {
				return last
			}
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("waited in vain for: %s; last report %+v, trouble %v, hold %+v\ncalls %v", what, last, last.Trouble, last.Hold, b.server.made(""))
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// passed waits for such a report, which others may have followed: that an instance
// has ended is told once.
func (b *bench) passed(what string, is func(scaler.Report) bool) (rep scaler.Report) {
	b.t.Helper()
	eventually(b.t, what, func() bool {
		all := b.history()
		k := slices.IndexFunc(all, is)
		if k >= 0 {
			rep = all[k]
		}
		return k >= 0
	})
	return rep
}

// has waits until so many instances are told of that do not stop, and so many
// are worked towards.
func (b *bench) has(instances, desired int) scaler.Report {
	b.t.Helper()
	return b.settled("instances", func(r scaler.Report) bool {
		return len(alive(r)) == instances && r.Desired == desired
	})
}

// alive returns the instances that neither stop nor have ended.
func alive(r scaler.Report) []scaler.Instance {
	return slices.DeleteFunc(slices.Clone(r.Instances), func(in scaler.Instance) bool {
		return in.Phase == scaler.PhaseStopping || in.Phase == scaler.PhaseEnded
	})
}

// idOf returns the id of a pod's instance.
func idOf(t *testing.T, r scaler.Report, pod string) string {
	t.Helper()
	for _, in := range alive(r) {
		if strings.HasPrefix(in.ID, pod+".") {
			return in.ID
		}
	}
	t.Fatalf("no instance of %s in %+v", pod, r)
	return ""
}

func (b *bench) order(n int, stop ...string) error {
	return b.scaler.Scale(b.t.Context(), scaler.Order{Instances: n, Stop: stop, StopTimeout: time.Second})
}

// scale gives an order that must succeed.
func (b *bench) scale(n int, stop ...string) {
	b.t.Helper()
	if err := b.order(n, stop...); err != nil {
		b.t.Fatalf("scale to %d: %v", n, err)
	}
}

// eventually polls for something that no report tells.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	harness.Eventually(t, patience, is, "%s", what)
}

// wrap makes an object what the client makes of it.
func wrap(o object) *unstructured.Unstructured { return &unstructured.Unstructured{Object: o} }

// quiet is a logger for what a test does not look at.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

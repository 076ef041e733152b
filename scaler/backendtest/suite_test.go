package backendtest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/caddy-usher/usher/scaler"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeSubject is a Subject of a Fake.
func fakeSubject(f *Fake) Subject {
	f.Name, f.Place = "fake", func(id string) (string, string, func()) { return "unix", "/run/" + id, nil }
	return Subject{
		Backend: f, Same: &Fake{Name: "fake"}, Other: &Fake{Name: "other"}, Secrets: []string{"hunter2"},
		Broken:  &Fake{Fail: &scaler.Failure{Reason: scaler.ReasonNotFound, Short: "not there", Detail: "hunter2"}},
		Running: func() int { return len(f.IDs()) },
		Kill:    func(id string) { f.End(id, Exit("exit status 1")) }, Complete: f.Complete, Ready: f.Ready,
		Hang: func() func() {
			gate := make(chan struct{})
			f.Set(func() { f.Gate = gate })
			return sync.OnceFunc(func() { close(gate) })
		},
		Cut: func() func() {
			away := &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "no connection"}
			f.Do(func() { f.Trouble, f.Fail = away, away })
			return func() { f.Do(func() { f.Trouble, f.Fail = nil, nil }) }
		},
	}
}

func TestTheFakeKeepsTheContract(t *testing.T) {
	for name, traits := range map[string]scaler.Traits{"owned": {Owned: true}, "remote": {}} {
		t.Run(name, func(t *testing.T) {
			Run(t, func(*testing.T) Subject {
				return fakeSubject(&Fake{Traits: traits, StartTime: time.Millisecond, StopTime: time.Millisecond, Lag: 0})
			})
		})
	}
}

func TestALateFakeKeepsTheContract(t *testing.T) {
	Run(t, func(*testing.T) Subject {
		return fakeSubject(&Fake{StartTime: -1, Lag: 2 * time.Millisecond, StopTime: time.Millisecond})
	})
}

type (
	orderFunc = func(context.Context, scaler.Order) error
	scaleFunc = func(context.Context, scaler.Order, orderFunc) error
)

// faulty is a backend with a fault: wrap changes what an honest one does.
type faulty struct {
	*Fake
	report func(scaler.Report, func(scaler.Report)) // in place of delivering it
	scale  scaleFunc
	close  func(func() error) error
	shown  any
	prints string
}

func (f *faulty) Open(env scaler.Env) (scaler.Scaler, error) {
	if f.report != nil {
		deliver := env.Report
		env.Report = func(r scaler.Report) { f.report(r, deliver) }
	}
	s, err := f.Fake.Open(env)
	return &faultyScaler{s.(*Workload), f}, err
}

func (f *faulty) Redacted() any {
	if f.shown != nil {
		return f.shown
	}
	return f.Fake.Redacted()
}

func (f *faulty) Fingerprint() string {
	if f.prints != "" {
		return f.prints
	}
	return f.Fake.Fingerprint()
}

type faultyScaler struct {
	*Workload
	f *faulty
}

func (s *faultyScaler) Scale(ctx context.Context, o scaler.Order) error {
	if s.f.scale != nil {
		return s.f.scale(ctx, o, s.Workload.Scale)
	}
	return s.Workload.Scale(ctx, o)
}

func (s *faultyScaler) Close(ctx context.Context, stop time.Duration) error {
	honest := func() error { return s.Workload.Close(ctx, stop) }
	if s.f.close != nil {
		return s.f.close(honest)
	}
	return honest()
}

// probe is the testing.TB of a check that is expected to fail.
type probe struct {
	testing.TB
	mu       sync.Mutex
	failures []string
	cleanups []func()
}

func (p *probe) Helper() {}

func (p *probe) Error(args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures = append(p.failures, fmt.Sprint(args...))
}
func (p *probe) Errorf(format string, args ...any) { p.Error(fmt.Sprintf(format, args...)) }
func (p *probe) Fatal(args ...any)                 { p.Error(args...); runtime.Goexit() }
func (p *probe) Fatalf(format string, args ...any) { p.Errorf(format, args...); runtime.Goexit() }
func (p *probe) Skip(...any)                       { runtime.Goexit() }
func (p *probe) Cleanup(f func())                  { p.cleanups = append(p.cleanups, f) }

// failuresOf runs the whole suite and returns what it finds.
func failuresOf(t *testing.T, subject func() Subject) string {
	t.Helper()
	var all []string
	for _, c := range checks {
		p := &probe{TB: t}
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer func() {
				for _, f := range slices.Backward(p.cleanups) {
					f()
				}
			}()
			s := subject()
			s.Patience = 400 * time.Millisecond
			c.run(p, s.complete(p))
		}()
		<-done
		all = append(all, p.failures...)
	}
	return strings.Join(all, "\n")
}

// Each fault breaks one promise, and the suite names it.
func TestTheSuiteFindsWhatABackendDoesWrong(t *testing.T) {
	owned := scaler.Traits{Owned: true}
	for name, c := range map[string]struct {
		fault faulty
		want  string
	}{
		"an id with a slash": {faulty{report: func(r scaler.Report, deliver func(scaler.Report)) {
			for k := range r.Instances {
				r.Instances[k].ID = "a/" + r.Instances[k].ID
			}
			deliver(r)
		}}, "is not URL-safe"},
		"the same id for all": {faulty{report: func(r scaler.Report, deliver func(scaler.Report)) {
			for k := range r.Instances {
				r.Instances[k].ID = "one"
			}
			deliver(r)
		}}, "is in one report twice"},
		"an order that adds": {faulty{scale: func() scaleFunc {
			total := 0
			return func(ctx context.Context, o scaler.Order, honest orderFunc) error {
				total += o.Instances
				o.Instances = total
				return honest(ctx, o)
			}
		}()}, "the report has to be delivered before Scale returns"},
		"an unknown id is an error": {faulty{scale: func(ctx context.Context, o scaler.Order, honest orderFunc) error {
			if slices.Contains(o.Stop, "no-such-instance") {
				return &scaler.Failure{Reason: scaler.ReasonNotFound, Short: "unknown"}
			}
			return honest(ctx, o)
		}}, "stopping [no-such-instance]: unknown"},
		"an error that is no failure": {faulty{scale: func(context.Context, scaler.Order, orderFunc) error {
			return errors.New("no")
		}}, "it is a *scaler.Failure"},
		"an order that heeds no context": {faulty{scale: func(_ context.Context, o scaler.Order, honest orderFunc) error {
			return honest(context.Background(), o)
		}}, "Scale with a context that ends soon does not return"},
		"a secret is shown":            {faulty{shown: "hunter2"}, "shows the secret"},
		"a secret in the short text":   {faulty{scale: failWith("hunter2")}, "shows a secret to clients"},
		"a reason that is not listed":  {faulty{scale: failWithReason("bad_day")}, "which is not in the list"},
		"fingerprints by chance":       {faulty{prints: "chance"}, "equal configurations have the fingerprints"},
		"instances that outlive Close": {faulty{close: func(func() error) error { return nil }, Fake: &Fake{Traits: owned}}, "after Close 2 of them run"},
		"two reports at once": {faulty{report: func(r scaler.Report, deliver func(scaler.Report)) {
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() { deliver(r) })
			}
			wg.Wait()
		}}, "two reports are delivered at the same time"},
		"a list that is used again": {faulty{report: func(r scaler.Report, deliver func(scaler.Report)) {
			deliver(r)
			for k := range r.Instances {
				r.Instances[k].Address = "elsewhere"
			}
		}}, "a report was changed after it was delivered"},
		"an end without a word": {faulty{report: func(r scaler.Report, deliver func(scaler.Report)) {
			r.Instances = slices.DeleteFunc(slices.Clone(r.Instances), func(i scaler.Instance) bool { return i.Phase == scaler.PhaseEnded })
			deliver(r)
		}}, "without having been reported with PhaseEnded"},
		"an end again and again": {faulty{report: func() func(scaler.Report, func(scaler.Report)) {
			var ended []scaler.Instance
			return func(r scaler.Report, deliver func(scaler.Report)) {
				again := slices.Concat(ended, r.Instances)
				for _, i := range r.Instances {
					if i.Phase == scaler.PhaseEnded {
						ended = append(ended, i)
					}
				}
				r.Instances = again
				deliver(r)
			}
		}()}, "comes again after it was gone"},
		"another one is stopped": {faulty{scale: func() scaleFunc {
			return func(ctx context.Context, o scaler.Order, honest orderFunc) error {
				if len(o.Stop) == 2 {
					o.Stop[1] = "r1-3"
				}
				return honest(ctx, o)
			}
		}(), Fake: &Fake{Traits: owned}}, "were to be stopped"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := failuresOf(t, func() Subject {
				honest := &Fake{}
				if c.fault.Fake != nil {
					honest.Traits = c.fault.Traits
				}
				s := fakeSubject(honest)
				fault := c.fault
				fault.Fake = honest
				s.Backend = &fault
				return s
			})
			if !strings.Contains(got, c.want) {
				t.Errorf("the suite does not say %q:\n%s", c.want, got)
			}
		})
	}
}

func failWith(short string) scaleFunc {
	return func(context.Context, scaler.Order, orderFunc) error {
		return &scaler.Failure{Reason: scaler.ReasonQuota, Short: short}
	}
}

func failWithReason(reason scaler.Reason) scaleFunc {
	return func(context.Context, scaler.Order, orderFunc) error {
		return &scaler.Failure{Reason: reason, Short: "no"}
	}
}

func TestTheSuiteFindsABackendThatReportsAfterClose(t *testing.T) {
	t.Parallel()
	late := func() Subject {
		honest := &Fake{}
		s := fakeSubject(honest)
		var env scaler.Env
		s.Backend = &faulty{
			Fake:   honest,
			report: func(r scaler.Report, deliver func(scaler.Report)) { env.Report = deliver; deliver(r) },
			scale: func(ctx context.Context, o scaler.Order, honest orderFunc) error {
				err := honest(ctx, o)
				if err != nil {
					env.Report(scaler.Report{})
				}
				return err
			},
		}
		return s
	}
	if got := failuresOf(t, late); !strings.Contains(got, "a report comes after Close has returned") {
		t.Errorf("%s", got)
	}
}

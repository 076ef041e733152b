package backendtest

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// Subject is a backend under test, with the platform below it. Each check of
// the suite gets one of its own. A field that is nil or zero stands for what
// the platform cannot do: the checks that need it are skipped.
type Subject struct {
	// Backend is provisioned and not open. Its platform has no instance of it.
	// Required.
	Backend scaler.Backend

	// Same is another backend with an equal configuration, and Other one that
	// makes other instances. Both are provisioned.
	Same, Other scaler.Backend

	// Broken is a backend whose first start cannot succeed, because of its
	// configuration or of what the platform lacks.
	Broken scaler.Backend

	// Secrets are texts in the configuration that must not be shown.
	Secrets []string

	// Host is the machine. Default: a temporary data directory, and no ports.
	Host *scaler.Host

	// Running returns how many instances the platform really has, those that
	// stop not counted. Required.
	Running func() int

	// Kill ends an instance, and nothing has asked for it.
	Kill func(id string)

	// Complete ends an instance that has done its work.
	Complete func(id string)

	// Ready makes the platform's own check of an instance pass.
	Ready func(id string)

	// Cut makes the platform unreachable until restore is called.
	Cut func() (restore func())

	// Hang makes the platform accept calls and answer none until release is
	// called.
	Hang func() (release func())

	// Patience is how long the suite waits for anything. Default: 20 s.
	Patience time.Duration
}

// Run runs the suite. It calls subject for each check; what it sets up is to
// be cleaned up with t.Cleanup.
func Run(t *testing.T, subject func(t *testing.T) Subject) {
	t.Helper()
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) { c.run(t, subject(t).complete(t)) })
	}
}

// complete returns s with its defaults filled in.
func (s Subject) complete(t testing.TB) Subject {
	t.Helper()
	if s.Backend == nil || s.Running == nil {
		t.Fatal("a Subject needs Backend and Running")
	}
	if s.Patience == 0 {
		s.Patience = 20 * time.Second
	}
	if s.Host == nil {
		s.Host = &scaler.Host{DataDir: t.TempDir(), Local: func() scaler.LocalOptions { return scaler.LocalOptions{} }}
	}
	return s
}

// check is one promise of the contract.
type check struct {
	name string
	run  func(t testing.TB, s Subject)
}

var checks = []check{
	{"the first report comes by itself and Open starts nothing", checkOpen},
	{"equal configurations have equal fingerprints", checkFingerprint},
	{"the redacted configuration shows no secret", checkRedacted},
	{"an order is absolute and the same order again changes nothing", checkOrder},
	{"the instances to stop are those that are named", checkStop},
	{"an unknown id to stop is no error", checkUnknown},
	{"an id is never used again", checkIDs},
	{"an instance gets an address", checkAddress},
	{"the platform says when an instance is ready", checkReady},
	{"an end that nothing asked for is reported once", checkKill},
	{"a completed instance is no failure", checkComplete},
	{"Close ends what it says and no report follows", checkClose},
	{"Close returns when its context ends", checkCloseInTime},
	{"Close ends an order on its way", checkCloseInOrder},
	{"Scale honours its context", checkContext},
	{"Scale honours its context while the platform is silent", checkHang},
	{"an unreachable platform is reported and its last list holds", checkCut},
	{"a start that fails says why and shows no secret", checkBroken},
	{"a backend that makes the same instances is taken over", checkUpdate},
	{"calls at the same time are safe", checkConcurrent},
}

// stopTimeout is what the orders of the suite give an instance to stop.
const stopTimeout = 2 * time.Second

// subject is an opened backend.
type subject struct {
	Subject
	*watch
	t      testing.TB
	scaler scaler.Scaler
	traits scaler.Traits
}

// open opens the backend, waits for its first report, and closes it at the end
// of the check.
func (s Subject) open(t testing.TB) *subject {
	t.Helper()
	o := s.prepare(t)
	began := time.Now()
	sc, err := s.Backend.Open(o.env())
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	if took := time.Since(began); took > s.quickly() {
		t.Errorf("Open took %v: it has to return without waiting for the platform", took)
	}
	o.opened(sc)
	t.Cleanup(o.close)
	o.await("a first report", func(scaler.Report) bool { return true })
	return o
}

// quickly is the most that a call may take which waits for nothing, on a
// machine that is busy with other tests.
func (s Subject) quickly() time.Duration { return s.Patience / 4 }

// inTime calls what has to return quickly. If it does not, release is called,
// and it is waited for.
func (s Subject) inTime(t testing.TB, what string, release func(), call func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		call()
	}()
	limit := time.NewTimer(s.quickly())
	defer limit.Stop()
	select {
	case <-done:
		return
	case <-limit.C:
	}
	t.Errorf("%s does not return within %v", what, s.quickly())
	if release != nil {
		release()
	}
	<-done
}

func (s Subject) prepare(t testing.TB) *subject {
	t.Helper()
	o := &subject{Subject: s, t: t, watch: newWatch(t, s.Secrets, s.Patience)}
	t.Cleanup(o.watch.verify)
	return o
}

func (s *subject) opened(sc scaler.Scaler) {
	s.scaler = sc
	s.traits = sc.Traits()
	s.watch.owns(s.traits.Owned)
}

func (s *subject) env() scaler.Env {
	return scaler.Env{Service: "web", Revision: "r1", Logger: quiet, Host: s.Host, Report: s.watch.report}
}

func (s *subject) close() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.Patience)
	defer cancel()
	if err := s.scaler.Close(ctx, stopTimeout); err != nil {
		s.t.Errorf("Close: %v", err)
	}
	s.watch.closed()
}

// order gives an order, and looks at the error.
func (s *subject) order(ctx context.Context, n int, stop ...string) error {
	s.t.Helper()
	err := s.scaler.Scale(ctx, scaler.Order{Instances: n, Stop: slices.Clone(stop), StopTimeout: stopTimeout})
	if err != nil {
		s.watch.checkError(err)
	}
	return err
}

// scale gives an order that must succeed. A report that reflects it must be
// there when it returns.
func (s *subject) scale(n int, stop ...string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), s.Patience)
	defer cancel()
	err := s.order(ctx, n, stop...)
	for errors.Is(err, scaler.ErrLater) && pause(ctx) {
		// The platform has to come to rest: the same again.
		err = s.order(ctx, n, stop...)
	}
	if err != nil {
		s.t.Fatalf("Scale to %d, stopping %v: %v", n, stop, err)
	}
	r, ok := s.latest()
	if !ok || r.Desired != n {
		s.t.Errorf("after the accepted order of %d the report says that the platform works towards %d: the report has to be delivered before Scale returns", n, r.Desired)
	}
	if got := len(living(r)); s.traits.Owned && got != n {
		s.t.Errorf("after the accepted order of %d the report has %d instances: %+v", n, got, r.Instances)
	}
}

// has waits until there are n instances, for the report and for the platform,
// and none that stops. It returns their ids.
func (s *subject) has(n int) []string {
	s.t.Helper()
	r := s.await("so many instances", func(r scaler.Report) bool {
		stopping := slices.ContainsFunc(r.Instances, func(i scaler.Instance) bool { return i.Phase == scaler.PhaseStopping })
		return r.Desired == n && len(living(r)) == n && !stopping && s.Running() == n
	}, n)
	return idsOf(living(r))
}

// ready makes the platform's own check of instances pass, if it has one: it may
// want to come to rest before it stops any.
func (s *subject) ready(ids ...string) {
	s.t.Helper()
	if s.Ready == nil {
		return
	}
	for _, id := range ids {
		s.Ready(id)
		s.await("readiness by the platform's word", func(r scaler.Report) bool {
			return slices.ContainsFunc(r.Instances, func(i scaler.Instance) bool {
				return i.ID == id && i.Phase == scaler.PhaseReady && !i.Unhealthy
			})
		})
	}
}

// victims returns n of the instances that may be stopped: any, or those of the
// highest rank where the platform insists on it.
func (s *subject) victims(n int) []string {
	r, _ := s.latest()
	all := living(r)
	sortByStopRank(all)
	return idsOf(all[:n])
}

func encode(t testing.TB, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("what Redacted returns does not encode to JSON: %v", err)
	}
	return string(text)
}

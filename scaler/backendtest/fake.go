package backendtest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// Fake is a backend whose platform is in memory and does what the test says.
// It works in the bubble of testing/synctest, too: all time is that of the
// package time, and it has no goroutine of its own.
//
// The fields may be set before Open. Later they are changed by Set or Do only.
// It reports with its lock held, as backends may.
type Fake struct {
	// Name is the fingerprint. Default: each Fake has one of its own.
	Name string
	// Traits are those of the platform.
	Traits scaler.Traits
	// OpenErr fails Open.
	OpenErr error
	// Silent keeps Open from reporting.
	Silent bool
	// Present is how many instances run already when it is opened. If Age is
	// set, an earlier Caddy started them so long ago; WasReady says whether they
	// were ready there.
	Present  int
	Age      time.Duration
	WasReady bool
	// OneWorkload lets all Scalers have the same instances, as those of a
	// Deployment have them. Closing one ends none of them.
	OneWorkload bool

	// Place says where an instance is. It may start a server there; stop is
	// called when the instance is gone, without the lock, in a goroutine of its
	// own. Default: a socket that does not exist.
	Place func(id string) (network, address string, stop func())
	// Manual leaves the start of what is ordered to Fill.
	Manual bool
	// StartTime is the time from existence to PhaseReady; negative is never.
	StartTime time.Duration
	// NextStart, if set, says in place of StartTime how long the next start
	// takes.
	NextStart func() time.Duration
	// Lag is the time from an accepted order to the instances.
	Lag time.Duration
	// Lifetime is the time from existence to the end; 0 is for ever. The end
	// is a failure, unless Completes is set.
	Lifetime  time.Duration
	Completes bool
	// StopTime is the time from the order to stop to the end.
	StopTime time.Duration
	// Slots is the Instance.Slots of new instances.
	Slots int
	// Born, if set, changes what is reported of a new instance, of which number
	// says how many there were until now. It is called with the lock held.
	Born func(i *scaler.Instance, number int)

	// Fail fails every order, and FailStop those that stop an instance.
	Fail, FailStop error
	// Gate keeps every order until it is closed or the order's context ends.
	// With Deaf the end of the context does not matter.
	Gate chan struct{}
	Deaf bool
	// Meanwhile, if set, is called once, with the lock held, when the next
	// order has been carried out and before its Scale returns.
	Meanwhile func()
	// Trouble, Hold and Remains are in each report.
	Trouble *scaler.Failure
	Hold    *scaler.Hold
	Remains int

	mu     sync.Mutex
	newest *Workload
	opened int
	closed int
	made   int
	most   int
	orders []scaler.Order
}

// Fingerprint implements scaler.Backend.
func (f *Fake) Fingerprint() string { return cmp.Or(f.Name, fmt.Sprintf("%p", f)) }

// Redacted implements scaler.Backend.
func (f *Fake) Redacted() any { return map[string]string{"name": f.Name} }

// Open implements scaler.Backend.
func (f *Fake) Open(env scaler.Env) (scaler.Scaler, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.OpenErr != nil {
		return nil, f.OpenErr
	}
	if s := f.newest; s != nil && f.OneWorkload {
		s.env = env
		f.opened++
		s.tell()
		return s, nil
	}
	s := &Workload{Fake: f, env: env, Want: f.Present, instances: make(map[string]*fakeInstance), ended: make(chan struct{})}
	f.newest = s
	f.opened++
	for range f.Present {
		s.Start()
	}
	for _, i := range s.instances {
		if f.Age > 0 {
			i.Adopted, i.WasReady, i.Since = true, f.WasReady, i.Since.Add(-f.Age)
		}
	}
	if !f.Silent {
		s.tell()
	}
	return s, nil
}

// Exit is the failure of an instance that ended by itself.
func Exit(short string) *scaler.Failure {
	return &scaler.Failure{Reason: scaler.ReasonExit, Short: short}
}

// Set changes fields without a report.
func (f *Fake) Set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// Do changes fields, and reports.
func (f *Fake) Do(change func()) {
	f.Set(func() {
		change()
		if f.newest != nil {
			f.newest.tell()
		}
	})
}

// on calls what changes the newest Scaler, with the lock held.
func (f *Fake) on(change func(*Workload)) {
	f.Set(func() {
		if f.newest != nil && !f.newest.over {
			change(f.newest)
		}
	})
}

// Workload returns what the newest Scaler runs; nil before the first. It is for
// functions that are called with the lock held.
func (f *Fake) Workload() *Workload { return f.newest }

// Fill starts what is ordered and was left to the test.
func (f *Fake) Fill() { f.on(func(s *Workload) { s.Fill(); s.tell() }) }

// Ready makes an instance ready by the platform's word.
func (f *Fake) Ready(id string) {
	f.Instance(id, func(i *scaler.Instance) { i.Phase = scaler.PhaseReady })
}

// Instance changes what is reported of an instance, unless it stops.
func (f *Fake) Instance(id string, change func(*scaler.Instance)) {
	f.on(func(s *Workload) {
		if i := s.instances[id]; i != nil && i.Phase != scaler.PhaseStopping {
			change(&i.Instance)
			s.tell()
		}
	})
}

// End ends an instance that was not asked to.
func (f *Fake) End(id string, why *scaler.Failure) {
	f.on(func(s *Workload) { s.End(id, why); s.tell() })
}

// Complete ends an instance that has done its work.
func (f *Fake) Complete(id string) { f.on(func(s *Workload) { s.end(id, nil, true); s.tell() }) }

// IDs returns the instances of the newest Scaler that do not stop, the oldest
// first.
func (f *Fake) IDs() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	if f.newest != nil {
		for id, i := range f.newest.instances {
			if i.Phase != scaler.PhaseStopping {
				ids = append(ids, id)
			}
		}
	}
	slices.SortFunc(ids, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
	return ids
}

// Orders returns the orders so far.
func (f *Fake) Orders() []scaler.Order {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.orders)
}

// Started returns how many instances were ever started.
func (f *Fake) Started() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.made
}

// Most returns the most instances that one report had, those that stop not
// counted.
func (f *Fake) Most() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.most
}

// Opened returns how many Scalers were opened.
func (f *Fake) Opened() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.opened
}

// Closed returns how many Scalers were closed.
func (f *Fake) Closed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

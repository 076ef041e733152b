package backendtest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// Workload is a Scaler that a Fake has opened, with its instances. Its fields
// and methods below Close are for functions that the Fake calls with its lock
// held: those given to Set and Do, Born and Meanwhile.
type Workload struct {
	*Fake
	// Want is the number that the platform works towards.
	Want int

	env       scaler.Env
	instances map[string]*fakeInstance
	over      bool
	ended     chan struct{} // closed by Close
}

type fakeInstance struct {
	scaler.Instance
	number int
	stop   func()
}

// Traits implements scaler.Scaler.
func (s *Workload) Traits() scaler.Traits {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Fake.Traits
}

// Scale implements scaler.Scaler.
func (s *Workload) Scale(ctx context.Context, o scaler.Order) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders = append(s.orders, o)
	if gate := s.Gate; gate != nil {
		done := ctx.Done()
		if s.Deaf {
			done = nil
		}
		s.mu.Unlock()
		var err error
		select {
		case <-gate:
		case <-s.ended:
		case <-done:
			err = ctx.Err()
		}
		s.mu.Lock()
		if err != nil {
			return err
		}
	}
	switch {
	case s.over:
		return &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "the backend is closed"}
	case s.Fail != nil:
		return s.Fail
	case s.FailStop != nil && len(o.Stop) > 0:
		return s.FailStop
	}
	for _, id := range o.Stop {
		s.Stop(id)
	}
	s.Want = o.Instances
	switch {
	case s.Manual:
	case s.Lag > 0:
		time.AfterFunc(s.Lag, func() { s.change(s.Fill) })
	default:
		s.Fill()
	}
	s.tell()
	if f := s.Meanwhile; f != nil {
		s.Meanwhile = nil
		f()
		s.tell()
	}
	return nil
}

// Close implements scaler.Scaler.
func (s *Workload) Close(context.Context, time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil
	}
	if s.OneWorkload {
		s.closed++
		return nil
	}
	if s.Fake.Traits.Owned {
		for id := range s.instances {
			s.Remove(id)
		}
		s.Want = 0
		s.tell()
	}
	s.over = true
	close(s.ended)
	s.closed++
	return nil
}

// tell reports. The lock is held.
func (s *Workload) tell(ended ...scaler.Instance) {
	if s.over {
		return
	}
	rep := scaler.Report{Instances: ended, Trouble: s.Trouble, Desired: s.Want, Hold: s.Hold, Remains: s.Remains}
	all := slices.Collect(maps.Values(s.instances))
	slices.SortFunc(all, func(a, b *fakeInstance) int { return cmp.Compare(a.number, b.number) })
	for _, i := range all {
		rep.Instances = append(rep.Instances, i.Instance)
	}
	living := s.Living()
	s.most = max(s.most, living)
	if s.Fake.Traits.Owned {
		rep.Desired = living
		if s.Manual {
			rep.Desired = max(living, s.Want)
		}
	}
	s.env.Report(rep)
}

// Living returns how many instances there are that do not stop.
func (s *Workload) Living() int {
	if s == nil {
		return 0
	}
	n := 0
	for _, i := range s.instances {
		if i.Phase != scaler.PhaseStopping {
			n++
		}
	}
	return n
}

// Fill starts what is missing of Want.
func (s *Workload) Fill() {
	for !s.over && s.Living() < s.Want {
		s.Start()
	}
}

// Start starts an instance that was not ordered, and returns its ID.
func (s *Workload) Start() string { return s.start(s.Place) }

// StartAt is Start, with a place that the test gives.
func (s *Workload) StartAt(network, address string, stop func()) string {
	return s.start(func(string) (string, string, func()) { return network, address, stop })
}

func (s *Workload) start(place func(id string) (network, address string, stop func())) string {
	s.made++
	id := fmt.Sprintf("%s-%d", s.env.Revision, s.made)
	i := &fakeInstance{number: s.made, Instance: scaler.Instance{
		ID: id, Network: "unix", Address: "/nonexistent/usher-" + id, Since: time.Now(), Slots: s.Slots,
	}}
	if place != nil {
		i.Network, i.Address, i.stop = place(id)
	}
	if s.Born != nil {
		s.Born(&i.Instance, s.made)
	}
	s.instances[id] = i
	took := s.StartTime
	if s.NextStart != nil {
		took = s.NextStart()
	}
	switch {
	case took == 0:
		i.Phase = scaler.PhaseReady
	case took > 0:
		time.AfterFunc(took, func() {
			s.change(func() {
				if i := s.instances[id]; i != nil && i.Phase != scaler.PhaseStopping {
					i.Phase = scaler.PhaseReady
				}
			})
		})
	}
	if s.Lifetime > 0 {
		time.AfterFunc(s.Lifetime, func() {
			s.change(func() {
				if s.Completes {
					s.end(id, nil, true)
				} else {
					s.end(id, Exit("exit status 1"), false)
				}
			})
		})
	}
	return id
}

// Stop makes an instance stop.
func (s *Workload) Stop(id string) {
	i := s.instances[id]
	if i == nil || i.Phase == scaler.PhaseStopping {
		return
	}
	if s.StopTime == 0 {
		s.Remove(id)
		return
	}
	i.Phase = scaler.PhaseStopping
	time.AfterFunc(s.StopTime, func() { s.change(func() { s.end(id, nil, false) }) })
}

// Remove lets an instance disappear.
func (s *Workload) Remove(id string) {
	if i := s.instances[id]; i != nil {
		delete(s.instances, id)
		if i.stop != nil {
			go i.stop()
		}
	}
}

// End ends an instance that was not asked to, and reports that.
func (s *Workload) End(id string, why *scaler.Failure) { s.end(id, why, false) }

// end ends an instance and reports that. The lock is held.
func (s *Workload) end(id string, f *scaler.Failure, completed bool) {
	i := s.instances[id]
	if i == nil {
		return
	}
	s.Remove(id)
	ended := i.Instance
	ended.Phase, ended.Failure, ended.Completed = scaler.PhaseEnded, f, completed
	if s.Want > 0 && i.Phase != scaler.PhaseStopping && s.Fake.Traits.Owned {
		s.Want--
	}
	s.tell(ended)
	if !s.Fake.Traits.Owned && !s.Manual {
		s.Fill()
	}
}

// change changes something and reports it, unless s is closed.
func (s *Workload) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		f()
		s.tell()
	}
}

// Instance returns an instance, to be changed; nil if there is none.
func (s *Workload) Instance(id string) *scaler.Instance {
	if s == nil || s.instances[id] == nil {
		return nil
	}
	return &s.instances[id].Instance
}

// IDs returns all instances, those that stop included, the oldest first.
func (s *Workload) IDs() []string {
	return slices.SortedFunc(maps.Keys(s.instances), func(a, b string) int { return cmp.Compare(s.instances[a].number, s.instances[b].number) })
}

// Orders returns the orders so far, of all Scalers.
func (s *Workload) Orders() []scaler.Order { return s.orders }

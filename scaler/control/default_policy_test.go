package control

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/policies"
)

// usual is the default policy with other options.
func usual(change func(*Settings)) Settings {
	return with(func(s *Settings) {
		s.Policy = policies.Default
		change(s)
	})
}

func TestTheDefaultPolicyKeepsWhatAnotherProgramAskedFor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{want: 3}
		b := newBench(t, usual(func(s *Settings) { s.Max = 5 }), p, nil)
		b.is(Awake)
		b.comesAndGoes()
		if time.Sleep(15 * time.Second); len(p.ordered()) != 0 {
			t.Fatalf("%v was ordered", p.ordered())
		}
		time.Sleep(3 * time.Minute)
		b.runs(1)
		p.foreign(4)
		b.runs(4)
		time.Sleep(15 * time.Second)
		b.runs(4)
		p.foreign(0)
		time.Sleep(time.Second)
		b.runs(0) // it is not needed, so it is not started again
	})
}

func TestTheDefaultPolicyKeepsAsManyAsTheServiceHasWhileAwake(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, usual(func(s *Settings) { s.Max, s.Awake = 5, 3 }), &platform{}, nil)
		b.comesAndGoes()
		b.runs(3)
		time.Sleep(4 * time.Minute)
		b.runs(3)
		time.Sleep(2 * time.Minute)
		b.runs(0)
	})
}

func TestTheDefaultPolicyStartsMoreForRequestsThatMayNotWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, usual(func(s *Settings) { s.Max, s.Concurrency = 3, 1 }), &platform{local: true}, nil, maxWaiting(0))
		_, _ = b.request()
		waitIdle()
		b.inside()
		if _, err := b.request(); err == nil {
			t.Fatal("there was no slot")
		}
		b.runs(2)
	})
}

func TestTheDefaultPolicyFinishesAStartWhoseRequestHasGone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, startTime: 20 * time.Second}
		b := newBench(t, usual(func(s *Settings) { s.IdleTimeout = 5 * time.Second }), p, nil)
		r := b.waits()
		waitIdle()
		r.Cancel()
		time.Sleep(21 * time.Second)
		b.is(Awake)
		time.Sleep(3 * time.Second)
		b.is(Awake) // the time counts from readiness on
		time.Sleep(2 * time.Second)
		b.is(Asleep)
	})
}

// hasty is a policy that keeps nothing.
type hasty struct{}

func (hasty) Target(in scaler.Inputs, _ scaler.Memory) (scaler.Advice, scaler.Memory) {
	a := scaler.Advice{Target: min(in.Demand, 1), Idle: in.Demand == 0, Reason: "hasty"}
	if in.Demand > 0 {
		a.Recheck = in.Now.Add(time.Second)
	}
	return a, nil
}
func (hasty) Window() time.Duration { return 0 }

func TestG16ASessionKeepsTheLastInstanceUntilTheIdleTimeoutWhateverThePolicy(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.Policy = hasty{} }), &platform{local: true}, nil, remembers)
		b.session().Release(reserver.Answered)
		time.Sleep(299 * time.Second)
		b.is(Awake)
		if why := b.Status().Outlook.Reason; why != "a session may go on: one stays until idle_timeout" {
			t.Errorf("the reason is %q", why)
		}
		time.Sleep(2 * time.Second)
		b.is(Asleep)
		b.inside().Release(reserver.Answered)
		time.Sleep(2 * time.Second)
		b.is(Asleep) // no session, no stay
	})
}

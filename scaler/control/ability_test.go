package control

import (
	"context"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// able is a platform that can more than it has to.
type able struct {
	*platform
	updated  []scaler.Backend
	refuses  bool
	restarts int
	hurries  int
}

func (a *able) Open(env scaler.Env) (scaler.Scaler, error) {
	if _, err := a.platform.Open(env); err != nil {
		return nil, err
	}
	return a, nil
}

// A Scaler may report whenever it likes.

func (a *able) Update(b scaler.Backend) bool {
	if a.refuses {
		return false
	}
	a.do(func() { a.updated = append(a.updated, b) })
	return true
}

func (a *able) Restart(context.Context) error {
	a.do(func() { a.restarts++ })
	return nil
}

func (a *able) SkipBackoff() { a.do(func() { a.hurries++ }) }

// other is a description of its own that shares nothing with a platform.
type other struct{ *platform }

func (o other) Fingerprint() string { return "another way to the same" }

func newAble(t *testing.T, s Settings) (*bench, *able) {
	t.Helper()
	a := &able{platform: &platform{}}
	b := bareBench(t, s, a.platform, nil)
	if err := b.SetBackend(a); err != nil {
		t.Fatal(err)
	}
	waitIdle()
	return b, a
}

func TestAnEqualBackendTakesThePlaceOfTheOneBefore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, a := newAble(t, defaults())
		next := &able{platform: a.platform}
		if err := b.SetBackend(next); err != nil || len(b.revisions) != 1 {
			t.Fatal(err, len(b.revisions))
		}
		if len(a.updated) != 1 || a.updated[0] != scaler.Backend(next) {
			t.Fatalf("updated with %v", a.updated)
		}
	})
}

func TestAnotherWayToTheSameInstancesIsNoNewRevision(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, a := newAble(t, defaults())
		b.comesAndGoes()
		next := other{&platform{}}
		if err := b.SetBackend(next); err != nil {
			t.Fatal(err)
		}
		b.is(Awake)
		if len(a.updated) != 1 || len(b.revisions) != 1 || len(b.Instances()) != 1 {
			t.Fatalf("%d updates, %d revisions", len(a.updated), len(b.revisions))
		}
		// It is the one in force now: the same again makes no revision, even if
		// the Scaler has no use for it.
		a.refuses = true
		if err := b.SetBackend(next); err != nil || len(a.updated) != 1 || len(b.revisions) != 1 {
			t.Fatalf("%v, %d updates, %d revisions", err, len(a.updated), len(b.revisions))
		}
		if err := b.SetBackend(&platform{}); err != nil || b.current().scaler == scaler.Scaler(a) {
			t.Fatalf("%v: what it does not take over is a revision of its own", err)
		}
	})
}

func TestAPlatformThatRestartsByItselfIsToldTo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, a := newAble(t, defaults())
		b.comesAndGoes()
		if err := b.Restart(); err != nil || a.restarts != 1 || len(b.revisions) != 1 {
			t.Fatalf("%v, %d restarts, %d revisions", err, a.restarts, len(b.revisions))
		}
	})
}

func TestAnOperatorsWakeHurriesThePlatform(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, a := newAble(t, defaults())
		b.Wake()
		b.is(Awake)
		if a.hurries != 1 {
			t.Fatalf("hurried %d times", a.hurries)
		}
	})
}

func TestAnInstanceThatThePlatformCallsUnhealthyGetsNothingNew(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, with(func(s *Settings) { s.Min = 1 }), p, nil)
		r := b.inside()
		id := p.ids()[0]
		p.do(func() { p.instance(id).Unhealthy = true })
		w := b.waits()
		time.Sleep(time.Second)
		p.do(func() { p.instance(id).Unhealthy = false })
		b.granted(w)
		if r.Instance() == nil || r.Instance().ID != id || w.Instance().ID != id {
			t.Fatalf("requests inside stay inside, and waiting ones get in\n%s", b.story())
		}
		// One that stays so is replaced in time.
		p.do(func() { p.instance(id).Unhealthy = true })
		time.Sleep(3 * time.Minute)
		b.runs(1)
		if p.ids()[0] == id {
			t.Fatal(b.story())
		}
	})
}

func TestAnInstanceThatIsNotCountedServesAndIsNotCountedOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, with(func(s *Settings) { s.Max = 3 }), p, nil)
		b.comesAndGoes()
		old := p.ids()[0]
		// The platform starts the next before it ends this one.
		p.do(func() {
			p.instance(old).Extra = true
			p.start()
			p.instance("r1-2").Phase = scaler.PhaseStarting
		})
		b.comesAndGoes()
		time.Sleep(30 * time.Second)
		if orders := p.ordered(); len(orders) != 1 {
			t.Fatalf("the platform goes about its own business, and was ordered to be %v\n%s", orders, b.story())
		}
		if s := b.res.Stats(); s.Open == 0 {
			t.Fatalf("it serves\n%s", b.story())
		}
		p.end(old, nil)
		b.comesAndGoes()
		time.Sleep(10 * time.Minute)
		b.is(Asleep)
		b.runs(0)
	})
}

func TestAnInstanceThatIsNotCountedCanBeStoppedByName(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, with(func(s *Settings) { s.Max = 3 }), p, nil)
		r := b.inside()
		id := p.ids()[0]
		p.do(func() { p.instance(id).Extra = true; p.want = 0 })
		if !b.StopInstance(id) {
			t.Fatal("it is not known")
		}
		r.Release(reserver.Answered)
		waitIdle()
		for _, i := range p.ids() {
			if i == id {
				t.Fatalf("it runs on\n%s", b.story())
			}
		}
	})
}

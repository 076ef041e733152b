package control

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

// drainsTwice returns a bench whose one instance drains with two requests
// inside, and can be taken back.
func drainsTwice(t *testing.T, b *bench) (first, second *reserver.Reservation) {
	t.Helper()
	first, second = b.inside(), b.inside()
	b.Sleep()
	waitIdle()
	if st := b.Status(); st.Draining != 1 {
		t.Fatalf("%+v\n%s", st, b.story())
	}
	return first, second
}

func TestAnEjectionDuringADrainIsSeenWhenTheDrainIsTakenBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.DrainTimeout = time.Hour }), &platform{local: true}, nil)
		first, second := drainsTwice(t, b)
		b.eject(first)
		if st := b.Status(); st.Draining != 1 {
			t.Fatalf("%+v\n%s", st, b.story())
		}
		w := b.waits()
		waitIdle()
		b.mu.Lock()
		i := b.current().instances["r1-1"]
		probed, since := i.probe != nil, i.unreadyFrom
		b.mu.Unlock()
		if st := b.Status(); st.Ejected != 1 || !probed || since.IsZero() {
			t.Fatalf("it is not probed: %+v\n%s", st, b.story())
		}
		// It never answers: it is replaced.
		second.Release(reserver.Neutral)
		b.granted(w)
		if w.Instance().ID == "r1-1" {
			t.Fatal("it came back without an answer to its probe")
		}
	})
}

func TestADoubtDuringADrainIsSeenWhenTheDrainIsTakenBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, v := doubtful(t, time.Millisecond)
		b.Apply(with(func(s *Settings) { s.DrainTimeout = time.Hour }))
		first, second := drainsTwice(t, b)
		asked := v.asked.Load()
		first.Release(reserver.Suspected)
		time.Sleep(time.Second)
		if v.asked.Load() != asked {
			t.Fatal("nothing is given to one that drains: there is no hurry")
		}
		b.Wake()
		time.Sleep(time.Second)
		waitIdle()
		if v.asked.Load() != asked+1 {
			t.Fatalf("asked %d times, not once\n%s", v.asked.Load()-asked, b.story())
		}
		second.Release(reserver.Answered)
		b.comesAndGoes()
	})
}

func TestAReadinessThatCameBackDuringADrainIsLookedForAfterIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, with(func(s *Settings) { s.DrainTimeout, s.Concurrency, s.Max = time.Hour, 1, 1 }), p, nil)
		r := b.inside()
		unhealthy := func(yes bool) { p.do(func() { p.instance("r1-1").Unhealthy = yes }) }
		b.Apply(with(func(s *Settings) { s.Check = Check{Kind: CheckTCP, Interval: time.Second}; s.DrainTimeout = time.Hour }))
		unhealthy(true)
		b.Sleep()
		unhealthy(false) // no probe: it drains
		b.waits()
		waitIdle()
		b.mu.Lock()
		i := b.current().instances["r1-1"]
		at, probed := i.stage, i.probe != nil
		b.mu.Unlock()
		if at != unready || !probed {
			t.Fatalf("it is %v, probed %v\n%s", at, probed, b.story())
		}
		r.Release(reserver.Answered)
	})
}

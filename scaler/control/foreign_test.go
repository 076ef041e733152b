package control

import (
	"slices"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

func TestWhatRunsAlreadyIsAdopted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{want: 3}
		b := newBench(t, with(func(s *Settings) { s.Max = 5 }), p, nil)
		b.is(Awake)
		b.comesAndGoes()
		if len(p.ordered()) != 0 {
			t.Fatalf("%v was ordered", p.ordered())
		}
		time.Sleep(70 * time.Second)
		b.runs(1) // by the window
		time.Sleep(5 * time.Minute)
		b.is(Asleep)
		if b.Status().ColdStarts != 0 {
			t.Fatal("what another program started was measured as a cold start")
		}
	})
}

func TestMoreByAnotherHandIsCapacityThatGoesDownByPolicy(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, with(func(s *Settings) { s.Max = 5 }), p, nil)
		b.comesAndGoes()
		time.Sleep(time.Minute)
		p.foreign(4)
		b.runs(4)
		time.Sleep(55 * time.Second)
		b.runs(4)
		if s := b.res.Stats(); s.Open != 4 {
			t.Fatalf("%d take requests", s.Open)
		}
		time.Sleep(10 * time.Second)
		b.runs(1)
	})
}

func TestMoreByAnotherHandDuringAnOrderIsCapacityToo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{startTime: time.Second}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 5, 1 }), p, nil)
		b.inside()
		p.do(func() { p.meanwhile = func() { p.want = 4; p.fill() } })
		b.inside()
		b.runs(4)
		if n := p.started(); n != 4 {
			t.Fatalf("%d starts: they were taken for surplus first", n)
		}
		time.Sleep(50 * time.Second)
		b.runs(4)
		time.Sleep(20 * time.Second)
		b.runs(2)
	})
}

func TestMoreThanMaxByAnotherHandIsTakenBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, with(func(s *Settings) { s.Max = 2 }), p, nil)
		b.comesAndGoes()
		p.foreign(6)
		b.runs(2)
	})
}

func TestFewerByAnotherHandIsPutRightWhileThereIsDemand(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 3, 1 }), p, nil)
		for range 3 {
			b.inside()
		}
		for range 3 {
			b.waits()
		}
		time.Sleep(20 * time.Second)
		p.foreign(1)
		time.Sleep(2 * time.Second) // a start may have to wait for the back-off
		b.runs(3)
	})
}

func TestFewerByAnotherHandIsWelcomeWithoutDemand(t *testing.T) {
	for name, stopTime := range map[string]time.Duration{"at once": 0, "while they still run": 5 * time.Second} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := &platform{stopTime: stopTime}
				b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 3, 1 }), p, nil)
				all := []*reserver.Reservation{b.inside(), b.inside(), b.inside()}
				time.Sleep(20 * time.Second)
				for _, r := range all {
					r.Release(reserver.Answered)
				}
				p.foreign(2)
				time.Sleep(10 * time.Second)
				b.runs(2) // by the window
				p.do(func() { p.want = 0 })
				waitIdle()
				p.foreign(0)
				time.Sleep(10 * time.Minute)
				if got := p.ordered(); slices.ContainsFunc(got[3:], func(n int) bool { return n > 0 }) {
					t.Fatalf("fought over: %v", got)
				}
				b.runs(0)
				b.is(Asleep)
			})
		})
	}
}

func TestAScaleDownByAnotherHandIsNotFoughtOverBeforeItShows(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, defaults(), p, nil)
		b.comesAndGoes()
		time.Sleep(time.Minute)
		// The number is changed first; the instance still runs.
		p.do(func() { p.want = 0 })
		waitIdle()
		if got := p.ordered(); !slices.Equal(got, []int{1, 0}) && !slices.Equal(got, []int{1}) {
			t.Fatalf("ordered %v", got)
		}
	})
}

func TestAnInstanceThatIsMissingFromTheListIsGone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, defaults(), p, nil)
		r := b.inside()
		var cause error
		r2 := &reserver.Reservation{Interrupter: reserver.InterruptFunc(func(_ *reserver.Instance, err error) { cause = err })}
		_, _ = b.res.Reserve(r2, reserver.Ask{})
		time.Sleep(time.Minute)
		p.do(func() { p.fake.Workload().Remove(p.all()[0]); p.want = 0 })
		waitIdle()
		if s := b.res.Stats(); s.InUse != 0 || s.Open != 0 {
			t.Fatalf("%+v", s)
		}
		time.Sleep(interruptAfter)
		if waitIdle(); cause != ErrGone {
			t.Fatalf("what hangs in it was interrupted with %v", cause)
		}
		r.Release(reserver.Neutral)
		r2.Release(reserver.Neutral)
	})
}

func TestAnInstanceThatSomebodyElseStopsGetsNothingMore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{stopTime: time.Minute}
		b := newBench(t, defaults(), p, nil)
		r := b.inside()
		id := p.ids()[0]
		p.foreign(0)
		waitIdle()
		if s := b.res.Stats(); s.Open != 0 {
			t.Fatal("an instance that stops takes requests")
		}
		if w := b.inside(); w.Instance().ID == id {
			t.Fatal("the wrong one")
		}
		r.Release(reserver.Answered)
		if b.rec.count("failed") != 0 {
			t.Fatal("a stop was counted as a failure")
		}
	})
}

func TestNothingIsOrderedBeforeItIsKnownWhatRuns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{want: 2, silent: true, startTime: -1}
		b := newBench(t, with(func(s *Settings) { s.Max = 3 }), p, nil)
		r := b.waits() // would be content with one
		waitIdle()
		if got := p.ordered(); len(got) != 0 {
			t.Fatalf("ordered %v, while two may run", got)
		}
		p.do(func() { // the first report
			for _, id := range p.all() {
				i := p.instance(id)
				i.Phase = scaler.PhaseReady
			}
		})
		b.granted(r)
		waitIdle()
		if got := p.ordered(); len(got) != 0 {
			t.Fatalf("ordered %v, though two run", got)
		}
		b.runs(2)
	})
}

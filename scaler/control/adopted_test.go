package control

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

// kept is a local platform at which n instances of an earlier Caddy run.
func kept(n int, startTime time.Duration) *platform {
	return &platform{local: true, want: n, startTime: startTime, ages: time.Hour}
}

func TestARequestWaitsForWhatIsAdoptedAndStartsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := kept(1, 100*time.Millisecond)
		b := bareBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 3, 1 }), p, nil)
		r := b.waits() // it was there before the backend
		if err := b.SetBackend(p); err != nil {
			t.Fatal(err)
		}
		b.granted(r)
		if len(p.ordered()) != 0 {
			t.Fatalf("%v was ordered", p.ordered())
		}
		if b.Status().ColdStarts != 0 {
			t.Fatal("it was measured as a cold start")
		}
		r.Release(reserver.Answered)
		time.Sleep(4 * time.Minute)
		b.runs(1)
		time.Sleep(2 * time.Minute)
		b.runs(0)
		b.is(Asleep)
	})
}

func TestWhatIsAdoptedCountsForMax(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := kept(2, 0)
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 3, 1 }), p, nil)
		for range 3 {
			b.inside()
		}
		b.waits()
		waitIdle()
		if p.peak() != 3 || p.started() != 3 {
			t.Fatalf("%d at once, %d started with max 3", p.peak(), p.started())
		}
	})
}

func TestWhatIsAdoptedAboveMaxIsStopped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.Max = 2 }), kept(5, 0), nil)
		b.runs(2)
	})
}

func TestAnAdoptedInstanceThatDoesNotAnswerIsReplacedSoon(t *testing.T) {
	for name, p := range map[string]*platform{
		"its start was over":      kept(1, -1),
		"young, but it was ready": {local: true, want: 1, startTime: -1, ages: time.Second, wasReady: true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := newBench(t, defaults(), p, nil)
				r := b.waits()
				waitIdle()
				p.set(func() { p.startTime = 0 })
				start := time.Now()
				b.granted(r)
				if took := time.Since(start); took != adoptTimeout+time.Second {
					t.Errorf("it took %v", took)
				}
				if b.rec.count("failed") != 0 {
					t.Errorf("counted as a failed start\n%s", b.story())
				}
				b.runs(1)
			})
		})
	}
}

func TestAnAdoptedInstanceThatWasStartingHasItsTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, want: 1, startTime: 80 * time.Second, ages: 30 * time.Second}
		b := newBench(t, defaults(), p, nil)
		b.granted(b.waits())
		if p.started() != 1 {
			t.Fatal("it was replaced")
		}
	})
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, want: 1, startTime: -1, ages: 30 * time.Second}
		b := newBench(t, defaults(), p, nil)
		r := b.waits()
		waitIdle()
		p.set(func() { p.startTime = 0 })
		start := time.Now()
		b.granted(r)
		if took := time.Since(start); took != 90*time.Second {
			t.Errorf("it was replaced after %v, when 90 s of its start_timeout were left", took)
		}
	})
}

func TestTheEndOfAnAdoptedInstanceIsNoFailedStart(t *testing.T) {
	for name, startTime := range map[string]time.Duration{"before it answers": -1, "after it has answered": 0} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := kept(1, startTime)
				b := newBench(t, defaults(), p, nil)
				p.set(func() { p.startTime = 0 })
				p.end(p.ids()[0], exit("exit status unknown"))
				waitIdle()
				if f := b.Status().LastError; f == nil || f.Short != "exit status unknown" {
					t.Errorf("last error %v", f)
				}
				start := time.Now()
				b.comesAndGoes()
				if took := time.Since(start); took != 0 || b.rec.count("failed") != 0 {
					t.Errorf("after %v\n%s", took, b.story())
				}
			})
		})
	}
}

func TestWhatIsAdoptedTakesNoPlaceOfTheStartBudget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(1)
		p := kept(1, -1)
		changing := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 2, 1 }), p, budget)
		p.set(func() { p.startTime = time.Second })
		changing.waits()
		changing.waits() // one is started for it
		waitIdle()
		other := newBench(t, defaults(), &platform{local: true, startTime: time.Second}, budget)
		start := time.Now()
		other.comesAndGoes()
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("after %v: the place was free when the start was over", took)
		}
	})
}

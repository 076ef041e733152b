package control

import (
	"context"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

func TestSuspendTellsWaitersAndLetsThoseInsideFinish(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, with(func(s *Settings) { s.Concurrency = 1 }), p, nil)
		r := b.inside()
		w := b.waits()
		b.Suspend("back at noon")
		refusedWith(t, b.answer(w), RefusedSuspended, "back at noon")
		b.is(Suspended)
		b.runs(1)
		_, err := b.request()
		refusedWith(t, err, RefusedSuspended, "back at noon")
		r.Release(reserver.Answered)
		b.runs(0)
		b.Wake()
		time.Sleep(time.Minute)
		b.runs(0)
		b.is(Suspended)
		_, _ = b.request()
		b.Resume()
		time.Sleep(time.Minute)
		b.is(Asleep) // who was refused meanwhile is gone
		if p.started() != 1 {
			t.Fatal("started without a request")
		}
		b.comesAndGoes()
	})
}

func TestResumeTakesBackWhatStillDrains(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, defaults(), p, nil)
		r := b.inside()
		b.Suspend("no")
		b.is(Suspended)
		b.Resume()
		b.is(Awake)
		b.comesAndGoes()
		if p.started() != 1 {
			t.Fatal("started anew")
		}
		r.Release(reserver.Answered)
	})
}

func TestDrainTimeoutBoundsTheDraining(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, defaults(), p, nil)
		b.inside()
		b.Suspend("no")
		time.Sleep(30*time.Second - time.Millisecond)
		b.runs(1)
		time.Sleep(time.Millisecond)
		b.runs(0)
	})
}

func TestSleepLastsUntilTheNextRequestMinIncluded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, with(func(s *Settings) { s.Min, s.Max = 1, 2 }), p, nil)
		b.runs(1)
		b.Sleep()
		b.runs(0)
		time.Sleep(time.Hour)
		b.is(Asleep)
		b.comesAndGoes()
		b.runs(1)
		b.Sleep()
		b.runs(0)
		b.Wake()
		b.runs(1)
		b.Sleep()
		b.Resume()
		b.runs(1)
	})
}

func TestWhoWaitsWhenItIsPutToSleepIsServed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, startTime: time.Second}
		b := newBench(t, with(func(s *Settings) { s.Concurrency = 1 }), p, nil)
		r := b.inside()
		w := b.waits()
		b.Sleep()
		r.Release(reserver.Answered)
		b.granted(w)
	})
}

func TestARequestDuringTheDrainingOfASleepTakesTheInstanceBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, startTime: time.Second}
		b := newBench(t, defaults(), p, nil)
		r := b.inside()
		b.Sleep()
		b.is(Asleep)
		start := time.Now()
		b.comesAndGoes()
		if time.Since(start) != 0 || p.started() != 1 {
			t.Fatal("a new one was started beside it")
		}
		r.Release(reserver.Answered)
	})
}

func TestWakeCutsThePauseShortAndLastsForAnIdleTimeout(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, fail: exit("no")}
		b := newBench(t, with(func(s *Settings) { s.IdleTimeout = time.Minute }), p, nil)
		_ = b.answer(b.waits())
		time.Sleep(time.Millisecond)
		p.set(func() { p.fail = nil })
		b.Wake()
		b.is(Awake)
		time.Sleep(59 * time.Second)
		b.is(Awake)
		time.Sleep(2 * time.Second)
		b.is(Asleep)
	})
}

func TestAStoppedInstanceDrainsAndIsReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, with(func(s *Settings) { s.Max = 2 }), p, nil)
		r := b.inside()
		if b.StopInstance("r1-99") {
			t.Fatal("stopped what does not exist")
		}
		if !b.StopInstance("r1-1") {
			t.Fatal("not found")
		}
		w := b.inside()
		if w.Instance().ID != "r1-2" {
			t.Fatal(w.Instance().ID)
		}
		b.runs(2)
		r.Release(reserver.Answered)
		b.runs(1)
		if b.rec.count("failed") != 0 {
			t.Fatal("a stop is no failure")
		}
	})
}

func TestExitTellsWaitersStartsNothingAndServesWhatIsReady(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, with(func(s *Settings) { s.Min, s.Max, s.Concurrency = 1, 1, 1 }), p, nil)
		r := b.inside()
		w := b.waits()
		b.Exit()
		refusedWith(t, b.answer(w), RefusedExiting, "the server is shutting down")
		r.Release(reserver.Answered)
		b.comesAndGoes()
		p.end("r1-1", exit("bye"))
		_, _ = b.request()
		time.Sleep(time.Minute)
		if p.started() != 1 {
			t.Fatal("started without a request")
		}
	})
}

func TestARemovedServiceEndsWithItsLastRequest(t *testing.T) {
	for name, local := range map[string]bool{"local": true, "remote": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := &platform{local: local, startTime: time.Second}
				b := newBench(t, with(func(s *Settings) { s.Min, s.Max, s.IdleTimeout = 1, 1, 0 }), p, nil)
				time.Sleep(time.Second)
				r := b.inside()
				done := 0
				b.Retire(func() { done++ })
				time.Sleep(time.Hour)
				if waitIdle(); done != 0 {
					t.Fatal("ended with a request inside")
				}
				b.is(Awake)
				r.Release(reserver.Answered)
				time.Sleep(3 * time.Second)
				if waitIdle(); done != 1 || p.isClosed() != 1 {
					t.Fatalf("done %d, closed %d", done, p.isClosed())
				}
				if n := len(p.ids()); local && n != 0 || !local && n != 1 {
					t.Fatalf("%d instances are left", n)
				}
				if b.Unretire() {
					t.Fatal("it is too late")
				}
				if _, err := b.request(); err == nil && !local {
					t.Log("a ready instance serves to the end")
				}
			})
		})
	}
}

func TestARemovedServiceServesWhoWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, startTime: 5 * time.Second}
		b := newBench(t, defaults(), p, nil)
		w := b.waits()
		time.Sleep(time.Second)
		done := false
		b.Retire(func() { done = true })
		b.granted(w)
		w.Release(reserver.Answered)
		time.Sleep(3 * time.Second)
		if waitIdle(); !done {
			t.Fatal(b.story())
		}
	})
}

func TestARemovalThatIsTakenBackBringsMinBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, with(func(s *Settings) { s.Min, s.Max, s.IdleTimeout = 2, 2, 0 }), p, nil)
		b.runs(2)
		r := b.inside()
		b.Retire(func() { t.Error("done") })
		time.Sleep(time.Minute)
		waitIdle()
		r.Release(reserver.Answered)
		if !b.Unretire() {
			t.Fatal("too late")
		}
		b.runs(2)
		time.Sleep(time.Minute)
		b.runs(2)
	})
}

func TestAServiceThatCouldNeverBeOpenedCanBeRemoved(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := bareBench(t, defaults(), nil, nil)
		done := false
		b.Retire(func() { done = true })
		if waitIdle(); !done {
			t.Fatal("stays for ever")
		}
	})
}

func TestCloseTellsWhoWaitsAndClosesEachBackendOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old := &platform{local: true}
		b := newBench(t, defaults(), old, nil)
		b.inside()
		p := &platform{local: true, startTime: -1}
		if err := b.SetBackend(p); err != nil {
			t.Fatal(err)
		}
		waitIdle()
		old.end("r1-1", exit("bye"))
		w := b.waits()
		go func() { _ = b.Close(context.Background()) }()
		if err := b.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := b.answer(w); err == nil {
			t.Fatal("granted")
		}
		if waitIdle(); p.isClosed() != 1 || old.isClosed() != 1 {
			t.Fatalf("closed %d and %d times", old.isClosed(), p.isClosed())
		}
		late := &platform{local: true}
		if err := b.SetBackend(late); err == nil || late.isClosed() != 1 {
			t.Fatal("a backend was opened and is never closed")
		}
		b.Trigger()
		b.Wake()
		if b.active() {
			t.Fatal("a closed loop has a goroutine")
		}
	})
}

func TestCloseWaitsNoLongerThanItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, gate: make(chan struct{}), deaf: true}
		b := bareBench(t, defaults(), p, nil)
		if err := b.SetBackend(p); err != nil {
			t.Fatal(err)
		}
		b.waits()
		waitIdle()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		start := time.Now()
		if err := b.Close(ctx); err == nil {
			t.Fatal("the order still hangs")
		}
		if d := time.Since(start); d != 5*time.Second {
			t.Fatalf("after %v", d)
		}
		close(p.gate)
	})
}

func TestNobodyGetsInAfterTheWordToSuspendOrToSleep(t *testing.T) {
	for name, say := range map[string]func(*bench){
		"suspend": func(b *bench) { b.Suspend("moving house") },
		"sleep":   func(b *bench) { b.Sleep() },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := newBench(t, defaults(), &platform{local: true}, nil)
				b.comesAndGoes()
				waitIdle()
				say(b)
				// The loop has not been heard of since.
				if r, has, _ := b.ask(); has {
					t.Errorf("a slot of %s was given away", r.Instance().ID)
				}
			})
		})
	}
}

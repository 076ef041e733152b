package control

import (
	"slices"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

func TestAWakeWaitsForTheEndOfTheStoppingInstance(t *testing.T) {
	for _, most := range []int{1, 2} {
		bubble(t, func(t *testing.T) {
			p := &platform{local: true, stopTime: 6 * time.Second}
			b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = most, 1 }), p, nil)
			for range most {
				defer b.inside().Release(reserver.Answered)
			}
			b.Suspend("a stop")
			time.Sleep(30 * time.Second)
			b.runs(0)
			b.Resume()
			time.Sleep(2 * time.Second)
			w := b.waits()
			waitIdle()
			if n := p.exist(); n != most {
				t.Fatalf("max %d: %d instances exist", most, n)
			}
			start := time.Now()
			b.granted(w)
			if took := time.Since(start); took != 4*time.Second {
				t.Fatalf("max %d: after %v", most, took)
			}
			w.Release(reserver.Answered)
		})
	}
}

func TestAChangedBackendWithMaxOneStopsTheOldInstanceFirst(t *testing.T) {
	for name, change := range map[string]func(*bench, *platform) error{
		"reload": func(b *bench, next *platform) error { return b.SetBackend(next) },
		"restart": func(b *bench, next *platform) error {
			b.mu.Lock()
			b.current().backend = next
			b.mu.Unlock()
			return b.Restart()
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				old := &platform{local: true, stopTime: 3 * time.Second}
				b := newBench(t, with(func(s *Settings) { s.Concurrency = 1 }), old, nil)
				inside := b.inside()
				next := &platform{local: true, startTime: time.Second}
				if err := change(b, next); err != nil {
					t.Fatal(err)
				}
				held := b.waits()
				time.Sleep(10 * time.Second)
				waitIdle()
				if old.exist() != 1 || next.exist() != 0 || len(old.ids()) != 1 {
					t.Fatalf("the request inside may finish: %d, %d", old.exist(), next.exist())
				}
				inside.Release(reserver.Answered)
				start := time.Now()
				b.granted(held)
				if took := time.Since(start); took != 4*time.Second {
					t.Fatalf("after %v", took)
				}
				if old.exist() != 0 || next.exist() != 1 {
					t.Fatalf("%d, %d", old.exist(), next.exist())
				}
				held.Release(reserver.Answered)
			})
		})
	}
}

func TestAnIdleInstanceThatIsReplacedHasASuccessor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old := &platform{local: true, stopTime: 3 * time.Second}
		b := newBench(t, defaults(), old, nil)
		b.comesAndGoes()
		next := &platform{local: true, startTime: time.Second}
		if err := b.SetBackend(next); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		waitIdle()
		if old.exist() != 0 || next.exist() != 1 {
			t.Fatalf("%d, %d\n%s", old.exist(), next.exist(), b.story())
		}
		b.is(Awake)
		time.Sleep(6 * time.Minute)
		b.is(Asleep)
	})
}

func TestASuccessorThatFailsIsNotTriedForEver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old := &platform{local: true, stopTime: time.Second}
		b := newBench(t, defaults(), old, nil)
		b.comesAndGoes()
		next := &platform{local: true, fail: exit("no")}
		if err := b.SetBackend(next); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		waitIdle()
		if n := len(next.ordered()); n == 0 || n > 3 {
			t.Fatalf("%d orders", n)
		}
		b.is(Asleep)
	})
}

func TestWithOverlapASuccessorStartsBesideTheStoppingInstance(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, stopTime: 6 * time.Second}
		b := newBench(t, with(func(s *Settings) { s.Overlap = OverlapOn }), p, nil)
		r := b.inside()
		b.StopInstance(p.ids()[0])
		start := time.Now()
		b.comesAndGoes()
		if took := time.Since(start); took != 0 {
			t.Fatalf("after %v", took)
		}
		r.Release(reserver.Answered)
		b.runs(1)
	})
}

func TestWithoutOverlapAChangedBackendStaysWithinMax(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old := &platform{local: true, stopTime: 3 * time.Second}
		next := &platform{local: true, startTime: time.Second}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Min, s.Concurrency, s.Overlap = 3, 3, 1, OverlapOff }), old, nil)
		b.runs(3)
		if err := b.SetBackend(next); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			waitIdle()
			if n := old.exist() + next.exist(); n > 3 {
				t.Fatalf("%d exist with max 3", n)
			}
		}
		if next.exist() != 3 {
			t.Fatalf("%d", next.exist())
		}
	})
}

func TestStoppingInstancesOfARemotePlatformAreItsOwn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{stopTime: time.Minute}
		b := newBench(t, defaults(), p, nil)
		b.comesAndGoes()
		b.Sleep()
		b.runs(0)
		start := time.Now()
		b.comesAndGoes()
		if took := time.Since(start); took != 0 {
			t.Fatalf("after %v", took)
		}
	})
	bubble(t, func(t *testing.T) {
		p := &platform{stopTime: time.Minute}
		b := newBench(t, with(func(s *Settings) { s.Overlap = OverlapOff }), p, nil)
		b.comesAndGoes()
		b.Sleep()
		b.runs(0)
		start := time.Now()
		b.comesAndGoes()
		if took := time.Since(start); took != time.Minute {
			t.Fatalf("after %v", took)
		}
		if got := p.ordered(); !slices.Equal(got, []int{1, 0, 1}) {
			t.Fatalf("ordered %v", got)
		}
	})
}

// overlapping are the defaults with overlap on.
func overlapping() Settings { return with(func(s *Settings) { s.Overlap = OverlapOn }) }

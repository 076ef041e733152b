package control

import (
	"testing"
	"time"
)

// used returns the number of places that are taken.
func (b *Budget) used() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, ln := range b.lanes {
		n += ln.used
	}
	return n
}

func TestFirstStartsGoFirstThenTheOldestWaiter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(1)
		slow := func() *platform { return &platform{local: true, startTime: 10 * time.Second} }
		many := with(func(s *Settings) { s.Max, s.Concurrency = 3, 1 })
		a := newBench(t, many, slow(), budget)
		b := newBench(t, many, slow(), budget)
		c := newBench(t, many, slow(), budget)
		for range 3 {
			a.waits()
		}
		time.Sleep(time.Second)
		c.waits()
		time.Sleep(time.Second)
		b.waits()
		order := ""
		last := [3]int{1, 0, 0}
		for range 60 {
			time.Sleep(time.Second)
			waitIdle()
			if u := budget.used(); u > 1 {
				t.Fatalf("%d starts in progress", u)
			}
			for k, x := range []*bench{a, b, c} {
				if x.p.started() > last[k] {
					last[k] = x.p.started()
					order += string(rune('a' + k))
				}
			}
		}
		if order != "cbaa" {
			t.Fatalf("started %q", order)
		}
	})
}

func TestALocalStartHoldsItsPlaceUntilItIsReadyOrHasFailed(t *testing.T) {
	for name, p := range map[string]*platform{
		"ready":  {local: true, startTime: 5 * time.Second},
		"failed": {local: true, startTime: -1, lifetime: 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				budget := NewBudget(1)
				b := newBench(t, defaults(), p, budget)
				b.waits()
				time.Sleep(4900 * time.Millisecond)
				if budget.used() != 1 {
					t.Fatal("given back too early")
				}
				time.Sleep(200 * time.Millisecond)
				if waitIdle(); budget.used() != 0 {
					t.Fatal("not given back")
				}
			})
		})
	}
}

func TestARemoteStartHoldsItsPlaceUntilItIsAccepted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(1)
		p := &platform{startTime: time.Minute, lag: time.Minute, gate: make(chan struct{})}
		b := newBench(t, defaults(), p, budget)
		b.waits()
		if waitIdle(); budget.used() != 1 {
			t.Fatal("no place was taken")
		}
		close(p.gate)
		if waitIdle(); budget.used() != 0 {
			t.Fatal("not given back")
		}
	})
}

func TestPlacesComeBackWhenAnOrderFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(3)
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 3, 1 }), &platform{local: true, fail: exit("no")}, budget)
		for range 3 {
			b.waits()
		}
		if waitIdle(); budget.used() != 0 {
			t.Fatalf("%d places are lost", budget.used())
		}
	})
}

func TestAClaimIsWithdrawnWithItsReason(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(1)
		a := newBench(t, defaults(), &platform{local: true, startTime: 10 * time.Second}, budget)
		b := newBench(t, defaults(), &platform{local: true, startTime: time.Second}, budget)
		a.waits()
		waitIdle()
		b.waits()
		waitIdle()
		b.Suspend("no")
		time.Sleep(11 * time.Second)
		if waitIdle(); budget.used() != 0 || b.p.started() != 0 {
			t.Fatalf("used %d, started %d", budget.used(), b.p.started())
		}
	})
}

func TestClosingAndRestartingGivePlacesBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(2)
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 2, 1 }), &platform{local: true, startTime: -1}, budget)
		b.waits()
		b.waits()
		waitIdle()
		if budget.used() != 2 {
			t.Fatal(budget.used())
		}
		// The new revision may not start anything while the old one starts.
		next := &platform{local: true, startTime: -1}
		if err := b.SetBackend(next); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if waitIdle(); next.started() != 0 {
			t.Fatalf("%d more starts than start_limit", next.started())
		}
		if err := b.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if budget.used() != 0 {
			t.Fatalf("%d places are lost", budget.used())
		}
	})
}

func TestAChangedLimitTakesEffectAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(1)
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 4, 1 }), &platform{local: true, startTime: 10 * time.Second}, budget)
		for range 4 {
			b.waits()
		}
		b.runs(1)
		budget.SetLimit(3)
		b.runs(3)
		budget.SetLimit(1)
		b.runs(3)
		time.Sleep(10 * time.Second)
		b.runs(4)
	})
}

package control

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

// hanging are services whose starts never end, with a request each.
func hanging(t *testing.T, n int, budget *Budget) (benches []*bench, waiting []*reserver.Reservation) {
	for range n {
		b := newBench(t, defaults(), &platform{local: true, startTime: -1}, budget)
		benches, waiting = append(benches, b), append(waiting, b.waits())
	}
	waitIdle()
	return benches, waiting
}

// abandon lets the requests go. The places come back by and by.
func abandon(waiting []*reserver.Reservation) {
	for _, r := range waiting {
		r.Cancel()
	}
	time.Sleep(2*placeTime + time.Second)
	synctest.Wait()
}

func TestAStartWithoutARequestGivesItsPlaceBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(8)
		_, waiting := hanging(t, 8, budget)
		time.Sleep(3 * time.Second)
		healthy := newBench(t, defaults(), &platform{local: true, startTime: time.Second}, budget)
		w := healthy.waits()
		waitIdle()
		if healthy.p.started() != 0 {
			t.Fatal("nine starts in progress")
		}
		for _, r := range waiting {
			r.Cancel()
		}
		start := time.Now()
		healthy.granted(w)
		if took := time.Since(start); took != time.Second {
			t.Fatalf("after %v", took)
		}
		w.Release(reserver.Answered)
	})
}

func TestAStartGivesItsPlaceBackAfterAWhileInAnyCase(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(8)
		// Each waits for the sleeping one, which has no place to start.
		_, waiting := hanging(t, 10, budget)
		defer func() { abandon(waiting) }()
		needed := newBench(t, defaults(), &platform{local: true, startTime: time.Second}, budget)
		w := needed.waits()
		start := time.Now()
		needed.granted(w)
		if took := time.Since(start); took > 2*placeTime+2*time.Second {
			t.Fatalf("after %v", took)
		}
		w.Release(reserver.Answered)
	})
}

func TestAStartForMinHoldsItsPlaceThoughNothingWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(1)
		settings := with(func(s *Settings) { s.Min = 1 })
		a := newBench(t, settings, &platform{local: true, startTime: 3 * time.Second}, budget)
		b := newBench(t, settings, &platform{local: true, startTime: 3 * time.Second}, budget)
		time.Sleep(2 * time.Second)
		if waitIdle(); a.p.started()+b.p.started() != 1 {
			t.Fatal("two starts at once")
		}
		time.Sleep(2 * time.Second)
		if waitIdle(); a.p.started()+b.p.started() != 2 {
			t.Fatal("the place did not come back")
		}
	})
}

func TestWhatAStartWaitsForIsSaid(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(2)
		benches, waiting := hanging(t, 2, budget)
		defer func() { abandon(waiting) }()
		for k, b := range benches {
			b.env.Service = fmt.Sprintf("web%d", k)
		}
		third := newBench(t, defaults(), &platform{local: true, startTime: time.Second}, budget)
		w := third.waits()
		waitIdle()
		if got, want := third.Status().Start.Waits, "waits for one of 2 places to start, held by web0, web1"; got != want {
			t.Fatalf("%q", got)
		}
		third.granted(w)
		if got := third.Status().Start.Waits; got != "" {
			t.Fatalf("%q", got)
		}
		w.Release(reserver.Answered)
	})
}

func TestManyHoldersAreCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(10)
		_, waiting := hanging(t, 10, budget)
		defer func() { abandon(waiting) }()
		if got := budget.words(""); !strings.HasSuffix(got, "web and 2 more") {
			t.Fatalf("%q", got)
		}
	})
}

func TestAPlatformThatDoesNotAnswerHoldsUpNoOther(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(8)
		gate := make(chan struct{})
		for range 16 {
			newBench(t, defaults(), &platform{endpoint: "a", gate: gate}, budget).waits()
		}
		waitIdle()
		for name, p := range map[string]*platform{
			"a process": {local: true, startTime: time.Second}, "another cluster": {endpoint: "b", startTime: time.Second},
		} {
			b := newBench(t, defaults(), p, budget)
			start := time.Now()
			b.comesAndGoes()
			if took := time.Since(start); took != time.Second {
				t.Errorf("%s started after %v", name, took)
			}
		}
		close(gate)
		waitIdle()
	})
}

func TestPlacesMoveWithTheBackend(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(1)
		_, waiting := hanging(t, 1, budget)
		defer func() { abandon(waiting) }()
		b := newBench(t, overlapping(), &platform{local: true, startTime: -1}, budget)
		w := b.waits()
		waitIdle() // it claims a local place
		next := &platform{endpoint: "a", startTime: time.Second}
		if err := b.SetBackend(next); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		b.granted(w)
		if took := time.Since(start); took != time.Second {
			t.Fatalf("after %v", took)
		}
		w.Release(reserver.Answered)
	})
}

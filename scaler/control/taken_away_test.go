package control

import (
	"math"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

func TestSettingsAreKeptWithinTheirBounds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ given, want Settings }{
		"too much": {
			Settings{
				Min: math.MaxInt, Max: math.MaxInt, Concurrency: math.MaxInt, IdleTimeout: math.MaxInt64, StartTimeout: math.MaxInt64,
				DrainTimeout: math.MaxInt64, StopTimeout: math.MaxInt64, Check: Check{Interval: math.MaxInt64, Timeout: math.MaxInt64},
			},
			Settings{
				Min: scaler.MaxInstances, Max: scaler.MaxInstances, Concurrency: scaler.MaxConcurrency, IdleTimeout: scaler.MaxDuration,
				StartTimeout: scaler.MaxDuration, DrainTimeout: scaler.MaxDuration, StopTimeout: scaler.MaxDuration,
				Check: Check{Interval: scaler.MaxDuration, Timeout: scaler.MaxDuration},
			},
		},
		"too little": {
			Settings{
				Min: -1, Max: -1, Concurrency: -1, IdleTimeout: -1, StartTimeout: 1, DrainTimeout: 1, StopTimeout: math.MinInt64,
				Check: Check{Interval: 1, Timeout: -1},
			},
			Settings{Max: 1, StartTimeout: scaler.MinDuration, DrainTimeout: scaler.MinDuration, Check: Check{Interval: scaler.MinDuration}},
		},
		"min above max": {
			Settings{Min: 3, Max: 2, StartTimeout: time.Second},
			Settings{Min: 2, Max: 2, StartTimeout: time.Second},
		},
	} {
		given := c.given
		got := *given.bounded()
		if got.Min != c.want.Min || got.Max != c.want.Max || got.Concurrency != c.want.Concurrency || got.IdleTimeout != c.want.IdleTimeout ||
			got.StartTimeout != c.want.StartTimeout || got.DrainTimeout != c.want.DrainTimeout || got.StopTimeout != c.want.StopTimeout ||
			got.Check.Interval != c.want.Check.Interval || got.Check.Timeout != c.want.Check.Timeout {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		if given.Min != c.given.Min || given.Check.Interval != c.given.Check.Interval {
			t.Errorf("%s: what was given was changed", name)
		}
	}
	s := defaults()
	if s.bounded() != &s {
		t.Error("settings within their bounds are copied: services cannot share them")
	}
}

// What a platform does not bring about in the time of a start is not waited for
// when no request is there any more.
func TestAnOrderThatIsNeverCarriedOutIsTakenBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{lag: 24 * time.Hour}
		b := newBench(t, with(func(s *Settings) { s.IdleTimeout = 3 * time.Second }), p, nil)
		r := b.waits()
		time.Sleep(time.Second)
		r.Cancel()
		time.Sleep(time.Hour)
		b.is(Asleep)
		if orders := p.ordered(); len(orders) == 0 || orders[len(orders)-1] != 0 {
			t.Fatalf("the orders were %v\n%s", orders, b.story())
		}
	})
}

// A backend that is opened late shows only then where it runs. This one has an
// instance that starts already.
func TestPlacesThatAreHeldMoveWithARevisionThatIsOpenedLate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(8)
		p := &platform{local: true, startTime: 3 * time.Second, openErr: noCommand(), want: 1}
		b := bareBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 2, 1 }), p, budget)
		if err := b.SetBackendAnyway(p); err != nil {
			t.Fatal(err)
		}
		p.opens()
		time.Sleep(time.Minute)
		first := b.waits()
		time.Sleep(time.Second)
		second := b.waits()
		time.Sleep(time.Second)
		waitIdle()
		budget.mu.Lock()
		lanes := len(budget.lanes)
		budget.mu.Unlock()
		if p.started() != 2 || lanes != 1 {
			t.Errorf("%d starts hold %d places of %d platforms", p.started(), budget.used(), lanes)
		}
		for _, r := range []*reserver.Reservation{first, second} {
			b.granted(r)
			r.Release(reserver.Answered)
		}
		time.Sleep(time.Hour)
		waitIdle()
		budget.mu.Lock()
		defer budget.mu.Unlock()
		if len(budget.lanes) != 0 {
			t.Errorf("places of %d platforms are still held", len(budget.lanes))
		}
	})
}

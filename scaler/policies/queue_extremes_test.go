package policies

import (
	"math"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

func TestNoUtilizationMakesThePolicyLoop(t *testing.T) {
	for _, u := range []float64{1e-300, 1e-30, 1e-9, 0.01, 0.29, 1, 1e30, math.Inf(1), math.NaN(), -1} {
		for _, c := range []int{1, 100, 1_000_000_000_000_000_000, math.MaxInt} {
			q := Queue{Utilization: u}
			for _, in := range []scaler.Inputs{
				{Min: 10, Max: 20, Concurrency: c},
				{Min: 10, Max: 20, Concurrency: c, Demand: 5, Running: 10},
				{Max: math.MaxInt, Concurrency: c, Demand: math.MaxInt, Running: 1},
			} {
				if a := advise(q, in); a.Target < in.Min || a.Target > in.Max || a.Mark < 0 {
					t.Errorf("utilization %v, %+v: %+v", u, in, a)
				}
			}
		}
	}
}

func TestARoundingCostsNoInstance(t *testing.T) {
	// 100 x 0.29 is 28.999999999999996 in floating point.
	if a := advise(Queue{Utilization: 0.29}, scaler.Inputs{Max: 10, Concurrency: 100, Demand: 29}); a.Target != 1 || a.Mark != 29 {
		t.Fatalf("%+v", a)
	}
}

// FuzzQueuePolicy asks the policy anything. It answers at once, within the
// bounds, and by its mark says when the answer changes.
func FuzzQueuePolicy(f *testing.F) {
	for _, seed := range []struct {
		u         float64
		window    int64
		min, max  int
		c, demand int
		idle      int64
	}{
		{1, 0, 0, 1, 100, 0, int64(5 * time.Minute)},
		{1e-30, 0, 0, 20, 100, 1, 0},
		{1, 0, 10, 20, 1_000_000_000_000_000_000, 0, 1},
		{0.07, 1, 0, 1 << 30, 333, 12345, math.MaxInt64},
		{math.NaN(), math.MaxInt64, math.MaxInt, math.MaxInt, math.MaxInt, math.MaxInt, math.MinInt64},
		{math.Inf(-1), math.MinInt64, math.MinInt, math.MinInt, math.MinInt, math.MinInt, -1},
	} {
		f.Add(seed.u, seed.window, seed.min, seed.max, seed.c, seed.demand, seed.idle)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f.Fuzz(func(t *testing.T, u float64, window int64, least, most, c, demand int, idle int64) {
		q := Queue{Utilization: u, DownWindow: time.Duration(window)}
		// What reaches a policy is within the bounds of a configuration.
		most = min(max(most, 1), scaler.MaxInstances)
		least = min(max(least, 0), most)
		in := scaler.Inputs{
			Now: now, Min: least, Max: most, Concurrency: min(max(c, 0), scaler.MaxConcurrency), IdleTimeout: min(max(time.Duration(idle), 0), scaler.MaxDuration), IdleSince: now.Add(-time.Second),
			Demand: max(demand, 0), Running: 1, History: []scaler.Sample{{At: now.Add(-time.Second), Demand: max(demand/2, 0)}},
		}
		a := advise(q, in)
		if a.Target < least || a.Target > most || a.Mark < 0 || a.Reason == "" {
			t.Fatalf("%+v: %+v", in, a)
		}
		if !a.Recheck.IsZero() && !a.Recheck.After(now) {
			t.Fatalf("%+v: asks to be asked in the past: %+v", in, a)
		}
		if w := q.Window(); w < scaler.MinDuration || w > scaler.MaxDuration {
			t.Fatalf("a window of %v", w)
		}
		if a.Mark == scaler.NoMark || a.Mark < in.Demand || in.Demand == 0 {
			return
		}
		in.Demand = a.Mark + 1
		if advise(q, in).Target <= a.Target {
			t.Fatalf("%+v: more than the mark, %d, changes nothing", in, a.Mark)
		}
	})
}

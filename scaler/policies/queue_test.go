package policies

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

func TestQueueTarget(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	base := scaler.Inputs{Now: now, Max: 10, Concurrency: 10, IdleTimeout: 5 * time.Minute, IdleSince: ago(time.Hour)}
	in := func(change func(*scaler.Inputs)) scaler.Inputs { i := base; change(&i); return i }
	for _, c := range []struct {
		name    string
		q       Queue
		in      scaler.Inputs
		target  int
		mark    int
		idle    bool
		recheck time.Duration // from now; 0 is never
	}{
		{"nothing asked, nothing runs", Queue{}, in(func(i *scaler.Inputs) { i.IdleTimeout = 0 }), 0, 0, false, 0},
		{"idle from the start", Queue{}, base, 0, 0, true, 0},
		{"one waits", Queue{}, in(func(i *scaler.Inputs) { i.Demand, i.Waiting = 1, 1 }), 1, 10, false, 3 * time.Second},
		{"exactly full", Queue{}, in(func(i *scaler.Inputs) { i.Demand, i.Running = 20, 2 }), 2, 20, false, 3 * time.Second},
		{"one more than full", Queue{}, in(func(i *scaler.Inputs) { i.Demand, i.Running = 21, 2 }), 3, 30, false, 3 * time.Second},
		{"utilization", Queue{Utilization: 0.7}, in(func(i *scaler.Inputs) { i.Demand, i.Running = 21, 3 }), 3, 21, false, 3 * time.Second},
		{"utilization, one more", Queue{Utilization: 0.7}, in(func(i *scaler.Inputs) { i.Demand, i.Running = 22, 3 }), 4, 28, false, 3 * time.Second},
		{"max", Queue{}, in(func(i *scaler.Inputs) { i.Demand = 1000 }), 10, scaler.NoMark, false, 3 * time.Second},
		{"min", Queue{}, in(func(i *scaler.Inputs) { i.Min, i.Demand, i.Running = 3, 1, 3 }), 3, 30, false, 0},
		{"unlimited", Queue{}, in(func(i *scaler.Inputs) { i.Concurrency, i.Demand = 0, 5000 }), 1, scaler.NoMark, false, 3 * time.Second},
		{"unlimited, nothing asked", Queue{}, in(func(i *scaler.Inputs) { i.Concurrency = 0 }), 0, 0, true, 0},
		{"one stays before idle_timeout", Queue{}, in(func(i *scaler.Inputs) { i.Running, i.IdleSince = 1, ago(time.Minute) }), 1, 10, false, 4 * time.Minute},
		{"idle", Queue{}, in(func(i *scaler.Inputs) { i.Running, i.IdleSince = 1, ago(5*time.Minute) }), 0, 0, true, 0},
		{"idle, with min", Queue{}, in(func(i *scaler.Inputs) { i.Running, i.Min, i.IdleSince = 3, 2, ago(5*time.Minute) }), 2, 20, true, 0},
		{"idle, whatever the window", Queue{DownWindow: time.Hour}, in(func(i *scaler.Inputs) {
			i.Running, i.IdleSince, i.History = 5, ago(5*time.Minute), []scaler.Sample{{At: ago(6 * time.Minute), Demand: 50}}
		}), 0, 0, true, 0},
		{"idle_timeout off", Queue{}, in(func(i *scaler.Inputs) { i.Running, i.IdleTimeout = 1, 0 }), 1, 10, false, 0},
		{"the window holds", Queue{}, in(func(i *scaler.Inputs) {
			i.Running, i.Demand = 5, 1
			i.History = []scaler.Sample{{At: ago(50 * time.Second), Demand: 45}, {At: ago(10 * time.Second), Demand: 12}}
		}), 5, 50, false, 10 * time.Second},
		{"the window is over", Queue{}, in(func(i *scaler.Inputs) {
			i.Running, i.Demand = 5, 1
			i.History = []scaler.Sample{{At: ago(time.Minute), Demand: 45}, {At: ago(10 * time.Second), Demand: 12}}
		}), 2, 20, false, 50 * time.Second},
		{"a window of its own", Queue{DownWindow: 5 * time.Second}, in(func(i *scaler.Inputs) {
			i.Running, i.Demand = 5, 1
			i.History = []scaler.Sample{{At: ago(10 * time.Second), Demand: 12}}
		}), 1, 10, false, 5 * time.Minute},
		{"a number that another program set", Queue{}, in(func(i *scaler.Inputs) {
			i.Running, i.IdleSince, i.History = 4, ago(time.Second), []scaler.Sample{{At: ago(time.Second), Instances: 4}}
		}), 4, 40, false, 59 * time.Second},
		{"a number that another program set, above max", Queue{}, in(func(i *scaler.Inputs) {
			i.Running, i.IdleSince, i.History = 40, ago(time.Second), []scaler.Sample{{At: ago(time.Second), Instances: 40}}
		}), 10, scaler.NoMark, false, 59 * time.Second},
		{"the past of what sleeps", Queue{}, in(func(i *scaler.Inputs) {
			i.Demand, i.Waiting, i.History = 1, 1, []scaler.Sample{{At: ago(time.Second), Demand: 90}}
		}), 1, 10, false, 3 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := advise(c.q, c.in)
			var recheck time.Duration
			if !a.Recheck.IsZero() {
				recheck = a.Recheck.Sub(now)
			}
			if a.Target != c.target || a.Mark != c.mark || a.Idle != c.idle || recheck != c.recheck {
				t.Fatalf("%+v, recheck in %v", a, recheck)
			}
			if a.Reason == "" {
				t.Fatal("no reason")
			}
		})
	}
}

func TestTheMarkNeverContradictsTheTarget(t *testing.T) {
	for u := 1; u <= 200; u++ {
		q := Queue{Utilization: float64(u) / 100}
		for _, c := range []int{1, 2, 3, 7, 10, 100, 333} {
			for demand := range 300 {
				in := scaler.Inputs{Max: 1 << 30, Concurrency: c, Demand: demand, Running: 1}
				a := advise(q, in)
				if a.Mark < demand {
					t.Fatalf("utilization %v, concurrency %d: %d for %d, mark %d", q.Utilization, c, a.Target, demand, a.Mark)
				}
				in.Demand = a.Mark + 1
				if advise(q, in).Target <= a.Target {
					t.Fatalf("utilization %v, concurrency %d: %d above the mark changes nothing", q.Utilization, c, in.Demand)
				}
			}
		}
	}
}

func TestTheTimeToLookAgainIsInTheFuture(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for s := range 400 {
		for _, demand := range []int{0, 1, 30} {
			since := now.Add(-time.Duration(s) * time.Second)
			a := advise(Queue{}, scaler.Inputs{
				Now: now, Max: 5, Concurrency: 10, Demand: demand, Running: 3, IdleSince: since,
				IdleTimeout: 5 * time.Minute, History: []scaler.Sample{{At: since, Demand: 40}},
			})
			if !a.Recheck.IsZero() && !a.Recheck.After(now) {
				t.Fatalf("demand %d, %d s: %+v", demand, s, a)
			}
		}
	}
}

// advise is the advice of a policy that remembers nothing.
func advise(p scaler.Policy, in scaler.Inputs) scaler.Advice {
	a, _ := p.Target(in, nil)
	return a
}

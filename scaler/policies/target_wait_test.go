package policies

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

func TestTargetWaitLetsRequestsWaitSoLong(t *testing.T) {
	now := time.Unix(1000, 0)
	in := scaler.Inputs{
		Now: now, Max: 100, Concurrency: 2, IdleTimeout: time.Minute, Running: 3, Ready: 3,
		Demand: 46, Waiting: 40, OldestWait: now.Add(-time.Second), ServiceTime: time.Second,
	}
	// 40 s of work for slots that have 4 s each: 5 instances of 2.
	for _, c := range []struct {
		name   string
		change func(*scaler.Inputs)
		want   int
	}{
		{"the queue is worked off in time", func(*scaler.Inputs) {}, 5},
		{"what is inside needs more", func(i *scaler.Inputs) { i.Demand, i.Waiting = 46, 8 }, 19},
		{"a short queue", func(i *scaler.Inputs) { i.Demand, i.Waiting = 10, 4 }, 3},
		{"no more than all need", func(i *scaler.Inputs) { i.ServiceTime = time.Hour }, 23},
		{"the oldest has waited too long", func(i *scaler.Inputs) { i.OldestWait = now.Add(-5 * time.Second) }, 23},
		{"while the first one starts", func(i *scaler.Inputs) {
			i.OldestWait, i.Ready, i.Running, i.Demand = now.Add(-5*time.Second), 0, 1, 40
		}, 5},
		{"max", func(i *scaler.Inputs) { i.Max = 4 }, 4},
	} {
		in := in
		c.change(&in)
		a := advise(Queue{TargetWait: 4 * time.Second}, in)
		if a.Target != c.want {
			t.Errorf("%s: %+v, want %d", c.name, a, c.want)
		}
		if a.Target < in.Max && (a.Mark != in.Demand || a.Recheck.IsZero()) {
			t.Errorf("%s: it is not asked again in time: %+v", c.name, a)
		}
		if b, _ := (Adaptive{TargetWait: 4 * time.Second}).Target(in, nil); b.Target < c.want {
			t.Errorf("%s: adaptive wants %+v", c.name, b)
		}
	}
}

func TestTargetWaitIsNotHeldUpByThePast(t *testing.T) {
	now := time.Unix(1000, 0)
	in := scaler.Inputs{
		Now: now, Max: 100, Concurrency: 1, Running: 2, Ready: 2, Demand: 4, Waiting: 2, OldestWait: now, ServiceTime: time.Second,
		History: []scaler.Sample{{At: now.Add(-time.Second), Demand: 50}},
	}
	if a := advise(Queue{TargetWait: 10 * time.Second}, in); a.Target != 2 {
		t.Errorf("%+v", a)
	}
}

package spare

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

func TestTarget(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	policy := &Policy{Slots: 5}
	base := scaler.Inputs{Now: now, Max: 8, Concurrency: 10, IdleTimeout: time.Minute, IdleSince: now.Add(-time.Second)}
	for name, tt := range map[string]struct {
		change func(*scaler.Inputs)
		target int
		mark   int
	}{
		"asleep":            {func(*scaler.Inputs) {}, 0, 0},
		"a first request":   {func(in *scaler.Inputs) { in.Demand, in.Waiting = 1, 1 }, 1, 5},
		"five are left":     {func(in *scaler.Inputs) { in.Demand, in.Running = 5, 1 }, 1, 5},
		"four would be":     {func(in *scaler.Inputs) { in.Demand, in.Running = 6, 1 }, 2, 15},
		"the maximum":       {func(in *scaler.Inputs) { in.Demand, in.Running = 500, 1 }, 8, scaler.NoMark},
		"unlimited":         {func(in *scaler.Inputs) { in.Demand, in.Concurrency = 500, 0 }, 1, scaler.NoMark},
		"idle for a moment": {func(in *scaler.Inputs) { in.Running = 1 }, 1, 5},
		"idle for long":     {func(in *scaler.Inputs) { in.Running, in.IdleSince = 1, now.Add(-time.Minute) }, 0, 0},
		"the minimum":       {func(in *scaler.Inputs) { in.Running, in.Min, in.IdleSince = 3, 3, now.Add(-time.Minute) }, 3, 25},
		"never idle":        {func(in *scaler.Inputs) { in.Running, in.IdleTimeout = 1, 0 }, 1, 5},
	} {
		in := base
		tt.change(&in)
		got, _ := policy.Target(in, nil)
		if got.Target != tt.target || got.Mark != tt.mark {
			t.Errorf("%s: target %d and mark %d, want %d and %d", name, got.Target, got.Mark, tt.target, tt.mark)
		}
		// With more demand than the mark, the answer is greater.
		if got.Mark != scaler.NoMark {
			in.Demand, in.Running = got.Mark+1, max(in.Running, 1)
			if more, _ := policy.Target(in, nil); more.Target <= got.Target {
				t.Errorf("%s: with %d requests the target is %d and no more than %d", name, in.Demand, more.Target, got.Target)
			}
		}
	}
}

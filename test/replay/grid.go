package main

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/policies"
)

// A contender is a policy with its options.
type contender struct {
	name        string
	policy      func(*world) scaler.Policy // nil: the oracle
	idleTimeout time.Duration
	own         scaler.Policy // the same, if it is Usher's
}

// plain is a policy that needs nothing of the world.
func plain(p scaler.Policy) func(*world) scaler.Policy {
	return func(*world) scaler.Policy { return p }
}

// ofUsher is one of Usher's policies, with its defaults.
func ofUsher(name string, p scaler.Policy, idleTimeout time.Duration) contender {
	return contender{name: name + " " + short(idleTimeout), policy: plain(p), idleTimeout: idleTimeout, own: p}
}

// usual says whether a service that names no policy and no idle timeout has
// this one.
func (c contender) usual() bool {
	return c.own != nil && reflect.DeepEqual(c.own, scaler.Policy(policies.Default)) && c.idleTimeout == policies.DefaultIdleTimeout
}

// baseline is what all others are compared with.
const baseline = "queue 5m"

// contenders returns the policies.
func contenders() []contender {
	all := []contender{{name: "oracle"}}
	for _, d := range []time.Duration{time.Minute, 5 * time.Minute, 10 * time.Minute} {
		all = append(all, ofUsher("queue", policies.Queue{}, d))
	}
	for _, d := range []time.Duration{2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute} {
		all = append(all, ofUsher("adaptive", policies.Adaptive{}, d))
	}
	for _, d := range []time.Duration{5 * time.Minute, 10 * time.Minute, time.Hour} {
		all = append(all, contender{name: "keep-alive " + short(d), policy: plain(keepAlive{d})})
	}
	return append(
		all,
		contender{name: "waiter", policy: plain(waiter{})},
		contender{name: "kpa", policy: func(w *world) scaler.Policy { return kpa{w.demandIntegral} }},
		contender{name: "hpa", policy: func(w *world) scaler.Policy { return hpa{w.demandIntegral} }},
		contender{name: "relay", policy: plain(relay{})},
		contender{name: "histogram", policy: plain(hybrid{})},
	)
}

// short writes a duration without what is 0: 5m, not 5m0s.
func short(d time.Duration) string {
	switch {
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}

// A cell is one run.
type cell struct {
	trace  *Trace
	start  time.Duration
	policy string
	Result
}

// grid is all runs: the traces in order, for each the start times, for each
// the contenders.
type grid struct {
	traces []Trace
	starts []time.Duration
	who    []contender
	cells  []cell
}

// run replays everything, as many runs at a time as there are processors.
func (g *grid) run(t *testing.T, seed uint64) {
	g.cells = make([]cell, 0, len(g.traces)*len(g.starts)*len(g.who))
	for k := range g.traces {
		for _, start := range g.starts {
			for _, c := range g.who {
				g.cells = append(g.cells, cell{trace: &g.traces[k], start: start, policy: c.name})
			}
		}
	}
	t.Run("all", func(t *testing.T) {
		for k := range g.cells {
			c, who := &g.cells[k], g.who[k%len(g.who)]
			t.Run("", func(t *testing.T) {
				t.Parallel()
				if who.policy == nil {
					c.Result = oracle(*c.trace, c.start)
					return
				}
				c.Result = replay(t, *c.trace, Setup{Policy: who.policy, IdleTimeout: who.idleTimeout, StartTime: c.start, Seed: seed})
			})
		}
	})
}

// select returns the results of a policy in the cells that are wanted.
func (g *grid) results(policy string, wanted func(*cell) bool) []Result {
	var all []Result
	for k := range g.cells {
		if c := &g.cells[k]; c.policy == policy && (wanted == nil || wanted(c)) {
			all = append(all, c.Result)
		}
	}
	return all
}

// families returns the names of the families, in the order of the traces.
func (g *grid) families(real bool) []string {
	var all []string
	for _, t := range g.traces {
		if t.Real == real && !slices.Contains(all, t.Family) {
			all = append(all, t.Family)
		}
	}
	return all
}

func ofFamily(name string) func(*cell) bool {
	return func(c *cell) bool { return c.trace.Family == name }
}

func ofKind(real bool) func(*cell) bool {
	return func(c *cell) bool { return c.trace.Real == real }
}

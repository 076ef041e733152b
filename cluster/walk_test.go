package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// walk takes random steps, and returns the way to a breach if there is one.
func walk(sc *scope, first *world, rnd *rand.Rand, steps int) (breach, way string, taken int) {
	w := first.clone()
	var picks []int
	for taken < steps {
		all := w.actions()
		if len(all) == 0 {
			return "", "", taken
		}
		k := rnd.IntN(len(all))
		next := w.clone()
		all[k].do(next)
		taken++
		if next.tooLong() {
			continue
		}
		picks = append(picks, k)
		w = next
		if breach = w.breach(); breach != "" {
			return breach, tell(sc, picks), taken
		}
	}
	return "", "", taken
}

// walks goes at random until there is a breach, or so many steps were taken.
func walks(sc *scope, seed uint64, steps int) (breach, way string, taken int) {
	first, rnd := begin(sc), rand.New(rand.NewPCG(seed, 0))
	for taken < steps {
		b, w, n := walk(sc, first, rnd, 120)
		if taken += n; b != "" {
			return b, w, taken
		}
	}
	return "", "", taken
}

// play takes actions by the beginnings of their names. One with a question mark
// is left out if it cannot be taken.
func (w *world) play(names ...string) {
	sc := *w.scope
	defer func(sc *scope) { w.scope = sc }(w.scope)
	sc.named = true
	w.scope = &sc
	for _, name := range names {
		all := w.actions()
		begin, optional := strings.CutSuffix(name, "?")
		k := slices.IndexFunc(all, func(a action) bool { return strings.HasPrefix(a.name, begin) })
		switch {
		case k >= 0:
			all[k].do(w)
		case !optional:
			panic(fmt.Sprintf("%q cannot be played. There is: %v", name, all))
		}
	}
}

// confirmWithoutCoordinator has a, which leads, and b go on by themselves.
func (w *world) confirmWithoutCoordinator() {
	for range 3 {
		w.play("a looks at the clock?", "a cannot read?", "b looks at the clock?", "b gets messages of a?", "a gets messages of b?", "b gets messages of a?", "a gets messages of b?")
	}
}

// tell takes the world through an order of actions once more, and says what
// happens.
func tell(sc *scope, picks []int) string {
	named := *sc
	named.named = true
	w := begin(&named)
	var all []string
	for _, k := range picks {
		a := w.actions()[k]
		all = append(all, fmt.Sprintf("  %5.2f  %s", float64(w.now%(1000*tick))/float64(tick), a.name))
		w = w.clone()
		a.do(w)
	}
	return strings.Join(all, "\n")
}

// mutations take one rule of the protocol away each. Without any of them an
// instance can get more requests than it has slots.
var mutations = map[string]scope{
	"requests start without a lease": {
		faults: faults{noLease: true}, routers: 2, budget: budget{views: 1, breaks: 1},
	},
	"a lease is counted from the arrival of the ack": {
		faults: faults{leaseFromAck: true}, routers: 2, budget: budget{views: 1}, begin: func(w *world) {
			lastWaits(w)
			w.calm()
			w.play("time passes", "b looks at the clock", "a looks at the clock", "a gets messages of b")
		},
	},
	"a new leader does not wait for the others": {
		faults: faults{noWait: true}, routers: 2, budget: budget{views: 1},
	},
	"messages of old sessions count": {
		faults: faults{anySession: true}, routers: 2, budget: budget{breaks: 1, stale: 1},
	},
	"messages of old views count": {
		faults: faults{anyView: true, anySession: true}, routers: 2, budget: budget{views: 2, breaks: 1, stale: 1},
	},
	"the leader acts without a confirmation": {
		faults: faults{noConfirm: true}, routers: 2, budget: budget{views: 1},
	},
	"a late hello is believed": {
		faults: faults{forceHello: true}, routers: 2, budget: budget{views: 3, breaks: 1, stale: 1}, longPauses: true,
	},
	"lost Caddys do not stand in the view": {
		faults: faults{forgetLost: true}, routers: 3, budget: budget{views: 2, crashes: 1, breaks: 1},
	},
	"slots are granted to a Caddy that the view does not have": {
		faults: faults{grantOutsider: true}, routers: 3, joiners: 1, budget: budget{views: 1, crashes: 1, joins: 1}, begin: func(w *world) {
			lastWaits(w)
			w.play("a and c connect", "a gets messages of c", "c gets messages of a", "c gets messages of a?", "a gets messages of c?", "b gets messages of a?",
				"a gets messages of b?", "c gets messages of a?", "c gets messages of a?", "a crashes", "b learns that a is dead", "b swaps")
		},
	},
	"a silent Caddy that holds nothing is dropped from the view at once": {
		faults: faults{dropSilent: true}, routers: 2, budget: budget{views: 1, lost: 1}, begin: func(w *world) {
			w.demand(0, true)
			w.calm()
			w.demand(0, false)
			w.play("time passes", "a looks at the clock", "time passes", "a looks at the clock", "a does not hear of its swap")
			w.demand(1, true)
		},
	},
	// The leader wants a joiner in the view, and does not hear that the view is
	// made. If it goes on with the members of the old view, the joiner takes over
	// in the new one and waits for it in vain.
	"a Caddy that has asked for a new view follows the old one": {
		faults: faults{stillUnsure: true}, routers: 3, joiners: 1, ticks: 8, budget: budget{views: 3, lost: 1, away: 20, joins: 1}, begin: func(w *world) {
			w.play("c looks at the clock", "c reads view", "a and c connect", "a gets messages of c", "a does not hear of its swap", "the coordinator makes a late swap")
			w.play("a cannot read", "time passes", "c looks at the clock", "c reads view")
			for range 3 {
				w.confirmWithoutCoordinator()
				w.play("time passes")
			}
			w.play("c looks at the clock", "c reads view", "c swaps to view", "c lists the instance?")
			for range 2 {
				w.confirmWithoutCoordinator()
				w.play("time passes")
			}
			w.confirmWithoutCoordinator()
			w.play("c looks at the clock", "c reads view", "c swaps to view", "time passes")
		},
	},
	"a view with a lower number is followed": {
		faults: faults{followLower: true}, routers: 3, budget: budget{views: 4, restores: 1, breaks: 1, slow: 1},
	},
	"the founder believes that it is alone": {
		faults: faults{trustFound: true}, routers: 2, joiners: 1, budget: budget{views: 3, wipes: 1, joins: 1}, begin: func(w *world) {
			w.play("the coordinator forgets everything", "b looks at the clock", "b swaps to view 1", "b lists the instance")
		},
	},
	"a leader that mends the coordinator gives leases at once": {
		faults: faults{healAtOnce: true}, routers: 2, joiners: 1, budget: budget{views: 3, wipes: 1, joins: 1}, begin: func(w *world) {
			w.play("a starts a request", "the coordinator forgets everything", "b looks at the clock", "b swaps to view 1", "b lists the instance", "time passes", "time passes")
			w.play("b looks at the clock", "a looks at the clock", "a swaps to view 2")
		},
	},
	"slots are returned before the reserver has let go of them": {
		faults: faults{returnEarly: true}, routers: 2, budget: budget{},
	},
	"anything can happen between the look at the lease and the write": {
		twoSteps: true, routers: 2, budget: budget{views: 1},
	},
	"a Caddy stands still for longer than lost_after": {
		longPauses: true, routers: 2, budget: budget{views: 1},
	},
}

func TestEachRuleIsNeeded(t *testing.T) {
	for name, sc := range mutations {
		t.Run(name, func(t *testing.T) {
			sc.slots, sc.ticks, sc.options = 1, max(sc.ticks, 6), timed
			if sc.begin == nil {
				sc.begin = allWait
			}
			breach, way, taken := walks(&sc, 1, 2_000_000)
			if breach == "" {
				t.Errorf("no breach in %d steps", taken)
			}
			t.Logf("after %d steps: %s\n%s", taken, breach, way)

			// With the rule there is none.
			sc.faults, sc.twoSteps, sc.longPauses = faults{}, false, false
			if breach, way, _ := walks(&sc, 2, max(2*taken, 50_000)); breach != "" {
				t.Errorf("with the rule in force: %s\n%s", breach, way)
			}
		})
	}
}

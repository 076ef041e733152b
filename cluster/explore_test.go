package cluster

import (
	"flag"
	"fmt"
	"hash/maphash"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	exploreStates = flag.Int("explore.states", 20_000, "how many states to explore of each scope, and how many random steps to take")
	walkSeed      = flag.Uint64("explore.seed", 1, "the seed of the random steps")
)

// scope bounds an exploration: few Caddys, short times and few mishaps, in all
// orders.
type scope struct {
	routers, joiners, slots int
	ticks                   int // how long it lasts
	options                 Options
	budget                  budget
	longPauses              bool // a Caddy may stand still for longer than lost_after
	twoSteps                bool // between the look at the lease and the write anything can happen
	faults                  faults
	states                  int // the bound; 0 is none
	named                   bool
	begin                   func(*world)
}

var (
	timed    = Options{Lease: 2 * time.Second, LostAfter: time.Second, Fair: time.Second, Beat: time.Second}
	replaces = Options{Lease: 2 * time.Second, LostAfter: time.Second, Fair: time.Second, Beat: time.Second, Replace: true}
)

type action struct {
	name string
	do   func(*world)
}

func (a action) String() string { return a.name }

// actions are all that can happen in a state. A Caddy that stands still is one
// to which nothing happens.
func (w *world) actions() (all []action) {
	add := func(do func(*world), format string, args ...any) {
		a := action{do: do}
		if w.scope.named {
			a.name = fmt.Sprintf(format, args...)
		}
		all = append(all, a)
	}
	if w.now < w.until {
		add((*world).pass, "time passes")
	}
	for k, r := range w.routers {
		if r.alive {
			w.actionsOf(k, r, add)
		}
	}
	for j, s := range w.stale {
		add(func(w *world) {
			w.stale = slices.Delete(slices.Clone(w.stale), j, j+1)
			if w.routers[s.to].alive {
				for _, m := range s.messages {
					w.step(s.to, Received{From: boot(s.from), Message: m})
				}
			}
		}, "%s gets late messages of %s: %s", boot(s.to), boot(s.from), words(s.messages))
	}
	for j, s := range w.late {
		add(func(w *world) {
			w.late = slices.Delete(slices.Clone(w.late), j, j+1)
			w.isMade(s)
		}, "the coordinator makes a late swap, to view %d", s.Next.Number)
	}
	if w.left.restores > 0 && len(w.past) > 0 && w.allFollow() {
		add(func(w *world) {
			w.left.restores--
			w.store = w.past[len(w.past)-1]
		}, "the coordinator forgets view %d", w.store.Number)
	}
	if w.left.wipes > 0 {
		add(func(w *world) { w.left.wipes--; w.store = View{} }, "the coordinator forgets everything")
	}
	return all
}

// allFollow reports whether all know of the view in the coordinator. One that
// does not cannot see that it was forgotten.
func (w *world) allFollow() bool {
	for _, r := range w.routers {
		if r.alive && !r.node.view.Equal(w.store) {
			return false
		}
	}
	return true
}

// words are messages in a form that is told apart.
type words []Message

func (m words) String() string {
	var all []string
	for _, m := range m {
		all = append(all, fmt.Sprintf("%T%+v", m.Body, m.Body))
	}
	return strings.ReplaceAll(strings.Join(all, ", "), "cluster.", "")
}

type adder func(do func(*world), format string, args ...any)

func (w *world) actionsOf(k int, r *router, add adder) {
	name := boot(k)
	n := r.node
	if n.Next() <= w.now {
		add(func(w *world) { w.step(k, Tick{}) }, "%s looks at the clock", name)
	}
	if w.scope.twoSteps {
		if !r.looked && r.inUse < r.slots && n.lease.MayWrite(w.at()) {
			add(func(w *world) { w.own(k).looked = true }, "%s looks at the lease", name)
		}
		if r.looked {
			add(func(w *world) { r := w.own(k); r.looked = false; r.inUse++ }, "%s writes a request", name)
		}
	} else if r.inUse < r.slots && n.lease.MayWrite(w.at()) {
		add(func(w *world) { w.own(k).inUse++ }, "%s starts a request", name)
	}
	if r.inUse > 0 {
		add(func(w *world) {
			r := w.own(k)
			r.inUse--
			if r.watch || r.inUse >= r.slots {
				w.step(k, *r.used())
			}
		}, "%s finishes a request", name)
	}
	if w.left.demands > 0 {
		add(func(w *world) { w.left.demands--; w.demand(k, !r.waiting) }, "%s needs slots: %v", name, !r.waiting)
	}
	if w.left.crashes > 0 {
		add(func(w *world) { w.left.crashes--; w.crash(k) }, "%s crashes", name)
	}
	if w.left.leaves > 0 && !n.member.leaving {
		add(func(w *world) { w.left.leaves--; w.step(k, Leaving{}) }, "%s leaves", name)
	}
	if r.mustList {
		add(func(w *world) {
			w.own(k).mustList = false
			w.step(k, Listed{Service: theService, Instances: []Instance{{ID: theInstance, Slots: w.scope.slots}}})
		}, "%s lists the instance", name)
	}
	w.questionsOf(k, r, add)
	for j, other := range w.routers {
		if j != k {
			w.streamsOf(k, j, other, add)
		}
	}
}

// questionsOf are the answers of the coordinator.
func (w *world) questionsOf(k int, r *router, add adder) {
	name := boot(k)
	if id := r.reading; id != 0 {
		answer := func(v View) func(*world) {
			return func(w *world) {
				w.own(k).reading = 0
				w.step(k, ReadDone{ID: id, View: v})
			}
		}
		add(answer(w.store), "%s reads view %d", name, w.store.Number)
		if !r.begun.Equal(w.store) {
			add(answer(r.begun), "%s reads view %d, as it was", name, r.begun.Number)
		}
		if w.left.away > 0 {
			add(func(w *world) {
				w.left.away--
				w.own(k).reading = 0
				w.step(k, ReadDone{ID: id, Err: fmt.Errorf("away")})
			}, "%s cannot read the view", name)
		}
	}
	if s := r.swap; s != nil && (s.Next.Number <= w.store.Number || w.left.views > 0) {
		add(func(w *world) {
			w.own(k).swap = nil
			if w.isMade(*s) {
				w.left.views--
				w.step(k, SwapDone{ID: s.ID, Result: Swapped})
			} else {
				w.step(k, SwapDone{ID: s.ID, Result: Conflict, View: w.store})
			}
		}, "%s swaps to view %d, led by %s", name, s.Next.Number, s.Next.Leader)
		if w.left.lost > 0 {
			add(func(w *world) {
				w.left.lost--
				w.left.views--
				w.own(k).swap = nil
				w.late = append(slices.Clone(w.late), *s)
				w.step(k, SwapDone{ID: s.ID, Result: Unknown})
			}, "%s does not hear of its swap to view %d", name, s.Next.Number)
		}
	}
}

// streamsOf is what can happen on the way from one to another.
func (w *world) streamsOf(k, j int, other *router, add adder) {
	name, p := boot(k), w.pipes[k][j]
	if len(p.messages) > 0 && other.alive {
		add(func(w *world) { w.deliver(k, j) }, "%s gets messages of %s: %s", boot(j), name, words(p.messages[0]))
	}
	switch {
	case p.up && k < j && other.alive && w.left.breaks > 0:
		add(func(w *world) { w.left.breaks--; w.disconnect(k, j) }, "the stream of %s and %s breaks", name, boot(j))
	case !p.up && !p.heardDown && w.routers[k].node.connected(boot(j)):
		add(func(w *world) {
			w.pipe(k, j).heardDown = true
			w.step(k, StreamDown{Boot: boot(j)})
		}, "%s sees that the stream to %s is broken", name, boot(j))
	case !p.up && k < j && other.alive && (w.pipes[k][j].heardDown || w.pipes[j][k].heardDown || w.left.joins > 0):
		add(func(w *world) {
			if !w.pipes[k][j].heardDown && !w.pipes[j][k].heardDown {
				w.left.joins--
			}
			w.connect(k, j)
		}, "%s and %s connect", name, boot(j))
	}
	if !other.alive && !w.routers[k].sawDead[j] {
		add(func(w *world) {
			w.own(k).sawDead[j] = true
			w.step(k, Dead{Boot: boot(j)})
		}, "%s learns that %s is dead", name, boot(j))
	}
}

func (w *world) crash(k int) {
	r := w.own(k)
	r.alive, r.inUse, r.slots, r.reading = false, 0, 0, 0
	if r.swap != nil {
		if w.left.lost > 0 {
			w.left.lost--
			w.late = append(slices.Clone(w.late), *r.swap)
		}
		r.swap = nil
	}
	for j := range w.routers {
		if j != k {
			w.disconnect(k, j)
		}
	}
}

// pass lets time pass. A Caddy with requests inside takes a step before it has
// stood still for lost_after.
func (w *world) pass() {
	then := w.now + tick
	for k, r := range w.routers {
		end := r.node.member.leaseEnd.Mono + int64(w.scope.options.LostAfter)
		if w.scope.longPauses || w.scope.options.Replace || !r.alive || r.inUse == 0 || then < end {
			continue
		}
		if last := end - tick/20; last > w.now {
			w.now, then = last, max(then, end)
			w.step(k, Tick{})
			w.now = then - tick
		}
	}
	w.now = then
}

// explorer goes through all states, the nearest first.
type explorer struct {
	scope *scope
	nodes []origin
}

// origin is how a state was reached first.
type origin struct {
	before, action int32
}

// way is the order of actions that leads to a state.
func (e *explorer) way(at int32) string {
	var picks []int
	for ; at > 0; at = e.nodes[at].before {
		picks = append(picks, int(e.nodes[at].action))
	}
	slices.Reverse(picks)
	return tell(e.scope, picks)
}

func begin(sc *scope) *world {
	w := newWorld(sc)
	if sc.begin != nil {
		sc.begin(w)
	}
	return w
}

// found is what an exploration has found.
type found struct {
	breach, way          string
	steps, states, depth int
	bounded              bool
}

func explore(sc *scope) found {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	e := &explorer{scope: sc}
	type item struct {
		w  *world
		at int32
	}
	first := begin(sc)
	if b := first.breach(); b != "" {
		return found{breach: b, way: "at the beginning"}
	}
	e.nodes = []origin{{}}
	seed := maphash.MakeSeed()
	var buffer []byte
	seen := make(map[uint64]struct{})
	level := []item{{first, 0}}
	f := found{states: 1}
	for ; len(level) > 0; f.depth++ {
		var next []item
		for k, it := range level {
			level[k].w = nil
			for j, a := range it.w.actions() {
				w := it.w.clone()
				a.do(w)
				f.steps++
				if w.tooLong() {
					continue
				}
				buffer = w.key(buffer)
				h := maphash.Bytes(seed, buffer)
				if _, ok := seen[h]; ok {
					continue
				}
				seen[h] = struct{}{}
				at := int32(len(e.nodes))
				e.nodes = append(e.nodes, origin{it.at, int32(j)})
				if f.breach = w.breach(); f.breach != "" {
					f.way, f.states = e.way(at), len(e.nodes)
					return f
				}
				next = append(next, item{w, at})
				if sc.states > 0 && len(e.nodes) >= sc.states {
					f.states, f.bounded = len(e.nodes), true
					return f
				}
			}
		}
		level = next
	}
	f.states = len(e.nodes)
	return f
}

// tooLong reports whether more is on its way than is explored.
func (w *world) tooLong() bool {
	for k := range w.pipes {
		for j := range w.pipes[k] {
			if len(w.pipes[k][j].messages) > 6 {
				return true
			}
		}
	}
	return false
}

// The orders in which everything can happen are explored from several sides,
// all up to a number of states, and beyond that in random walks. The fewer
// things can go wrong, the deeper all orders are explored; with
// -explore.states=2000000 most come to an end.
var scopes = map[string]scope{
	"a take-over": {
		routers: 2, slots: 1, ticks: 4, options: timed, budget: budget{views: 1},
	},
	"a take-over with two slots": {
		routers: 2, slots: 2, ticks: 4, options: timed, budget: budget{views: 1},
	},
	"a crash": {
		routers: 2, slots: 1, ticks: 4, options: timed, budget: budget{crashes: 1, views: 1},
	},
	"streams that break": {
		routers: 2, slots: 1, ticks: 3, options: timed, budget: budget{breaks: 1, stale: 1},
	},
	"changing needs": {
		routers: 2, slots: 2, ticks: 1, options: timed, budget: budget{demands: 4},
	},
	"answers of the coordinator that are late, lost or never come": {
		routers: 2, slots: 1, ticks: 4, options: timed, budget: budget{views: 1, slow: 1, away: 2, lost: 1},
	},
	"no time rules": {
		routers: 2, slots: 1, ticks: 4, options: replaces, budget: budget{views: 1, crashes: 1}, longPauses: true,
	},
	"no time rules, two slots": {
		routers: 2, slots: 2, ticks: 3, options: replaces, budget: budget{views: 1, breaks: 1}, longPauses: true,
	},
	"three Caddys": {
		routers: 3, slots: 1, ticks: 4, options: timed, budget: budget{views: 1},
	},
	"one that leaves": {
		routers: 2, slots: 1, ticks: 3, options: timed, budget: budget{views: 2, leaves: 1},
	},
	"one that joins": {
		routers: 2, joiners: 1, slots: 1, ticks: 3, options: timed, budget: budget{views: 2, joins: 1},
	},
	"a coordinator that forgets": {
		routers: 2, slots: 1, ticks: 4, options: timed, budget: budget{views: 2, restores: 1, wipes: 1},
	},
	"everything, two Caddys": {
		routers: 2, slots: 1, ticks: 8, options: timed,
		budget: budget{crashes: 1, breaks: 2, stale: 2, lost: 1, demands: 4, slow: 1, away: 2, views: 4, leaves: 1},
	},
	"everything, three Caddys": {
		routers: 3, slots: 2, ticks: 8, options: timed,
		budget: budget{crashes: 1, breaks: 2, stale: 2, lost: 1, demands: 4, slow: 1, away: 2, views: 4, leaves: 1},
	},
	"everything, three Caddys, no time rules": {
		routers: 3, joiners: 1, slots: 2, ticks: 8, options: replaces, longPauses: true,
		budget: budget{crashes: 1, breaks: 2, stale: 2, lost: 1, demands: 4, slow: 1, away: 2, views: 4, leaves: 1, joins: 2},
	},
}

// lastWaits has requests wait at the last Caddy.
func lastWaits(w *world) { w.demand(len(w.routers)-1, true) }

// allWait has requests wait everywhere.
func allWait(w *world) {
	for k := range w.routers {
		w.demand(k, true)
	}
}

// TestEveryOrder takes a few Caddys, with the real step functions, through
// every order in which time passes, messages arrive, streams break, requests
// start and end, Caddys crash, stand still, join and leave, and the coordinator
// answers, or does not. An instance never has more requests inside than slots,
// and the leader never takes a slot for free that another Caddy holds.
func TestEveryOrder(t *testing.T) {
	for name, sc := range scopes {
		t.Run(name, func(t *testing.T) {
			sc.begin, sc.states = allWait, *exploreStates
			begun := time.Now()
			f := explore(&sc)
			if f.breach != "" {
				t.Fatalf("%s\n%s", f.breach, f.way)
			}
			breach, way, taken := walks(&sc, *walkSeed, *exploreStates)
			if breach != "" {
				t.Fatalf("%s\n%s", breach, way)
			}
			t.Logf("%s up to depth %d; %d random steps; %v", f, f.depth, taken, time.Since(begun).Round(time.Millisecond))
		})
	}
}

func (f found) String() string {
	all := "all"
	if f.bounded {
		all = "the nearest"
	}
	return fmt.Sprintf("%s %d states, %d steps between them", all, f.states, f.steps)
}

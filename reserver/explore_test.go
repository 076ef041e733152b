package reserver

import (
	"encoding/binary"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"
)

var exploreDepth = flag.Int("explore.depth", 0, "how many steps to explore in all orders, in place of what is explored by default")

// scope bounds an exploration: few of everything, in all orders. Each request
// and each instance is like every other, so few show what many would.
type scope struct {
	parties, places int
	slots           []int // of an instance, when it is added and when it is changed
	waits           []int // values of MaxWaiting
	limits          []int // values of the limit over all queues
	fates           []Outcome
	balances        []Balance
	quiet           bool     // some requests are quiet
	unbound         bool     // the addresses of instances can be given to others
	sides           int      // services under the one limit
	maxRequests     int      // of an instance, with asks
	asks            []Ask    // what requests ask for, if not all are plain
	steps           []string // that are taken
	depth           int
}

// The orders in which everything can happen are explored from several sides:
// the fewer kinds of steps, the deeper. By default that is 5 to 10 steps deep,
// and some 200 000 states, which stand for some 140 million orders of steps;
// the output with -v says how many they are of each. One step more takes three
// times as long or less.
var scopes = map[string]scope{
	"requests and instances": {
		parties: 3, places: 2, slots: []int{1, 2}, waits: []int{2}, fates: []Outcome{Answered}, balances: []Balance{LeastLoaded}, sides: 1,
		steps: []string{"reserve", "cancel", "receive", "release", "add", "cordon", "uncordon", "remove", "set slots"}, depth: 10,
	},
	"failures": {
		parties: 3, places: 2, slots: []int{1, 2}, waits: []int{2}, fates: []Outcome{Answered, Failed, Refused}, balances: []Balance{LeastLoaded}, sides: 1,
		steps: []string{"reserve", "cancel", "receive", "release", "again", "add", "restore", "cordon", "remove"}, depth: 7,
	},
	"doubts": {
		parties: 3, places: 2, slots: []int{1, 2}, waits: []int{0, 2}, fates: []Outcome{Answered, Suspected}, balances: []Balance{LeastLoaded}, unbound: true, sides: 1,
		steps: []string{"reserve", "cancel", "receive", "release", "again", "add", "restore", "vouch", "eject, question", "remove"}, depth: 8,
	},
	"options and limits": {
		parties: 3, places: 2, slots: []int{Unlimited, 1}, waits: []int{0, 1, 2}, limits: []int{1, 3}, fates: []Outcome{Neutral},
		balances: []Balance{LeastLoaded, Oldest}, quiet: true, sides: 1,
		steps: []string{"reserve", "cancel", "receive", "release", "again", "add", "remove", "options", "refuse", "limit"}, depth: 6,
	},
	"two services under one limit": {
		parties: 2, places: 1, slots: []int{1}, waits: []int{2}, limits: []int{1, 2}, fates: []Outcome{Answered}, balances: []Balance{LeastLoaded}, sides: 2,
		steps: []string{"reserve", "cancel", "receive", "release", "again", "add", "remove", "limit", "refuse"}, depth: 7,
	},
	"visitors": {
		parties: 4, places: 2, slots: []int{1, 2}, waits: []int{2}, fates: []Outcome{Answered}, balances: []Balance{LeastLoaded}, sides: 1,
		steps: []string{"reserve", "receive", "release", "visit", "keep", "arrive", "leave", "add", "cordon", "remove"}, depth: 8,
	},
	"quiet visitors and refusals": {
		parties: 3, places: 1, slots: []int{Unlimited, 1}, waits: []int{1}, limits: []int{1, 3}, fates: []Outcome{Answered, Refused}, balances: []Balance{LeastLoaded},
		quiet: true, sides: 1,
		steps: []string{"reserve", "cancel", "receive", "release", "again", "visit", "keep", "arrive", "leave", "add", "restore", "remove", "refuse"}, depth: 6,
	},
	"sessions": {
		parties: 3, places: 2, slots: []int{1, 2}, waits: []int{2}, fates: []Outcome{Answered}, balances: []Balance{LeastLoaded}, sides: 1,
		asks:  []Ask{{}, {Affinity: ByInstance}, {Affinity: ByKey, Key: 1}},
		steps: []string{"reserve", "cancel", "receive", "release", "add", "cordon", "uncordon", "retire", "remove"}, depth: 6,
	},
	"sessions and failures": {
		parties: 3, places: 2, slots: []int{1}, waits: []int{2}, fates: []Outcome{Answered, Refused, Suspected}, balances: []Balance{LeastLoaded}, unbound: true, sides: 1,
		asks:  []Ask{{}, {Affinity: ByKey, Key: 1}, {Affinity: ByHash, Key: 1}},
		steps: []string{"reserve", "receive", "release", "again", "add", "restore", "vouch", "cordon", "remove"}, depth: 6,
	},
	"instances that are spent": {
		parties: 3, places: 2, slots: []int{1, 2}, waits: []int{2}, fates: []Outcome{Answered, Refused}, balances: []Balance{LeastLoaded}, sides: 1,
		maxRequests: 2, asks: []Ask{{}, {Affinity: ByKey, Key: 1}},
		steps: []string{"reserve", "receive", "release", "again", "add", "cordon", "uncordon", "restore", "remove"}, depth: 6,
	},
	"priorities and shares": {
		parties: 4, places: 1, slots: []int{1, 2}, waits: []int{3}, fates: []Outcome{Answered, Refused}, balances: []Balance{LeastLoaded}, sides: 1,
		asks:  []Ask{{Share: 1}, {Share: 2, ShareLimit: 1}, {Share: 1, Class: Low}, {Class: High}},
		steps: []string{"reserve", "cancel", "receive", "release", "again", "add", "restore", "remove"}, depth: 7,
	},
	"visitors with shares and sessions": {
		parties: 3, places: 2, slots: []int{1}, waits: []int{2}, fates: []Outcome{Answered}, balances: []Balance{LeastLoaded}, sides: 1,
		asks:  []Ask{{}, {Share: 1}, {Affinity: ByKey, Key: 1, Class: High}},
		steps: []string{"reserve", "receive", "release", "visit", "keep", "arrive", "leave", "add", "cordon", "remove"}, depth: 6,
	},
	"slots that go and come back": {
		parties: 3, places: 2, slots: []int{NoSlots, 1, 2}, waits: []int{2}, fates: []Outcome{Neutral}, balances: []Balance{LeastLoaded}, sides: 1,
		steps: []string{"reserve", "receive", "release", "again", "add", "cordon", "remove", "set slots", "watch freed"}, depth: 7,
	},
	"sessions without slots": {
		parties: 3, places: 2, slots: []int{NoSlots, Unlimited, 1}, waits: []int{2}, fates: []Outcome{Answered}, balances: []Balance{LeastLoaded}, sides: 1,
		asks:  []Ask{{}, {Affinity: ByKey, Key: 1}, {Affinity: ByHash, Key: 2}},
		steps: []string{"reserve", "receive", "release", "again", "add", "cordon", "set slots", "watch freed"}, depth: 6,
	},
	"visitors without slots": {
		parties: 3, places: 2, slots: []int{NoSlots, 1}, waits: []int{1}, fates: []Outcome{Answered}, balances: []Balance{LeastLoaded}, quiet: true, sides: 1,
		steps: []string{"reserve", "cancel", "receive", "release", "visit", "keep", "arrive", "leave", "add", "remove", "set slots", "watch freed"}, depth: 6,
	},
	"everything": {
		parties: 2, places: 2, slots: []int{1, 2}, waits: []int{0, 2}, limits: []int{1, 3}, fates: []Outcome{Neutral, Answered, Failed, Refused},
		balances: []Balance{LeastLoaded, Oldest}, quiet: true, sides: 1,
		steps: []string{
			"reserve", "cancel", "receive", "release", "again", "add", "cordon", "uncordon", "restore", "remove", "set slots",
			"options", "refuse", "limit",
		}, depth: 5,
	},
}

// TestEveryOrderOfStepsAgreesWithTheModel takes a service through every order
// of steps up to a depth, and after each compares all that can be seen, and
// all that is kept, with the model: no waiter is lost, none gets two slots, no
// instance has more than its slots, and no waiter stands beside a free one.
//
// Each order is replayed on a fresh service. Orders that lead to the same
// state, but for the names of requests, go on as one.
func TestEveryOrderOfStepsAgreesWithTheModel(t *testing.T) {
	for name, sc := range scopes {
		t.Run(name, func(t *testing.T) {
			sc.depth -= shallower
			if *exploreDepth > 0 {
				sc.depth = *exploreDepth
			}
			e := &explorer{t: t, scope: sc, seen: make(map[string]int)}
			e.explore()
		})
	}
}

// move is one step with all that is to be picked in it.
type move struct {
	step  int
	picks []int
}

func (m move) String() string { return fmt.Sprint(steps[m.step].name, m.picks) }

// node is a state, by the shortest order that leads to it.
type node struct {
	parent, depth int
	move          move
	next          []int // one for each move
}

// explorer goes through all states, the nearest first.
type explorer struct {
	t     *testing.T
	scope scope
	nodes []node
	seen  map[string]int

	script []int // what is picked next
}

func (e *explorer) explore() {
	e.nodes = []node{{parent: -1}}
	e.seen[key(e.replay(0))] = 0
	moves := 0
	for at := 0; at < len(e.nodes) && e.nodes[at].depth < e.scope.depth; at++ {
		m := e.replay(at)
		for k, mv := range e.moves(m) {
			if k > 0 {
				m = e.replay(at)
			}
			for _, sd := range m.sides {
				sd.catchUp()
			}
			e.script = slices.Clone(mv.picks)
			m.failf = func(format string, args ...any) {
				e.t.Fatalf("after %v, %v: %s", e.way(at), mv, fmt.Sprintf(format, args...))
			}
			m.run(steps[mv.step])
			moves++
			to := key(m)
			n, known := e.seen[to]
			if !known {
				n = len(e.nodes)
				e.seen[to] = n
				e.nodes = append(e.nodes, node{parent: at, depth: e.nodes[at].depth + 1, move: mv})
			}
			e.nodes[at].next = append(e.nodes[at].next, n)
		}
	}
	e.t.Logf("depth %d: %d states, %d steps from them, which are %.3g orders of steps", e.scope.depth, len(e.nodes), moves, e.orders())
}

// orders counts the orders of steps that the states stand for.
func (e *explorer) orders() (all float64) {
	ways := make([]float64, len(e.nodes))
	ways[0] = 1
	for range e.scope.depth {
		after := make([]float64, len(e.nodes))
		for at, n := range ways {
			if n > 0 {
				for _, to := range e.nodes[at].next {
					after[to] += n
				}
			}
		}
		ways = after
	}
	for _, n := range ways {
		all += n
	}
	return all
}

// way is the order of steps that leads to a state.
func (e *explorer) way(at int) (all []move) {
	for ; at > 0; at = e.nodes[at].parent {
		all = append(all, e.nodes[at].move)
	}
	slices.Reverse(all)
	return all
}

// replay takes a fresh service to a state.
func (e *explorer) replay(at int) *machine {
	// No instance, long queues, and no request.
	e.script = []int{7}
	for range 2 {
		e.script = append(e.script, slices.Max(e.scope.waits), int(e.scope.balances[0]))
		if len(e.scope.asks) > 0 {
			e.script = append(e.script, e.scope.maxRequests)
		}
		for range e.scope.parties {
			e.script = append(e.script, 0)
		}
	}
	m := newMachine(e.pick, e.t.Fatalf, e.scope.parties, e.scope.asks...)
	for _, mv := range e.way(at) {
		e.script = append(e.script[:0], mv.picks...)
		m.do(steps[mv.step])
	}
	return m
}

// pick returns what the move says.
func (e *explorer) pick(n int) int {
	if len(e.script) == 0 || e.script[0] >= n {
		e.t.Fatalf("the script %v does not fit a choice of %d", e.script, n)
	}
	k := e.script[0]
	e.script = e.script[1:]
	return k
}

// catchUp takes note of what was not checked on the way here.
func (sd *side) catchUp() {
	sd.lastIdle = sd.s.Stats().IdleSince
	for _, p := range append(slices.Clone(sd.model.instances), sd.gone...) {
		sd.know(p)
	}
	sd.changed = 0
	sd.s.Need(&sd.need)
}

// moves are all steps that can be taken in a state, but those that the scope
// leaves out and those that change nothing.
func (e *explorer) moves(m *machine) (all []move) {
	for side := range e.scope.sides {
		sd := m.sides[side]
		for _, name := range e.scope.steps {
			k := slices.IndexFunc(steps, func(st step) bool { return st.name == name })
			for _, picks := range e.picks(sd, name) {
				all = append(all, move{k, append([]int{side}, picks...)})
			}
		}
	}
	return all
}

// picks are the choices that a step has.
func (e *explorer) picks(sd *side, name string) (all [][]int) {
	one := func(picks ...int) { all = append(all, picks) }
	// Which of those among whom the step picks are in one of the states.
	among := func(pickable, wanted []partyState, each func(k int)) {
		k := 0
		for _, x := range sd.parties {
			if slices.Contains(wanted, x.state) {
				each(k)
			}
			if slices.Contains(pickable, x.state) {
				k++
			}
		}
	}
	states := func(s ...partyState) []partyState { return s }
	places := func(which func(*place) bool, picks ...int) {
		for k, p := range sd.model.instances {
			if which(p) {
				one(append([]int{k}, picks...)...)
			}
		}
	}
	sc := e.scope
	switch name {
	case "reserve", "visit":
		first := true // all outside parties are alike
		among(states(outside), states(outside), func(k int) {
			if first {
				for _, ask := range e.asks(sd) {
					one(append([]int{k, 1}, ask...)...)
					if sc.quiet {
						one(append([]int{k, 0}, ask...)...)
					}
				}
			}
			first = false
		})
	case "cancel":
		among(states(inQueue, granted, rejected, inside), states(inQueue, granted, rejected), func(k int) { one(k) })
	case "receive":
		among(states(granted, rejected), states(granted, rejected), func(k int) { one(k) })
	case "keep":
		among(states(inQueue, granted, rejected), states(inQueue), func(k int) { one(k) })
	case "arrive", "leave":
		among(states(visiting, called, sentAway), states(visiting, called, sentAway), func(k int) { one(k) })
	case "release", "again":
		among(states(inside, outside), states(inside), func(k int) {
			for _, outcome := range sc.fates {
				one(k, int(outcome))
			}
		})
	case "add":
		for _, n := range sc.slots {
			if len(sd.model.instances) < sc.places {
				one(n-NoSlots, truth(!sc.unbound))
			}
		}
	case "cordon":
		places(func(p *place) bool { return !p.cordoned })
	case "retire":
		places(func(p *place) bool { return !p.retired }, 0)
		places(func(p *place) bool { return !p.retired }, 1)
	case "uncordon":
		places(func(p *place) bool { return p.cordoned })
	case "restore":
		places(func(p *place) bool { return p.ejected })
	case "vouch":
		places(func(p *place) bool { return p.suspected || p.verifyRequested })
	case "eject, question":
		places(func(p *place) bool { return !p.ejected }, 0)
		places(func(p *place) bool { return !p.verifyRequested }, 1)
	case "remove":
		places(func(*place) bool { return true }, 8)
	case "set slots":
		for _, n := range sc.slots {
			places(func(p *place) bool { return p.slots != n }, n-NoSlots)
		}
	case "options":
		for _, n := range sc.waits {
			for _, b := range sc.balances {
				if now := sd.model.opts; now.MaxWaiting != n || now.Balance != b {
					one(n, int(b))
				}
			}
		}
	case "watch freed":
		one(truth(!sd.model.watchFreed))
	case "refuse":
		if sd.model.refusal != nil {
			one(0)
		} else {
			one(1)
		}
	case "limit":
		for _, n := range sc.limits {
			if n != sd.m.max {
				one(n)
			}
		}
	}
	return all
}

// asks are the choices of what to ask for.
func (e *explorer) asks(sd *side) (all [][]int) {
	if len(e.scope.asks) == 0 {
		return [][]int{nil}
	}
	for k, a := range e.scope.asks {
		if a.Affinity != ByInstance {
			all = append(all, []int{k})
			continue
		}
		for i := range len(sd.model.instances) + len(sd.gone) + 1 {
			all = append(all, []int{k, i})
		}
	}
	return all
}

// key says all of a state that can make a difference later. Requests have no
// names in it; instances are known by their age.
func key(m *machine) string {
	k := make(keyed, 0, 128)
	k.add(m.max)
	for _, sd := range m.sides {
		s := sd.s
		k.add(s.maxWaiting, int(s.pool.balance), truth(s.refusal != nil), truth(s.refusedDemand), s.mark, s.peak, truth(sd.model.watchFreed))
		if q, ok := s.queue.(*turns); ok {
			sd.addTurns(&k, q)
		} else {
			for _, l := range []*list{&plainOf(s).urgent, &plainOf(s).lists[requests]} {
				k.add(-1)
				for w := l.first; w != nil; w = w.next {
					k.add(truth(w.Quiet))
				}
			}
		}
		for _, p := range sd.model.instances {
			i := p.i
			k.add(-2, i.slots, truth(i.cordoned), truth(i.ejected), truth(i.AddressReusable()), truth(i.suspected), truth(i.verifyRequested), i.strikes, i.ejections, int(i.pause/time.Millisecond), i.place, truth(i.retired), truth(i.spent), int(min(i.served, s.maxServed)))
			k.add(insideOf(i)...)
		}
		var gone [][]int
		for _, p := range sd.gone {
			if len(p.inside) > 0 {
				gone = append(gone, insideOf(p.i))
			}
		}
		slices.SortFunc(gone, slices.Compare)
		for _, inside := range gone {
			k.add(-3)
			k.add(inside...)
		}
		// Visitors are in the order of their turns, with the requests between
		// them.
		for _, x := range sd.model.queue {
			k.add(-5, truth(x.state == visiting), truth(x.quiet))
		}
		k.add(-6, int(s.called))
		var asleep, suspended, away, quiet int
		for _, x := range sd.parties {
			switch {
			case x.state == sentAway:
				away += 1 + 10*truth(x.quiet)
			case x.state == called:
				quiet += truth(x.quiet)
			case x.state != rejected:
			case x.reason == errSuspended:
				suspended++
			default:
				asleep++
			}
		}
		k.add(-4, asleep, suspended, away, quiet)
	}
	return string(k)
}

// addTurns says what each waiter asks for, whose turn is next, and where the
// sessions are.
func (sd *side) addTurns(k *keyed, q *turns) {
	place := func(i *Instance) int {
		if i == nil {
			return -1
		}
		return slices.IndexFunc(sd.model.instances, func(p *place) bool { return p.i == i }) + 1
	}
	k.add(-7)
	for _, x := range sd.model.queue {
		w := &x.r.waiter
		if x.state == visiting {
			w = &x.g.waiter
		}
		k.add(int(w.kind), truth(w.urgent), truth(w.Quiet), int(w.Class), int(w.Share), int(w.Affinity), int(w.Key), place(w.bound), place(w.Instance), truth(x.lost))
	}
	k.add(-8)
	for _, share := range sd.model.ring {
		k.add(int(share))
	}
	k.add(-9)
	for key := range uint64(3) {
		if x := sd.s.sessions.of[key]; x != nil {
			k.add(int(key), place(x.instance))
		}
	}
}

// keyed is a row of numbers, as a key of a map.
type keyed []byte

func (k *keyed) add(numbers ...int) {
	for _, n := range numbers {
		*k = binary.AppendVarint(*k, int64(n))
	}
}

// insideOf tells the requests inside an instance.
func insideOf(i *Instance) (all []int) {
	for w := i.holders.first; w != nil; w = w.next {
		r := w.reservation
		session := 100*int(r.session) + 1000*int(r.Affinity) + 10_000*int(r.Key) + 100_000*int(r.Share) + 1_000_000*int(r.Class)
		all = append(all, session+4*truth(r.Quiet)+2*len(r.granted)+truth(r.epoch == i.epoch))
	}
	slices.Sort(all)
	return all
}

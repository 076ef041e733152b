package control

import (
	"flag"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

var exploreDepth = flag.Int("explore.depth", 0, "how many events to explore in all orders, in place of what is explored by default")

// beginnings are where the exploration begins: each is an order of events that
// leads deeper than all orders from the start could.
var beginnings = map[string]struct {
	events []string
	depth  int
}{
	"asleep":                         {nil, 4},
	"two inside, one waits":          {[]string{"request", "ready", "request", "request", "ready"}, 3},
	"one inside, the rest draining":  {[]string{"more instances", "request", "request", "ready", "ready", "first answered", "a while"}, 3},
	"a reload under load":            {[]string{"request", "ready", "request", "reload"}, 3},
	"an order on its way":            {[]string{"slow orders", "request"}, 3},
	"the new revision is ready":      {[]string{"request", "ready", "reload", "ready"}, 3},
	"a stop order on its way":        {[]string{"request", "ready", "slow orders", "first answered", "a while"}, 3},
	"the last one has just answered": {[]string{"request", "ready", "first answered"}, 3},
}

// TestEveryOrderOfEventsKeepsThePromises takes a control loop, with the real
// reserver and a scripted platform, through every order of requests, answers,
// cancellations, instances that come and go, changes of limits, reloads and
// orders of operators, up to a depth and from several beginnings. After each
// it checks that no waiter is lost or has two slots, that no instance has more
// requests than slots, that no waiter stands beside a free slot, that none is
// stopped with a request inside before its time to drain is over, and that
// there never are more instances than allowed; and that from everywhere it
// comes to rest with all who wait answered, and nothing left over.
//
// Each order is replayed on a fresh loop. Orders that lead to the same state
// go on as one. By default that is all orders of 4 events after sleep and of 3
// after each of the other beginnings: about 12 000 states, which stand for
// more than twice as many orders of events; the output with -v says how many
// of each. Time is that of the bubble, so what takes minutes takes none.
func TestEveryOrderOfEventsKeepsThePromises(t *testing.T) {
	made.Clear()
	for name, begin := range beginnings {
		t.Run(name, func(t *testing.T) {
			begin.depth -= shallower
			if *exploreDepth > 0 {
				begin.depth = *exploreDepth
			}
			bubble(t, func(t *testing.T) {
				e := &explorer{t: t}
				for _, ev := range begin.events {
					e.start = append(e.start, slices.IndexFunc(happenings, func(h happening) bool { return h.name == ev }))
				}
				e.explore(begin.depth)
			})
		})
	}
	if shallower == 0 && *exploreDepth == 0 && !t.Failed() {
		t.Run("every move is made", everyMoveIsMade)
	}
}

// explorer goes through all states, the nearest first.
type explorer struct {
	t     *testing.T
	start []int
}

// way is an order of events, of those that can happen.
type way []int

func (w way) String() string {
	var names []string
	for _, k := range w {
		names = append(names, happenings[k].name)
	}
	return strings.Join(names, ", ")
}

func (e *explorer) explore(depth int) {
	type state struct {
		way    way
		orders float64
	}
	first := e.replay(e.start)
	seen := map[string]bool{first.key(): true}
	first.end()
	level := []*state{{way: e.start, orders: 1}}
	states, orders, taken := 1, 0., 0
	for range depth {
		var next []*state
		byKey := make(map[string]*state)
		for _, from := range level {
			w := e.replay(from.way)
			for n, k := range w.can() {
				if n > 0 {
					w = e.replay(from.way)
				}
				w.happens(k)
				taken++
				orders += from.orders
				key := w.key()
				switch to := byKey[key]; {
				case to != nil:
					to.orders += from.orders
					w.discard()
				case seen[key]:
					w.discard()
				default:
					seen[key] = true
					states++
					to = &state{way: append(slices.Clone(from.way), k), orders: from.orders}
					byKey[key] = to
					next = append(next, to)
					w.end()
				}
				if e.t.Failed() {
					return
				}
			}
		}
		level = next
	}
	e.t.Logf("depth %d: %d states, %d events in them, at least %.0f orders of events", depth, states, taken, orders)
}

// can returns the events that can happen now.
func (w *world) can() (events way) {
	for k, h := range happenings {
		if h.can(w) {
			events = append(events, k)
		}
	}
	return events
}

// replay takes a fresh loop through an order of events.
func (e *explorer) replay(events way) *world {
	w := newWorld(e.t)
	for _, k := range events {
		w.happens(k)
	}
	return w
}

// happening is something that can happen to a service.
type happening struct {
	name string
	can  func(*world) bool
	do   func(*world)
}

func always(*world) bool       { return true }
func hasWaiting(w *world) bool { return len(w.waiting) > 0 }
func hasInside(w *world) bool  { return len(w.inside) > 0 }

var happenings = []happening{
	{"request", func(w *world) bool { return len(w.waiting)+len(w.inside) < 3 }, (*world).request},
	{"first answered", hasInside, func(w *world) { w.answer(0) }},
	{"last answered", func(w *world) bool { return len(w.inside) > 1 }, func(w *world) { w.answer(len(w.inside) - 1) }},
	{"first leaves", hasWaiting, func(w *world) { w.leave(0) }},
	{"last leaves", func(w *world) bool { return len(w.waiting) > 1 }, func(w *world) { w.leave(len(w.waiting) - 1) }},
	{"ready", func(w *world) bool { return w.some(scaler.PhaseStarting) != "" }, func(w *world) { w.phase(w.some(scaler.PhaseStarting), scaler.PhaseReady) }},
	{"not ready", func(w *world) bool { return w.some(scaler.PhaseReady) != "" }, func(w *world) { w.phase(w.some(scaler.PhaseReady), scaler.PhaseStarting) }},
	{"dies", func(w *world) bool { return w.some(scaler.PhaseReady) != "" }, func(w *world) { w.dies(w.some(scaler.PhaseReady)) }},
	{"dies in part", func(w *world) bool { return w.some(scaler.PhaseReady) != "" && !hasRemains(w) }, (*world).diesInPart},
	{"the rest dies", hasRemains, (*world).restDies},
	{"cordon", func(w *world) bool { return w.some(scaler.PhaseReady) != "" }, func(w *world) { w.StopInstance(w.some(scaler.PhaseReady)) }},
	{"fewer slots", func(w *world) bool { return w.settings.Concurrency > 1 }, func(w *world) { w.change(func(s *Settings) { s.Concurrency = 1 }) }},
	{"more slots", func(w *world) bool { return w.settings.Concurrency < 2 }, func(w *world) { w.change(func(s *Settings) { s.Concurrency = 2 }) }},
	{"fewer instances", func(w *world) bool { return w.settings.Max > 1 }, func(w *world) { w.change(func(s *Settings) { s.Max = 1 }) }},
	{"more instances", func(w *world) bool { return w.settings.Max < 2 }, func(w *world) { w.change(func(s *Settings) { s.Max = 2 }) }},
	{"reload", always, (*world).reload},
	{"suspend", func(w *world) bool { return !w.off }, func(w *world) { w.off = true; w.Suspend("repairs") }},
	{"resume", func(w *world) bool { return w.off }, func(w *world) { w.off = false; w.Resume() }},
	{"put to sleep", always, func(w *world) { w.Sleep() }},
	{"wake", always, func(w *world) { w.Wake() }},
	{"slow orders", func(w *world) bool { return !w.slow }, func(w *world) { w.orders(true) }},
	{"orders go through", func(w *world) bool { return w.slow }, func(w *world) { w.orders(false) }},
	{"a while", always, func(*world) { time.Sleep(drainsFor + time.Second) }},
	{"a long while", always, func(*world) { time.Sleep(idlesFor + time.Second) }},
}

// The times of the service that is explored.
const (
	drainsFor = 10 * time.Second
	idlesFor  = 100 * time.Second
)

package cluster

import (
	"fmt"
	"slices"
	"time"
)

// The cluster that is explored: short times, so that few steps pass them.
const tick = int64(time.Second)

const (
	theService  = "s"
	theInstance = "i"
)

// world is a few Caddys, the streams between them, one instance, and the
// coordinator. It is copied for each step; what a step does not change is
// shared.
type world struct {
	scope   *scope
	now     int64
	until   int64 // time stops here
	store   View
	past    []View // that lay in the store
	routers []*router
	pipes   [][]pipe // from, to
	stale   []stale
	late    []Swap // whose answers were lost, and that may still be made
	left    budget
}

// budget is how often rare things may still happen.
type budget struct {
	crashes, breaks, stale, lost, demands, slow, away, restores, wipes, views, leaves, joins int
}

// router is one Caddy: the node, and what a reserver would know.
type router struct {
	node     *Node
	alive    bool
	slots    int
	order    uint64
	inUse    int
	looked   bool // fault: it looked at the lease, and has not written yet
	waiting  bool
	watch    bool
	mustList bool // it leads, and its control loop has not listed the instance
	reading  uint64
	begun    View // what lay there when the read began
	swap     *Swap
	sawDead  []bool
}

type pipe struct {
	up, heardDown bool        // heardDown: the sender knows that it is down
	messages      [][]Message // what was sent in one step arrives in one
}

type stale struct {
	from, to int
	messages []Message
}

func (w *world) at() Instant { return Instant{Mono: w.now, Wall: w.now} }

func (w *world) clone() *world {
	c := *w
	c.routers = slices.Clone(w.routers)
	c.pipes = slices.Clone(w.pipes)
	return &c
}

// own makes a router that may be changed.
func (w *world) own(k int) *router {
	r := *w.routers[k]
	r.node = r.node.clone()
	r.sawDead = slices.Clone(r.sawDead)
	w.routers[k] = &r
	return &r
}

func (w *world) pipe(from, to int) *pipe {
	w.pipes[from] = slices.Clone(w.pipes[from])
	p := &w.pipes[from][to]
	p.messages = slices.Clone(p.messages)
	return p
}

func boot(k int) string { return string(rune('a' + k)) }

func index(boot string) int { return int(boot[0] - 'a') }

// step has a router take a step, and does what it says.
func (w *world) step(k int, e Event) {
	r := w.own(k)
	w.do(k, r, r.node.Step(w.at(), e))
}

func (w *world) do(k int, r *router, outputs []Output) {
	sent := make([]int, len(w.routers)) // how many messages of this step
	for len(outputs) > 0 {
		var used *Used
		var answer *ReadDone
		for _, o := range outputs {
			switch o := o.(type) {
			case Send:
				to := index(o.To)
				if a, ok := o.Message.Body.(Announce); ok && w.knows(to, a) {
					continue // a sum, which changes nothing here
				}
				if p := w.pipe(k, to); p.up {
					if sent[to]++; sent[to] == 1 {
						p.messages = append(p.messages, nil)
					}
					last := &p.messages[len(p.messages)-1]
					*last = append(slices.Clone(*last), o.Message)
				}
			case SetSlots:
				r.slots, r.order = o.Slots, o.Order
				used = r.used()
			case Watch:
				r.watch = o.On
				used = r.used()
			case Cut:
				r.inUse = 0
				used = r.used()
			case Lead:
				r.mustList = o.On && len(r.node.lead.ledger(theService).instances) == 0
			case Disconnect:
				w.disconnect(k, index(o.Boot))
			case Read:
				r.reading, r.begun = o.ID, w.store
				if w.left.slow == 0 && w.left.away == 0 {
					id := r.reading
					r.reading = 0
					answer = &ReadDone{ID: id, View: w.store}
				}
			case Swap:
				r.swap = &o
			}
		}
		outputs = nil
		if used != nil {
			outputs = r.node.Step(w.at(), *used)
		}
		if answer != nil {
			outputs = append(outputs, r.node.Step(w.at(), *answer)...)
		}
	}
}

// knows reports whether a Caddy has the instances of an announcement, in this
// session or an earlier one.
func (w *world) knows(k int, a Announce) bool {
	s := w.routers[k].node.service(a.Service)
	return s.known && len(s.shares) == len(a.Instances)
}

func (r *router) used() *Used {
	return &Used{Service: theService, Instances: []Use{{Instance: theInstance, Order: r.order, InUse: r.inUse}}}
}

// disconnect breaks the stream between two.
func (w *world) disconnect(a, b int) {
	for _, d := range [][2]int{{a, b}, {b, a}} {
		p := w.pipe(d[0], d[1])
		if p.up {
			if len(p.messages) > 0 && w.left.stale > 0 {
				w.left.stale--
				w.stale = append(slices.Clone(w.stale), stale{d[0], d[1], p.messages[0]})
			}
			*p = pipe{}
		}
	}
}

func (w *world) connect(a, b int) {
	*w.pipe(a, b), *w.pipe(b, a) = pipe{up: true}, pipe{up: true}
	w.step(a, StreamUp{Boot: boot(b)})
	w.step(b, StreamUp{Boot: boot(a)})
}

// isMade changes the store as a swap says, if it has what is expected.
func (w *world) isMade(s Swap) bool {
	if !w.store.Equal(s.Expect) {
		return false
	}
	w.past = append(slices.Clone(w.past), w.store)
	w.store = s.Next
	return true
}

// demand has a router say whether a request waits.
func (w *world) demand(k int, waits bool) {
	r := w.own(k)
	r.waiting = waits
	need := Need{Service: theService}
	if waits {
		need.Waiting, need.Demand = w.scope.slots, w.scope.slots
	}
	need.InUse = r.inUse
	w.do(k, r, r.node.Step(w.at(), Demand{Need: need}))
}

// newWorld makes a cluster in which all is calm.
func newWorld(sc *scope) *world {
	w := &world{scope: sc, now: 1000 * tick}
	for k := range sc.routers {
		w.routers = append(w.routers, &router{
			node: New(Peer{ID: boot(k), Boot: boot(k), Address: boot(k)}, sc.options, w.at()), alive: true, sawDead: make([]bool, sc.routers),
		})
		w.routers[k].node.faults = sc.faults
		w.pipes = append(w.pipes, make([]pipe, sc.routers))
	}
	members := sc.routers - sc.joiners
	for k := range members {
		w.step(k, Tick{})
		w.calm()
		for j := range k {
			w.connect(j, k)
		}
		w.calm()
	}
	w.step(0, Listed{Service: theService, Instances: []Instance{{ID: theInstance, Slots: sc.slots, Fresh: true}}})
	w.calm()
	w.now += 100 * tick // what the founder waits for is over
	for range 3 {
		w.now += tick / 4
		for k := range members {
			w.step(k, Tick{})
		}
		w.calm()
	}
	w.own(0).mustList = false
	w.left, w.until, w.past = sc.budget, w.now+int64(sc.ticks)*tick, nil
	return w
}

// calm delivers everything that is under way.
func (w *world) calm() {
	for busy := true; busy; {
		busy = false
		for k := range w.routers {
			if r := w.routers[k]; r.reading != 0 {
				id := r.reading
				w.own(k).reading = 0
				w.step(k, ReadDone{ID: id, View: w.store})
				busy = true
			}
			if s := w.routers[k].swap; s != nil {
				w.own(k).swap = nil
				result := SwapDone{ID: s.ID, Result: Conflict}
				if w.isMade(*s) {
					result.Result = Swapped
				} else {
					result.View = w.store
				}
				w.step(k, result)
				busy = true
			}
			for j := range w.routers {
				for len(w.pipes[k][j].messages) > 0 {
					w.deliver(k, j)
					busy = true
				}
			}
		}
	}
}

func (w *world) deliver(from, to int) {
	p := w.pipe(from, to)
	batch := p.messages[0]
	p.messages = p.messages[1:]
	for _, m := range batch {
		w.step(to, Received{From: boot(from), Message: m})
	}
}

// breach says in words what is wrong.
func (w *world) breach() string {
	inside := 0
	for _, r := range w.routers {
		if r.alive {
			inside += r.inUse
		}
	}
	if inside > w.scope.slots {
		return fmt.Sprintf("%d requests inside, %d slots", inside, w.scope.slots)
	}
	for _, r := range w.routers {
		// One that is not confirmed does nothing by its ledger.
		if r.alive && r.node.lead != nil && r.node.view.Equal(w.store) && (!w.at().reached(r.node.lead.confirm) || w.scope.faults.noConfirm) {
			if s := w.ledgerIsWrong(r.node); s != "" {
				return s
			}
		}
	}
	return ""
}

// ledgerIsWrong says whether the leader takes slots for free that others hold.
func (w *world) ledgerIsWrong(n *Node) string {
	s := n.lead.ledger(theService)
	k, ok := s.find(theInstance)
	if !ok || !s.instances[k].listed {
		return ""
	}
	truth := 0
	for _, r := range w.routers {
		switch end := r.node.member.leaseEnd.Mono; {
		case !r.alive:
		case w.now < end:
			held := 0
			for _, h := range r.node.Held(theService) {
				held += h.N
			}
			truth += held
		default:
			truth += r.inUse
		}
	}
	if free := s.instances[k].free(); free > 0 && free+truth > w.scope.slots {
		return fmt.Sprintf("the leader %s takes %d of %d slots for free, and %d are held", n.self.ID, free, w.scope.slots, truth)
	}
	return ""
}

// clone copies a node.
func (n *Node) clone() *Node {
	c := *n
	c.lease = new(Lease)
	c.lease.set(n.lease.end())
	c.out, c.inbox = nil, slices.Clone(n.inbox)
	c.streams, c.dead = slices.Clone(n.streams), slices.Clone(n.dead)
	c.member.services = slices.Clone(n.member.services)
	for k := range c.member.services {
		s := &c.member.services[k]
		s.shares = slices.Clone(s.shares)
	}
	if n.lead != nil {
		l := *n.lead
		l.rows, l.joining, l.answered = slices.Clone(l.rows), slices.Clone(l.joining), slices.Clone(l.answered)
		l.ledgers = slices.Clone(l.ledgers)
		for k := range l.ledgers {
			s := &l.ledgers[k]
			s.instances, s.claims = slices.Clone(s.instances), slices.Clone(s.claims)
			for j := range s.instances {
				s.instances[j].holdings = slices.Clone(s.instances[j].holdings)
			}
		}
		c.lead = &l
	}
	return &c
}

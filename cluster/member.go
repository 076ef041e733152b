package cluster

import (
	"slices"
	"sort"
	"strings"
	"time"
)

// member is a node's part as one that holds slots.
type member struct {
	session  uint64
	helloed  bool // a Hello was sent in this session
	welcomed bool // and the leader has taken note of it
	helloAt  int64
	beatAt   int64

	acked    int64 // when the latest heartbeat was sent that was acked
	leaseEnd Instant
	isolated bool // the lease is over
	cut      bool // requests were cut since

	leaving, leaveSent bool
	definitions        []Definition
	services           []service // sorted by name
}

// service is what a member has of one service.
type service struct {
	name   string
	shares []share // sorted by instance

	need    Need // as it is
	sent    Need // as the leader was told in this session
	told    bool
	sentAt  int64
	granted uint64 // in this session
	recall
	watched bool
	leaders string // the leader's definition
	known   bool   // there was an Announce
	differs bool
}

// share is a member's part of one instance: a number of slots.
type share struct {
	instance Instance
	listed   bool

	// held is what the leader has granted and this member has not returned.
	// The reserver was told to use limit of them, by an order that is in force
	// if obeyed. Invariant: while that is so, held is no less than limit, nor
	// than what is inside, and what is more was returned.
	held, limit int
	order       uint64
	obeyed      bool
	inUse       int // as the reserver said last
	pinned      int // slots in use that are not used again
	granted     uint64
	recall
}

// recall is what the leader wants back in this session.
type recall struct {
	until, returned uint64
	busy            int
}

func (r recall) owed() int {
	if r.returned >= r.until {
		return 0
	}
	return int(r.until - r.returned)
}

// occupied is how many slots have a request inside.
func (s *share) occupied() int {
	if s.instance.Slots == Unlimited {
		return min(s.inUse, 1)
	}
	return s.inUse
}

// gone reports whether the node has left, and does nothing any more.
func (m *member) gone(n *Node) bool { return m.leaving && !n.view.Has(n.self.Boot) }

// checkLease takes back what the lease no longer covers, whatever comes next.
func (n *Node) checkLease() {
	m := &n.member
	over := n.now.reached(m.leaseEnd) && !n.faults.noLease
	if over != m.isolated {
		m.isolated, m.cut = over, false
		n.emit(Isolated{On: over})
		if over {
			// The leader grants nothing in a session before it has given a
			// lease in it.
			n.endSession()
		}
		n.rebalanceAll()
	}
	if over && !m.cut && !n.options.KeepServing && !n.options.Replace && n.now.reached(m.leaseEnd.Add(n.options.cutAfter())) {
		m.cut = true
		for _, s := range m.services {
			for _, sh := range s.shares {
				if sh.held > 0 {
					n.emit(Cut{Service: s.name, Instance: sh.instance.ID})
				}
			}
		}
	}
}

func (n *Node) extendLease(end Instant) {
	m := &n.member
	if end.Mono <= m.leaseEnd.Mono {
		return
	}
	m.leaseEnd = end
	switch {
	case n.faults.noLease, n.options.KeepServing:
		n.lease.set(Instant{Mono: never, Wall: never})
	default:
		n.lease.set(end)
	}
	n.checkLease()
}

func (n *Node) endSession() {
	m := &n.member
	m.helloed, m.welcomed = false, false
	m.helloAt = n.now.Mono
}

// truthful reports whether what this node takes for its own is its own. When
// the lease is over, others may soon have what is idle, and later also what is
// inside: so first the reserver has to have let go of it.
func (n *Node) truthful() bool {
	m := &n.member
	if !m.isolated || n.options.KeepServing {
		return true
	}
	for k := range m.services {
		for _, sh := range m.services[k].shares {
			if !sh.obeyed || m.cut && sh.held > 0 {
				return false
			}
		}
	}
	return true
}

// hello begins a session.
func (n *Node) hello() {
	m := &n.member
	if !n.truthful() {
		n.endSession()
		return
	}
	m.session++
	m.helloed, m.welcomed, m.leaveSent = true, false, false
	m.helloAt = after(n.now.Mono, n.options.Beat)
	h := Hello{Peer: n.self, Definitions: m.definitions, Leaving: m.leaving}
	for k := range m.services {
		s := &m.services[k]
		s.granted, s.recall, s.told = 0, recall{}, false
		for j := range s.shares {
			sh := &s.shares[j]
			sh.granted, sh.recall = 0, recall{}
			if sh.held > 0 {
				h.Held = append(h.Held, Slots{Service: s.name, Instance: sh.instance.ID, N: sh.held, Network: sh.instance.Network, Address: sh.instance.Address})
			}
		}
	}
	n.send(n.view.Leader, m.session, h)
	n.rebalanceAll()
}

// fromLeader takes a message of the leader.
func (n *Node) fromLeader(msg Message) {
	m := &n.member
	if (msg.Session != m.session || !m.helloed) && !n.faults.anySession && !n.faults.anyView {
		return
	}
	switch b := msg.Body.(type) {
	case Welcome:
		m.welcomed = true
		m.beatAt = n.now.Mono
	case Ack:
		end := b.Sent.Add(b.Rest)
		if n.faults.leaseFromAck {
			end = n.now.Add(b.Rest)
		}
		m.acked = max(m.acked, b.Sent.Mono)
		n.extendLease(end)
		if m.isolated {
			// It came too late. The leader takes it for a lease, and would
			// grant slots that go back at once, again and again.
			n.endSession()
			m.helloAt = after(n.now.Mono, n.options.Beat)
		}
	case Announce:
		n.announced(b)
	case Grant:
		n.grant(b)
	case Recall:
		s := n.service(b.Service)
		r := &s.recall
		if b.Instance != "" {
			r = &s.share(b.Instance).recall
		}
		r.until, r.busy = b.Until, b.Busy
		n.rebalance(s)
	}
}

func (m *member) find(name string) (int, bool) {
	return sort.Find(len(m.services), func(k int) int { return strings.Compare(name, m.services[k].name) })
}

func (n *Node) service(name string) *service {
	m := &n.member
	k, ok := m.find(name)
	if !ok {
		m.services = insert(m.services, k, service{name: name, need: Need{Service: name}})
	}
	return &m.services[k]
}

func (s *service) find(instance string) (int, bool) {
	return sort.Find(len(s.shares), func(k int) int { return strings.Compare(instance, s.shares[k].instance.ID) })
}

func (s *service) share(instance string) *share {
	k, ok := s.find(instance)
	if !ok {
		s.shares = insert(s.shares, k, share{instance: Instance{ID: instance}, obeyed: true})
	}
	return &s.shares[k]
}

func (n *Node) announced(a Announce) {
	s := n.service(a.Service)
	changed := !s.known
	s.known, s.leaders = true, a.Definition
	for k := range s.shares {
		sh := &s.shares[k]
		i, ok := sort.Find(len(a.Instances), func(i int) int { return strings.Compare(sh.instance.ID, a.Instances[i].ID) })
		if ok && (!sh.listed || a.Instances[i] != sh.instance) || !ok && sh.listed {
			changed = true
		}
		if sh.listed = ok; ok {
			sh.instance = a.Instances[i]
		}
	}
	for _, i := range a.Instances {
		if _, ok := s.find(i.ID); !ok {
			sh := s.share(i.ID)
			sh.instance, sh.listed = i, true
			changed = true
		}
	}
	if changed {
		n.emit(Follow{Service: s.name, Instances: a.Instances})
	}
	if n.lead == nil {
		n.emit(Sum{Service: s.name, Load: a.Sum, Others: a.Sum.without(s.sent)})
	}
	n.compare(s)
	s.forgetEnded()
	n.rebalance(s)
}

// forgetEnded drops the shares of instances that have ended, once they have
// nothing inside.
func (s *service) forgetEnded() {
	if s.known {
		s.shares = slices.DeleteFunc(s.shares, func(sh share) bool { return !sh.listed && sh.held == 0 && sh.obeyed })
	}
}

func (n *Node) grant(g Grant) {
	for _, g := range g.Slots {
		s := n.service(g.Service)
		sh := s.share(g.Instance)
		sh.held += g.N
		sh.granted += uint64(g.N)
		s.granted += uint64(g.N)
		n.rebalance(s)
		if s.need.Waiting > 0 {
			s.told = false // what is left of the need
		}
	}
}

func (n *Node) rebalanceAll() {
	for k := range n.member.services {
		n.rebalance(&n.member.services[k])
	}
}

// rebalance decides how many slots of each instance may be used, and orders it.
func (n *Node) rebalance(s *service) {
	closed := n.member.leaving || n.member.isolated && !n.options.KeepServing
	owed := s.owed()
	watch := closed || owed > 0
	limits := make([]int, len(s.shares))
	for k := range s.shares {
		sh := &s.shares[k]
		limits[k] = sh.held
		if closed || s.known && !sh.listed || sh.instance.State == Withdrawn {
			limits[k] = 0
			watch = watch || sh.held > 0
		}
		if o := sh.owed(); o > 0 {
			watch = true
			free := min(o, sh.idle(limits[k]))
			limits[k] -= free
			limits[k] -= min(limits[k], sh.busy, o-free)
		}
		owed -= min(owed, sh.held-limits[k])
	}
	for k := range s.shares {
		free := min(owed, s.shares[k].idle(limits[k]))
		limits[k] -= free
		owed -= free
	}
	s.pin(limits, min(owed, s.busy))
	n.order(s, limits)
	if watch != s.watched {
		s.watched = watch
		n.emit(Watch{Service: s.name, On: watch})
	}
	n.giveBack(s)
}

// idle is how many of so many slots have no request inside.
func (s *share) idle(limit int) int { return max(0, limit-s.occupied()) }

// order tells the reserver the limits that have changed.
func (n *Node) order(s *service, limits []int) {
	for k := range s.shares {
		sh := &s.shares[k]
		if limits[k] == sh.limit {
			continue
		}
		sh.limit, sh.obeyed = limits[k], false
		sh.order++
		slots := sh.limit
		if sh.instance.Slots == Unlimited && slots > 0 {
			slots = Unlimited
		}
		n.emit(SetSlots{Service: s.name, Instance: sh.instance.ID, Slots: slots, Order: sh.order})
	}
}

// pin lowers the limits of instances that are full by so many slots, first
// where that was done before.
func (s *service) pin(limits []int, count int) {
	for k := range s.shares {
		p := min(s.shares[k].pinned, limits[k], count)
		s.shares[k].pinned = p
		limits[k] -= p
		count -= p
	}
	for count > 0 {
		most := -1
		for k := range s.shares {
			if limits[k] > 0 && (most < 0 || limits[k] > limits[most]) {
				most = k
			}
		}
		if most < 0 {
			return
		}
		s.shares[most].pinned++
		limits[most]--
		count--
	}
}

// giveBack returns what the reserver has let go of.
func (n *Node) giveBack(s *service) {
	var back []Slots
	for k := range s.shares {
		sh := &s.shares[k]
		keep := max(sh.limit, sh.occupied())
		if n.faults.returnEarly {
			keep = sh.limit
		} else if !sh.obeyed {
			continue
		}
		if freed := sh.held - keep; freed > 0 {
			sh.held = keep
			sh.returned += uint64(freed)
			s.returned += uint64(freed)
			back = append(back, Slots{Service: s.name, Instance: sh.instance.ID, N: freed})
		}
	}
	if back != nil && n.member.helloed {
		n.send(n.view.Leader, n.member.session, Return{Slots: back})
	}
}

// used takes note of what is inside instances.
func (n *Node) used(e Used) {
	s := n.service(e.Service)
	for _, u := range e.Instances {
		if k, ok := s.find(u.Instance); ok && u.Order == s.shares[k].order {
			s.shares[k].obeyed, s.shares[k].inUse = true, u.InUse
		}
	}
	n.giveBack(s)
	n.rebalance(s)
	s.forgetEnded()
}

func (n *Node) demand(need Need) {
	s := n.service(need.Service)
	s.need = need
}

// tell tells the leader of a need. A change that matters is told at once, others
// with a pause between.
func (n *Node) tell(s *service) {
	m := &n.member
	need := s.needNow()
	if s.told && n.now.Mono < s.tellAt(need) {
		return
	}
	s.sent, s.told, s.sentAt = need, true, n.now.Mono
	n.send(n.view.Leader, m.session, need)
}

// needNow is the need with what was granted.
func (s *service) needNow() Need {
	need := s.need
	need.Granted = s.granted
	need.Bound = slices.Clone(need.Bound)
	for k := range need.Bound {
		if j, ok := s.find(need.Bound[k].Instance); ok {
			need.Bound[k].Granted = s.shares[j].granted
		}
	}
	return need
}

// tellAt is when the leader is to be told of a need.
func (s *service) tellAt(need Need) int64 {
	was := s.sent
	switch {
	case need.Waiting == was.Waiting && need.InUse == was.InUse && need.Demand == was.Demand &&
		need.Peak == was.Peak && need.Arrivals == was.Arrivals && need.Granted == was.Granted && slices.EqualFunc(need.Bound, was.Bound, func(a, b BoundNeed) bool {
		a.Oldest = b.Oldest
		return a == b
	}):
		return never
	case (need.Waiting > 0) != (was.Waiting > 0), (need.Demand > 0) != (was.Demand > 0),
		need.Waiting >= 2*was.Waiting && need.Waiting > 0, len(need.Bound) != len(was.Bound):
		return s.sentAt
	}
	return after(s.sentAt, needPause)
}

func (n *Node) define(d []Definition) {
	m := &n.member
	m.definitions = slices.Clone(d)
	for k := range m.services {
		n.compare(&m.services[k])
	}
	if n.lead != nil {
		n.lead.define(d)
		for k := range n.lead.rows {
			n.compareWith(&n.lead.rows[k])
		}
	} else if m.helloed && n.connected(n.view.Leader) {
		n.hello() // the leader compares too
	}
}

// compare tells whether the leader's definition of a service is another one.
func (n *Node) compare(s *service) {
	differs := false
	for _, d := range n.member.definitions {
		if d.Service == s.name {
			differs = s.known && s.leaders != "" && d.Hash != s.leaders
		}
	}
	if differs != s.differs {
		s.differs = differs
		n.emit(Differs{Service: s.name, Boot: n.self.Boot, On: differs})
	}
}

func (n *Node) leave() {
	m := &n.member
	if m.leaving {
		return
	}
	m.leaving = true
	if m.gone(n) {
		n.emit(Left{})
		return
	}
	n.rebalanceAll()
	if m.helloed {
		n.hello() // says that it leaves
	}
}

// HoldsNothing reports whether this Caddy has no slots.
func (n *Node) HoldsNothing() bool {
	for k := range n.member.services {
		for _, sh := range n.member.services[k].shares {
			if sh.held > 0 {
				return false
			}
		}
	}
	return true
}

func (n *Node) actAsMember() {
	m := &n.member
	if m.gone(n) || n.view.Number == 0 || !n.connected(n.view.Leader) || n.view.Leader == "" {
		return
	}
	if !m.welcomed {
		if n.now.Mono >= m.helloAt {
			n.hello()
		}
		return
	}
	if n.now.Mono >= m.beatAt {
		m.beatAt = after(n.now.Mono, n.options.Beat)
		n.send(n.view.Leader, m.session, Heartbeat{Sent: n.now})
	}
	for k := range m.services {
		n.tell(&m.services[k])
	}
	if m.leaving && !m.leaveSent && n.HoldsNothing() {
		m.leaveSent = true
		n.send(n.view.Leader, m.session, Leave{})
	}
}

func (n *Node) scheduleMember() {
	m := &n.member
	if !m.isolated {
		n.due(max(n.now.Mono+1, n.now.Mono+int64(n.now.until(m.leaseEnd))))
	} else if !m.cut && !n.options.KeepServing && !n.options.Replace && !n.HoldsNothing() {
		n.due(n.now.Mono + int64(n.now.until(m.leaseEnd.Add(n.options.cutAfter()))))
	}
	if m.gone(n) || n.view.Number == 0 || !n.connected(n.view.Leader) || n.view.Leader == "" {
		return
	}
	if !m.welcomed {
		if n.truthful() {
			n.due(m.helloAt)
		}
		return
	}
	n.due(m.beatAt)
	for k := range m.services {
		s := &m.services[k]
		switch at := s.tellAt(s.needNow()); {
		case !s.told: // it came with the last messages of this step
			n.due(n.now.Mono)
		case at != never:
			n.due(at)
		}
	}
}

// Held returns the slots that this Caddy holds of a service: for the admin API
// and metrics.
func (n *Node) Held(name string) (held []Slots) {
	k, ok := n.member.find(name)
	if !ok {
		return nil
	}
	for _, sh := range n.member.services[k].shares {
		held = append(held, Slots{Service: name, Instance: sh.instance.ID, N: sh.held})
	}
	return held
}

// LeaseLeft returns how long the lease still lasts; 0 if it is over.
func (n *Node) LeaseLeft() time.Duration { return max(0, n.now.until(n.member.leaseEnd)) }

package cluster

import (
	"slices"
	"sort"
	"strings"
)

// leader is a node's part as the one that divides the slots.
type leader struct {
	term    uint64  // the view in which it took over
	confirm Instant // no other Caddy leads before this moment
	told    bool    // Confirmed is on

	// blind is when all Caddys that no member knows of have no request inside
	// any more; 0 if there can be none.
	blind int64

	// quiet is when leases may be given after the coordinator has shown a view
	// that it should not: a Caddy that followed that one takes what others held for
	// free by then, so all of it has to end first.
	quiet int64

	// unsettled is true while Caddys may hold slots of which the leader knows
	// nothing: unknown of each instance.
	unsettled bool

	rows    []row // of the members and the lost ones, sorted by boot
	joining []Peer
	ledgers []ledger // sorted by service

	vacancies []vacancy

	round, rounds uint64 // that is open, or 0; and how many there were
	roundBegun    Instant
	answered      []string
}

// row is what the leader knows of one Caddy.
type row struct {
	peer    Peer
	session uint64
	known   bool // a Hello came in this session and view
	leased  bool // and it got a lease since: it may get slots
	unheard bool // it may hold unknown slots
	lost    bool // it is no member
	leaving bool
	left    bool
	heard   int64   // when a message came last
	beat    Instant // of the latest heartbeat
	beats   bool    // it is not answered yet
	until   int64   // its lease is over then, at the latest
	defines []Definition
	differs []string
}

// ledger is what the leader knows of one service.
type ledger struct {
	name       string
	definition string
	instances  []entry // sorted by ID
	claims     []claim // sorted by boot
	bound      bool    // slots of single instances were asked for
	dirty      bool    // the division has to be looked at
	changed    bool    // the members have to be told
	sum        Load
	summed     bool
	sumAt      int64 // when the members were told of a sum
	planAt     int64 // when time alone changes the division
}

// entry is one instance. Invariant: for each Caddy, its holding is no less than
// the slots that it holds; as long as a Caddy is unheard, the slots that it
// holds are in unknown.
type entry struct {
	instance Instance
	listed   bool
	unknown  int
	holdings []holding // sorted by boot

	empty, replaced bool // it was told
	waits           bool // it may be reached in the slots of an instance that has left its address
}

// holding is what one Caddy may hold of an instance.
type holding struct {
	boot          string
	n             int
	granted, back uint64 // in its session
	asked         uint64
	busy          int
}

// claim is what one Caddy needs of a service.
type claim struct {
	boot    string
	need    Need
	since   int64  // the oldest request waits since then
	granted uint64 // in its session
	back    uint64
	asked   uint64
	busy    int
}

func (e *entry) held() (sum int) {
	for _, h := range e.holdings {
		sum += h.n
	}
	return sum
}

// free is how many slots can be granted: those that no Caddy can hold, unless the
// instance is to go. It may be negative, after the number of slots was lowered.
func (e *entry) free() int {
	switch {
	case !e.listed || e.waits || e.replaced || e.instance.Slots == Unlimited:
		return 0
	}
	return e.instance.Slots - e.held() - e.unknown
}

func (e *entry) holding(boot string) *holding {
	k, ok := sort.Find(len(e.holdings), func(k int) int { return strings.Compare(boot, e.holdings[k].boot) })
	if !ok {
		e.holdings = insert(e.holdings, k, holding{boot: boot})
	}
	return &e.holdings[k]
}

func (e *entry) heldBy(boot string) int {
	for _, h := range e.holdings {
		if h.boot == boot {
			return h.n
		}
	}
	return 0
}

func (l *leader) row(boot string) *row {
	for k := range l.rows {
		if l.rows[k].peer.Boot == boot {
			return &l.rows[k]
		}
	}
	return nil
}

func (l *leader) sortRows() {
	sort.Slice(l.rows, func(i, k int) bool { return l.rows[i].peer.Boot < l.rows[k].peer.Boot })
}

func (l *leader) find(name string) (int, bool) {
	return sort.Find(len(l.ledgers), func(k int) int { return strings.Compare(name, l.ledgers[k].name) })
}

func (l *leader) ledger(name string) *ledger {
	k, ok := l.find(name)
	if !ok {
		l.ledgers = insert(l.ledgers, k, ledger{name: name, planAt: never})
	}
	return &l.ledgers[k]
}

func (s *ledger) find(instance string) (int, bool) {
	return sort.Find(len(s.instances), func(k int) int { return strings.Compare(instance, s.instances[k].instance.ID) })
}

// entry returns the record of an instance, which is made if there is none.
func (s *ledger) entry(instance string) *entry {
	k, ok := s.find(instance)
	if !ok {
		s.instances = insert(s.instances, k, entry{instance: Instance{ID: instance}})
	}
	return &s.instances[k]
}

func (s *ledger) claim(boot string) *claim {
	k, ok := sort.Find(len(s.claims), func(k int) int { return strings.Compare(boot, s.claims[k].boot) })
	if !ok {
		s.claims = insert(s.claims, k, claim{boot: boot, need: Need{Service: s.name}})
	}
	return &s.claims[k]
}

// takeOver makes this node the leader. What the members hold is not known
// before they say so. Risky is true if there may be Caddys that hold slots and
// that the view does not name.
func (n *Node) takeOver(risky bool) {
	l := &leader{term: n.view.Number, unsettled: true}
	n.lead = l
	now := n.now.Mono
	for _, p := range slices.Concat(n.view.Members, n.view.Lost) {
		if !n.isDead(p.Boot) {
			l.rows = append(l.rows, row{
				peer: p, unheard: true, lost: !n.view.Has(p.Boot), heard: now,
				until: after(now, n.options.Lease),
			})
		}
	}
	l.sortRows()
	if risky && !n.faults.trustFound {
		l.blind = after(now, n.options.Lease+n.options.LostAfter)
	}
	if n.faults.noWait {
		for k := range l.rows {
			l.rows[k].unheard = l.rows[k].peer.Boot == n.self.Boot
		}
	}
	// What the former leader announced, until the control loops say more.
	for _, s := range n.member.services {
		if !s.known {
			continue
		}
		led := l.ledger(s.name)
		for _, sh := range s.shares {
			if sh.listed {
				e := led.entry(sh.instance.ID)
				e.instance, e.listed = sh.instance, true
				e.instance.Fresh = false
				e.unknown = slotsOf(sh.instance)
			}
		}
	}
	l.define(n.member.definitions)
	n.settle()
}

func slotsOf(i Instance) int {
	if i.Slots == Unlimited {
		return 1
	}
	return i.Slots
}

func (l *leader) define(d []Definition) {
	for _, d := range d {
		s := l.ledger(d.Service)
		if s.definition != d.Hash {
			s.definition, s.changed = d.Hash, true
		}
	}
}

// adopt goes on as the leader in a view that this node has made.
func (n *Node) adopt() {
	l := n.lead
	l.joining, l.round = nil, 0
	for k := range l.rows {
		r := &l.rows[k]
		r.known, r.leased, r.lost = false, false, !n.view.Has(r.peer.Boot)
		r.heard = max(r.heard, n.now.Mono)
	}
	for _, p := range n.view.Members {
		if l.row(p.Boot) == nil {
			// It could get no slots from other members before it was in the view.
			l.rows = append(l.rows, row{peer: p, heard: n.now.Mono, until: n.now.Mono})
		}
	}
	l.sortRows()
}

// disconnected ends the session of a member.
func (l *leader) disconnected(boot string) {
	if r := l.row(boot); r != nil {
		r.known, r.leased = false, false
	}
	l.joining = slices.DeleteFunc(slices.Clone(l.joining), func(p Peer) bool { return p.Boot == boot })
	l.lookAgain()
}

// lookAgain makes the division of all services be looked at.
func (l *leader) lookAgain() {
	for k := range l.ledgers {
		l.ledgers[k].dirty = true
	}
}

// fromMember takes a message of a member.
func (n *Node) fromMember(from string, msg Message) {
	l := n.lead
	r := l.row(from)
	switch b := msg.Body.(type) {
	case Still:
		n.still(from, b)
		return
	case Hello:
		n.helloFrom(from, msg.Session, b)
		return
	}
	if r == nil || !r.known || r.session != msg.Session && !n.faults.anySession {
		return
	}
	r.heard = n.now.Mono
	switch b := msg.Body.(type) {
	case Heartbeat:
		r.beat, r.beats = b.Sent, true
		n.ack(r)
	case Return:
		l.returned(from, b)
	case Need:
		s := l.ledger(b.Service)
		c := s.claim(from)
		c.need = b
		c.since = n.now.Mono - int64(b.Oldest)
		s.dirty = true
	case Leave:
		if !l.holds(from) {
			r.left = true
		}
	}
}

// ack answers a heartbeat, once no other Caddy can lead. An answer that comes
// late gives a shorter lease.
func (n *Node) ack(r *row) {
	l := n.lead
	if !r.beats || !r.known || n.now.reached(l.confirm) && !n.faults.noConfirm {
		return
	}
	rest := n.now.until(l.confirm)
	if n.faults.noConfirm {
		rest = n.options.Lease
	}
	r.beats = false
	r.until = max(r.until, l.confirm.Mono)
	if !r.leased {
		r.leased = true
		l.lookAgain()
	}
	n.send(r.peer.Boot, r.session, Ack{Sent: r.beat, Rest: rest})
}

func (l *leader) returned(from string, b Return) {
	for _, back := range b.Slots {
		s := l.ledger(back.Service)
		s.dirty = true
		c := s.claim(from)
		c.back += uint64(back.N)
		if k, ok := s.find(back.Instance); ok {
			h := s.instances[k].holding(from)
			h.n -= back.N
			h.back += uint64(back.N)
			s.tidy()
		}
	}
}

// holds reports whether a Caddy may have requests inside an instance.
func (l *leader) holds(boot string) bool {
	for k := range l.ledgers {
		for j := range l.ledgers[k].instances {
			if l.ledgers[k].instances[j].heldBy(boot) > 0 {
				return true
			}
		}
	}
	return false
}

// helloFrom begins a session with a member: from now on its row is what it
// says that it holds.
func (n *Node) helloFrom(from string, session uint64, h Hello) {
	l := n.lead
	r := l.row(from)
	if h.Peer.Boot != from || n.isDead(from) || r != nil && session <= r.session {
		return
	}
	if !n.view.Has(from) && !n.faults.grantOutsider {
		if !h.Leaving {
			l.joining = with(l.joining, h.Peer)
		}
		return
	}
	if r == nil {
		if !n.faults.grantOutsider {
			return
		}
		l.rows = append(l.rows, row{peer: h.Peer})
		r = &l.rows[len(l.rows)-1]
	}
	if !l.agrees(r, h.Held) && !n.faults.forceHello {
		// It was written off, and others may have got what it held. It comes
		// back when its requests have ended.
		n.emit(Disconnect{Boot: from})
		return
	}
	n.set(r, h.Held)
	r.session, r.known, r.unheard, r.lost, r.left = session, true, false, false, false
	r.leased, r.leaving, r.heard = false, h.Leaving, n.now.Mono
	n.settle()
	n.send(from, session, Welcome{})
	r.defines, r.beats = h.Definitions, false
	n.compareWith(r)
	for k := range l.ledgers {
		n.announce(&l.ledgers[k], r)
	}
	l.lookAgain()
}

// agrees reports whether a member can hold what it says: what the ledger has,
// or what no other Caddy can have got.
func (l *leader) agrees(r *row, held []Slots) bool {
	if r.unheard {
		return true
	}
	for _, h := range held {
		s := l.ledger(h.Service)
		k, ok := s.find(h.Instance)
		if !ok || !s.instances[k].listed {
			continue
		}
		e := &s.instances[k]
		if had := e.heldBy(r.peer.Boot); h.N > had && h.N > had+e.free() && e.instance.Slots != Unlimited {
			return false
		}
	}
	return true
}

// set replaces what a Caddy holds.
func (n *Node) set(r *row, held []Slots) {
	l, boot := n.lead, r.peer.Boot
	for k := range l.ledgers {
		s := &l.ledgers[k]
		for j := range s.instances {
			s.instances[j].drop(boot)
		}
		s.claims = slices.DeleteFunc(s.claims, func(c claim) bool { return c.boot == boot })
	}
	for _, h := range held {
		e := l.ledger(h.Service).entry(h.Instance)
		e.holding(boot).n = h.N
		n.vacated(e, h)
		if r.unheard {
			e.unknown = max(0, e.unknown-h.N)
		}
	}
	for k := range l.ledgers {
		l.ledgers[k].tidy()
	}
}

func (e *entry) drop(boot string) {
	e.holdings = slices.DeleteFunc(e.holdings, func(h holding) bool { return h.boot == boot })
}

// tidy forgets instances that have ended and of which no Caddy holds a slot.
func (s *ledger) tidy() {
	s.instances = slices.DeleteFunc(s.instances, func(e entry) bool { return !e.listed && e.held() == 0 })
}

// compareWith tells which definitions of a member are not the leader's.
func (n *Node) compareWith(r *row) {
	if r.peer.Boot == n.self.Boot {
		return
	}
	var differ []string
	for _, d := range r.defines {
		if s := n.lead.ledger(d.Service); s.definition != "" && s.definition != d.Hash {
			differ = append(differ, d.Service)
		}
	}
	for _, was := range r.differs {
		if !slices.Contains(differ, was) {
			n.emit(Differs{Service: was, Boot: r.peer.Boot})
		}
	}
	for _, is := range differ {
		if !slices.Contains(r.differs, is) {
			n.emit(Differs{Service: is, Boot: r.peer.Boot, On: true})
		}
	}
	r.differs = differ
}

// writeOff frees what a Caddy held: it cannot have requests inside any more.
func (n *Node) writeOff(boot string) {
	l := n.lead
	for k := range l.ledgers {
		s := &l.ledgers[k]
		for j := range s.instances {
			s.instances[j].drop(boot)
		}
		s.claims = slices.DeleteFunc(s.claims, func(c claim) bool { return c.boot == boot })
		s.tidy()
		s.dirty = true
	}
	l.rows = slices.DeleteFunc(slices.Clone(l.rows), func(r row) bool { return r.peer.Boot == boot })
	l.joining = slices.DeleteFunc(slices.Clone(l.joining), func(p Peer) bool { return p.Boot == boot })
	n.settle()
}

// settle frees unknown slots when no Caddy can hold them.
func (n *Node) settle() {
	l := n.lead
	if !l.unsettled || n.now.Mono < l.blind || slices.ContainsFunc(l.rows, func(r row) bool { return r.unheard }) {
		return
	}
	l.unsettled = false
	for k := range l.ledgers {
		s := &l.ledgers[k]
		s.dirty = true
		for j := range s.instances {
			s.instances[j].unknown = 0
		}
	}
}

// list takes the instances of a service from its control loop.
func (n *Node) list(e Listed) {
	l := n.lead
	s := l.ledger(e.Service)
	s.dirty = true
	for k := range s.instances {
		if in := &s.instances[k]; in.listed && !slices.ContainsFunc(e.Instances, func(i Instance) bool { return i.ID == in.instance.ID }) {
			// It has ended: no Caddy can have a request inside, unless something
			// else is at its address.
			n.vacate(s.name, in)
			in.listed, in.unknown, s.changed = false, 0, true
			in.holdings = slices.DeleteFunc(in.holdings, func(h holding) bool {
				r := l.row(h.boot)
				return r == nil || r.lost && (in.instance.Address == "" || n.options.Replace && n.now.Mono >= r.until)
			})
		}
	}
	for _, i := range e.Instances {
		in := s.entry(i.ID)
		switch was := in.instance; {
		case !in.listed:
			if l.unsettled && !i.Fresh {
				in.unknown = max(0, slotsOf(i)-in.held())
			}
		case l.unsettled && !i.Fresh && i.Slots > was.Slots && was.Slots != Unlimited:
			// An earlier leader may have raised it before.
			in.unknown += i.Slots - was.Slots
		}
		if !in.listed || in.instance != i {
			s.changed = true
			if i.State != Withdrawn {
				in.empty = false
			}
		}
		in.instance, in.listed = i, true
	}
	s.tidy()
}

// Lost returns how many slots of a service lost Caddys may hold, so that no
// other one can use them. Only the leader knows of any.
func (n *Node) Lost(name string) (sum int) {
	l := n.lead
	if l == nil {
		return 0
	}
	k, ok := l.find(name)
	if !ok {
		return 0
	}
	for _, e := range l.ledgers[k].instances {
		sum += e.unknown
		for _, h := range e.holdings {
			if r := l.row(h.boot); r == nil || r.lost {
				sum += h.n
			}
		}
	}
	return sum
}

package cluster

import (
	"cmp"
	"slices"
	"sort"
)

// sumPause is the least time between two sums that members are told of one
// service.
const sumPause = 200e6

// divide gives free slots to those who need them, and asks for slots where
// there are too few: for each service of which something has changed.
func (n *Node) divide() {
	l := n.lead
	n.settleVacancies()
	for k := range l.ledgers {
		s := &l.ledgers[k]
		if n.now.Mono >= s.planAt {
			s.planAt, s.dirty = never, true
		}
		if !s.dirty && !s.changed && !(s.summed && n.now.Mono >= s.sumAt) {
			continue
		}
		if s.dirty {
			n.sum(s)
		}
		n.tellMembers(s)
		if s.dirty && n.confirmed() {
			s.dirty = false
			d := division{node: n, ledger: s}
			d.plan()
		}
	}
}

// sum adds up what the members say of a service.
func (n *Node) sum(s *ledger) {
	var sum, others Load
	for _, c := range s.claims {
		sum.add(c.need)
		if c.boot != n.self.Boot {
			others.add(c.need)
		}
	}
	if sum != s.sum {
		s.sum, s.summed = sum, true
		n.emit(Sum{Service: s.name, Load: sum, Others: others})
	}
}

func (l *Load) add(n Need) {
	l.Waiting += n.Waiting
	l.Visitors += n.Visitors
	for _, b := range n.Bound {
		l.Waiting += b.Waiting
	}
	if n.Waiting > 0 {
		l.Oldest = max(l.Oldest, n.Oldest)
	}
	l.InUse += n.InUse
	l.Demand += n.Demand
	l.Peak += n.Peak
	l.Arrivals += n.Arrivals
}

// without returns the load that is left if a part of it is taken away. That may
// be older or younger than the sum, so nothing becomes negative.
func (l Load) without(n Need) Load {
	var part Load
	part.add(n)
	l.Waiting = max(0, l.Waiting-part.Waiting)
	l.Visitors = max(0, l.Visitors-part.Visitors)
	l.InUse = max(0, l.InUse-part.InUse)
	l.Demand = max(0, l.Demand-part.Demand)
	l.Peak = max(0, l.Peak-part.Peak)
	l.Arrivals -= min(l.Arrivals, part.Arrivals)
	return l
}

// tellMembers tells the members of changed instances at once, and of sums with
// pauses between.
func (n *Node) tellMembers(s *ledger) {
	if !s.changed && !(s.summed && n.now.Mono >= s.sumAt) {
		if s.summed {
			s.planAt = min(s.planAt, s.sumAt)
		}
		return
	}
	s.changed, s.summed, s.sumAt = false, false, n.now.Mono+sumPause
	for k := range n.lead.rows {
		if r := &n.lead.rows[k]; r.known {
			n.announce(s, r)
		}
	}
}

func (n *Node) announce(s *ledger, r *row) {
	a := Announce{Service: s.name, Definition: s.definition, Sum: s.sum}
	for k := range s.instances {
		if s.instances[k].listed {
			a.Instances = append(a.Instances, s.instances[k].instance)
		}
	}
	n.send(r.peer.Boot, r.session, a)
}

// division is one look at the slots of one service.
type division struct {
	node   *Node
	ledger *ledger
	takers []taker
	grants map[string][]Slots
}

// taker is a member, and what it can still take.
type taker struct {
	row     *row
	claim   *claim
	missing int // requests that wait and for which no slot is on its way
	held    int
	idle    int // slots that it seems not to need
}

// waitsSince is since when the oldest request waits that has no slot yet. Of a
// number of requests only the oldest is known; the others are taken to have
// come evenly since.
func (t *taker) waitsSince(now int64) int64 {
	all := int64(t.claim.need.Waiting)
	if all == 0 {
		return never
	}
	served := all - int64(t.missing)
	return t.claim.since + (now-t.claim.since)/all*served
}

func (d *division) plan() {
	d.node.lead.closeVacant(d.ledger)
	d.collect()
	d.serveBound()
	for d.serveOldest() {
	}
	d.placeRest()
	d.recall()
	d.send()
	d.tellEmpty()
}

// collect finds who can take slots.
func (d *division) collect() {
	n, s := d.node, d.ledger
	for k := range n.lead.rows {
		r := &n.lead.rows[k]
		if !r.leased || r.leaving {
			continue
		}
		s.claim(r.peer.Boot)
		d.takers = append(d.takers, taker{row: r})
	}
	for k := range d.takers {
		t := &d.takers[k]
		t.claim = s.claim(t.row.peer.Boot)
		c := t.claim
		onTheWay := int(c.granted - min(c.granted, c.need.Granted))
		t.missing = max(0, c.need.Waiting-onTheWay)
		for j := range s.instances {
			if e := &s.instances[j]; e.listed && e.instance.State == Open {
				t.held += e.heldBy(t.row.peer.Boot)
			}
		}
		if c.need.Waiting == 0 {
			t.idle = max(0, t.held-c.need.InUse)
		}
	}
	d.grants = make(map[string][]Slots)
}

// give grants slots of an instance.
func (d *division) give(e *entry, t *taker, count int) {
	boot := t.row.peer.Boot
	h := e.holding(boot)
	h.n += count
	h.granted += uint64(count)
	t.claim.granted += uint64(count)
	t.held += count
	d.grants[boot] = append(d.grants[boot], Slots{Service: d.ledger.name, Instance: e.instance.ID, N: count})
}

// serveBound serves the requests that wait for one instance alone.
func (d *division) serveBound() {
	for k := range d.takers {
		t := &d.takers[k]
		for _, b := range t.claim.need.Bound {
			j, ok := d.ledger.find(b.Instance)
			if !ok {
				continue
			}
			e := &d.ledger.instances[j]
			if !e.listed || e.instance.State == Withdrawn {
				continue
			}
			if count := min(d.missingBound(e, t, b), e.free()); count > 0 {
				d.give(e, t, count)
			}
		}
	}
}

func (d *division) missingBound(e *entry, t *taker, b BoundNeed) int {
	h := e.holding(t.row.peer.Boot)
	return max(0, b.Waiting-int(h.granted-min(h.granted, b.Granted)))
}

// serveOldest gives a free slot to the member with the oldest request.
func (d *division) serveOldest() bool {
	var to *taker
	now := d.node.now.Mono
	for k := range d.takers {
		if t := &d.takers[k]; t.missing > 0 && (to == nil || t.waitsSince(now) < to.waitsSince(now)) {
			to = t
		}
	}
	if to == nil {
		return false
	}
	// Of an instance that it has a part of, or else of the one with the most
	// left, so that instances are in few hands.
	var from *entry
	for k := range d.ledger.instances {
		e := &d.ledger.instances[k]
		if e.instance.State != Open || e.free() <= 0 {
			continue
		}
		if from == nil || d.prefers(to, e, from) {
			from = e
		}
	}
	if from == nil {
		return false
	}
	d.give(from, to, 1)
	to.missing--
	return true
}

func (d *division) prefers(to *taker, e, f *entry) bool {
	boot := to.row.peer.Boot
	return cmp.Or(
		cmp.Compare(min(e.heldBy(boot), 1), min(f.heldBy(boot), 1)),
		cmp.Compare(e.free(), f.free()),
	) > 0
}

// placeRest places slots that no request waits for, all of an instance with one
// member, so that the loss of a member is the loss of few instances.
func (d *division) placeRest() {
	if len(d.takers) == 0 {
		return
	}
	peers := make([]Peer, len(d.takers))
	for k := range d.takers {
		peers[k] = d.takers[k].row.peer
	}
	for k := range d.ledger.instances {
		e := &d.ledger.instances[k]
		if !e.listed || e.instance.State != Open {
			continue
		}
		if e.instance.Slots == Unlimited && !e.waits {
			for j := range d.takers {
				if t := &d.takers[j]; e.heldBy(t.row.peer.Boot) == 0 {
					d.give(e, t, 1)
				}
			}
			continue
		}
		free := e.free()
		if free <= 0 {
			continue
		}
		owner := rendezvous(e.instance.ID, peers)
		for j := range d.takers {
			if d.takers[j].row.peer.Boot == owner {
				d.give(e, &d.takers[j], free)
			}
		}
	}
}

// recall asks for slots for those who still miss some, and takes back what was
// asked for in vain.
func (d *division) recall() {
	d.recallBound()
	missing, oldest := 0, (*taker)(nil)
	now := d.node.now.Mono
	for k := range d.takers {
		t := &d.takers[k]
		missing += t.missing
		if t.missing > 0 && (oldest == nil || t.waitsSince(now) < oldest.waitsSince(now)) {
			oldest = t
		}
	}
	wants := make([]int, len(d.takers))
	busy := make([]int, len(d.takers))
	if missing > 0 {
		d.fromThoseWithoutWaiters(wants, missing)
		d.fair(wants, busy, oldest)
	}
	for k := range d.takers {
		t := &d.takers[k]
		c := t.claim
		asked := c.back + uint64(wants[k])
		if wants[k] == 0 && c.asked <= c.back {
			continue // it owes nothing, and knows it
		}
		if asked != c.asked || busy[k] != c.busy {
			c.asked, c.busy = asked, busy[k]
			d.node.send(t.row.peer.Boot, t.row.session, Recall{Service: d.ledger.name, Until: asked, Busy: busy[k]})
		}
	}
}

// fromThoseWithoutWaiters asks first for slots that seem to be idle. If those
// are too few, every member without waiters is asked for the rest: the first
// that becomes free, anywhere, comes.
func (d *division) fromThoseWithoutWaiters(wants []int, missing int) {
	order := make([]int, 0, len(d.takers))
	for k := range d.takers {
		if d.takers[k].claim.need.Waiting == 0 {
			order = append(order, k)
		}
	}
	sort.SliceStable(order, func(i, k int) bool { return d.takers[order[i]].idle > d.takers[order[k]].idle })
	for _, k := range order {
		take := min(d.takers[k].idle, missing)
		wants[k] += take
		missing -= take
	}
	for _, k := range order {
		wants[k] = min(d.takers[k].held, wants[k]+missing)
	}
}

// fair asks for slots that others need too, if a request waits for much longer
// than theirs.
func (d *division) fair(wants, busy []int, oldest *taker) {
	now, pause := d.node.now.Mono, int64(d.node.options.Fair)
	since := oldest.waitsSince(now)
	if now < since+pause {
		d.ledger.planAt = min(d.ledger.planAt, since+pause)
		return
	}
	// One slot after the first pause and one more after each further one, or at
	// once as many as belong to it by the number of those that wait.
	count := max(int((now-since)/pause), d.share(oldest)-oldest.held)
	count = min(count, oldest.missing)
	d.ledger.planAt = min(d.ledger.planAt, now+pause)
	for ; count > 0; count-- {
		from := -1
		for k := range d.takers {
			t := &d.takers[k]
			// Its oldest request counts as it said: a slot that was just granted
			// must not be taken back before it is used.
			if t == oldest || t.held <= busy[k] || t.claim.need.Waiting > 0 && t.claim.since < since+pause {
				continue
			}
			if from < 0 || t.held-busy[k] > d.takers[from].held-busy[from] {
				from = k
			}
		}
		if from < 0 {
			return
		}
		busy[from]++
		wants[from] = max(wants[from], busy[from])
	}
}

// share is how many slots a member would have if they were divided by the
// number of requests that wait and are inside.
func (d *division) share(t *taker) int {
	slots, all := 0, 0
	for k := range d.takers {
		slots += d.takers[k].held
		all += d.takers[k].claim.need.Waiting + d.takers[k].claim.need.InUse
	}
	if all == 0 {
		return 0
	}
	return slots * (t.claim.need.Waiting + t.claim.need.InUse) / all
}

// recallBound asks for slots of single instances.
func (d *division) recallBound() {
	needed := slices.ContainsFunc(d.takers, func(t taker) bool { return len(t.claim.need.Bound) > 0 })
	if !needed && !d.ledger.bound {
		return
	}
	d.ledger.bound = needed
	now, pause := d.node.now.Mono, int64(d.node.options.Fair)
	for k := range d.ledger.instances {
		e := &d.ledger.instances[k]
		if !e.listed || e.instance.State == Withdrawn || e.instance.Slots == Unlimited {
			continue
		}
		missing, longest := 0, int64(0)
		var who string
		for j := range d.takers {
			t := &d.takers[j]
			for _, b := range t.claim.need.Bound {
				if b.Instance == e.instance.ID {
					if m := d.missingBound(e, t, b); m > 0 {
						missing += m
						if since := t.claim.since + int64(t.claim.need.Oldest-b.Oldest); now-since >= longest {
							longest, who = now-since, t.row.peer.Boot
						}
					}
				}
			}
		}
		if missing > 0 && longest < pause {
			d.ledger.planAt = min(d.ledger.planAt, now-longest+pause)
		}
		for j := range d.takers {
			t := &d.takers[j]
			h := e.holding(t.row.peer.Boot)
			want, busy := 0, 0
			if t.row.peer.Boot != who {
				want = min(missing, h.n)
				if longest >= pause {
					busy = want
				}
			}
			asked := h.back + uint64(want)
			if want == 0 && h.asked <= h.back || asked == h.asked && busy == h.busy {
				continue
			}
			h.asked, h.busy = asked, busy
			d.node.send(t.row.peer.Boot, t.row.session, Recall{Service: d.ledger.name, Instance: e.instance.ID, Until: asked, Busy: busy})
		}
	}
}

// send sends what was given, to each member in one message.
func (d *division) send() {
	for k := range d.takers {
		r := d.takers[k].row
		if g := d.grants[r.peer.Boot]; g != nil {
			d.node.send(r.peer.Boot, r.session, Grant{Slots: g})
		}
	}
}

// tellEmpty tells which withdrawn instances have no request inside any more.
func (d *division) tellEmpty() {
	for k := range d.ledger.instances {
		e := &d.ledger.instances[k]
		if e.listed && e.instance.State == Withdrawn && e.held() == 0 && e.unknown == 0 && !e.waits && !e.empty {
			e.empty = true
			d.node.emit(Empty{Service: d.ledger.name, Instance: e.instance.ID})
		}
	}
}

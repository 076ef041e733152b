package reserver

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// model is a service said as plainly as possible: the queue is one slice, and
// whatever can be counted is counted anew each time. It is driven side by
// side with a Service (see machine), which has to agree with it in every
// step. Where the Service has a choice, between instances, the model only
// checks that the choice was allowed.
type model struct {
	opts      Options
	refusal   error
	arrivals  uint64
	queue     []*party // requests and visitors, in the order of their turns
	called    []*party // visitors whose turn has come and whose request has not
	instances []*place // in the order of Add, without the removed ones

	left *place            // by a request, in this step
	from *place            // the same, also if it was removed
	had  int               // how many were inside that before
	ring []uint64          // the shares that have waiters, in the order of their turns
	keys map[uint64]*place // where the session of a key is

	refusedDemand bool
	watchFreed    bool
	peak, mark    int
	lastDemand    int

	// What a step is expected to cause; cleared by begin.
	rang      int // calls of Hooks.Demand
	idleMoved bool
	ejected   []*Instance
	asked     []*Instance // that Hooks.VerifyRequested is to be called for
	drained   []*Instance
	used      []*Instance // that Hooks.Spent is to be called for
	freed     []*Instance // that the function of SetFreed is to be called for

	errs []string
}

// party is a request or a visitor as the model sees it. A visitor's request
// uses the party's reservation.
type party struct {
	r            *Reservation
	g            *Visitor
	state        partyState
	quiet, again bool
	doubt        bool // its last instance was doubted for it
	ask          Ask
	bound        *place // it waits for this one alone
	lost         bool   // its session was on an instance that serves no more
	session      Session
	at           *place
	restored     int   // of the place, when the slot was given
	reason       error // what Granted has to deliver
	joined       time.Time
	interrupted  int
}

type partyState string

const (
	outside  partyState = "outside"
	inQueue  partyState = "in queue"
	granted  partyState = "granted"  // holds a slot and has not heard of it
	rejected partyState = "rejected" // was refused and has not heard of it
	inside   partyState = "inside"

	// Of visitors.
	visiting partyState = "visiting" // has a place in the queue
	called   partyState = "called"
	sentAway partyState = "sent away"
)

// place is an instance as the model sees it.
type place struct {
	i                           *Instance
	slots                       int
	cordoned, ejected, removed  bool
	strikes, ejections, restore int
	suspected, verifyRequested  bool
	retired, spent              bool
	served                      int
	pause                       time.Duration
	inside                      []*party
}

func (p *place) open() bool { return !p.cordoned && !p.ejected && !p.removed && !p.spent }

func (p *place) room() bool { return p.open() && p.free() }

func (p *place) free() bool {
	return !p.suspected && !p.spent && p.slots != NoSlots && (p.slots == Unlimited || len(p.inside) < p.slots)
}

// keeps: its sessions are served, also while it drains.
func (p *place) keeps() bool { return !p.ejected && !p.removed && !p.retired && !p.spent }

// load is the part of the slots in use. Those without a limit count as very
// large.
func (p *place) load() float64 {
	if p.slots == Unlimited {
		return float64(len(p.inside)) / (1 << 20)
	}
	return float64(len(p.inside)) / float64(p.slots)
}

func (p *place) demand() (n int) {
	for _, x := range p.inside {
		if !x.quiet && !p.cordoned && !p.removed {
			n++
		}
	}
	return n
}

func (m *model) failf(format string, args ...any) {
	m.errs = append(m.errs, fmt.Sprintf(format, args...))
}

func (m *model) begin() {
	m.rang, m.idleMoved, m.ejected, m.asked, m.drained, m.used, m.freed = 0, false, nil, nil, nil, nil, nil
}

func (m *model) demand() (n int) {
	for _, x := range append(slices.Clone(m.queue), m.called...) {
		if !x.quiet && x.bound == nil {
			n++
		}
	}
	for _, p := range m.instances {
		n += p.demand()
	}
	return n
}

// requests are those of the queue that are no visitors.
func (m *model) requests() (all []*party) {
	for _, x := range m.queue {
		if x.state != visiting {
			all = append(all, x)
		}
	}
	return all
}

// take removes x from the queue, or from those that were called.
func (m *model) take(x *party) {
	is := func(o *party) bool { return o == x }
	m.queue, m.called = slices.DeleteFunc(m.queue, is), slices.DeleteFunc(m.called, is)
	m.closeRing()
}

// closeRing lets the shares go that have no waiter.
func (m *model) closeRing() {
	m.ring = slices.DeleteFunc(m.ring, func(share uint64) bool {
		return !slices.ContainsFunc(m.queue, func(x *party) bool { return !x.again && x.ask.Share == share })
	})
}

// join puts x into the queue at pos. A share that had no waiter has its turn
// after all others.
func (m *model) join(x *party, pos int) {
	m.queue = slices.Insert(m.queue, pos, x)
	if !x.again && !slices.Contains(m.ring, x.ask.Share) {
		m.ring = append(m.ring, x.ask.Share)
	}
}

// turn is called when x has its turn: its share goes behind all others.
func (m *model) turn(x *party) {
	if !x.again {
		m.ring = append(slices.DeleteFunc(m.ring, func(s uint64) bool { return s == x.ask.Share }), x.ask.Share)
	}
}

// before reports whether x has its turn before y.
func (m *model) before(x, y *party) bool {
	switch {
	case x.again != y.again:
		return x.again
	case x.again:
	case x.ask.Class != y.ask.Class:
		return x.ask.Class > y.ask.Class
	case x.ask.Share != y.ask.Share:
		return slices.Index(m.ring, x.ask.Share) < slices.Index(m.ring, y.ask.Share)
	}
	return slices.Index(m.queue, x) < slices.Index(m.queue, y)
}

// best returns the one of the queue that matches and has its turn first.
func (m *model) best(matches func(*party) bool) (first *party) {
	for _, x := range m.queue {
		if matches(x) && (first == nil || m.before(x, first)) {
			first = x
		}
	}
	return first
}

// home returns where the session of x is, if that is served.
func (m *model) home(x *party) (p *place, lost bool) {
	switch x.ask.Affinity {
	case ByInstance:
		p = m.placeOf(x.ask.Instance)
		if p == nil {
			return nil, x.ask.Instance != nil
		}
	case ByKey:
		p = m.keys[x.ask.Key]
	}
	if p == nil || p.keeps() {
		return p, false
	}
	return nil, true
}

func (m *model) placeOf(i *Instance) *place {
	for _, p := range m.instances {
		if p.i == i {
			return p
		}
	}
	return nil
}

// note follows the demand. It is called after every single change.
func (m *model) note(d int) {
	if d == m.lastDemand {
		return
	}
	m.lastDemand = d
	m.peak = max(m.peak, d)
	m.idleMoved = m.idleMoved || d == 0
	if d > m.mark {
		m.mark = noMark
		m.rang++
	}
}

// stats counts everything. The times are not the model's to know.
func (m *model) stats() (st Stats) {
	st.Waiting, st.Demand = len(m.requests()), m.demand()
	st.Visitors = len(m.queue) - st.Waiting + len(m.called)
	for _, p := range m.instances {
		st.InUse += len(p.inside)
		if !p.open() {
			continue
		}
		st.Open++
		if p.slots != NoSlots {
			st.Slots += p.slots
		}
		st.Unlimited = st.Unlimited || p.slots == Unlimited
	}
	for _, x := range m.queue {
		st.Bound += truth(x.bound != nil)
	}
	st.Sessions = len(m.keys)
	st.Arrivals = m.arrivals
	return st
}

func (m *model) withRoom() (ps []*place) {
	for _, p := range m.instances {
		if p.room() {
			ps = append(ps, p)
		}
	}
	return ps
}

// free counts the slots that can be given; some instance has room. One without
// a limit has more than all visitors need.
func (m *model) free() (n int) {
	for _, p := range m.withRoom() {
		if p.slots == Unlimited {
			return math.MaxInt
		}
		n += p.slots - len(p.inside)
	}
	return n
}

// next returns the one that has its turn now: a visitor only if fewer were called
// than slots are free, and a request that is bound to an instance only if that
// has a free slot. A request of a session that has found its instance meanwhile
// is bound to it when its turn comes.
func (m *model) next() *party {
	for len(m.withRoom()) > 0 {
		x := m.best(func(x *party) bool { return x.bound == nil && x.state != visiting })
		if x == nil || x.ask.Affinity != ByKey {
			break
		}
		p, _ := m.home(x)
		if p == nil || p.free() {
			break
		}
		x.bound = p
		m.note(m.demand())
	}
	room := len(m.withRoom()) > 0
	return m.best(func(x *party) bool {
		switch {
		case x.bound != nil:
			return x.bound.keeps() && x.bound.free()
		case x.state == visiting:
			return room && len(m.called) < m.free()
		}
		return room
	})
}

// enter lets x, a request in the queue, take a slot, which has to be the one
// that its reservation was given.
func (m *model) enter(x *party, not *place) {
	if x.ask.Affinity != NoAffinity && x.ask.Affinity != ByHash {
		known := x.bound != nil || m.keys[x.ask.Key] != nil && m.keys[x.ask.Key].i == x.r.instance
		defer m.sessionOf(x, known)
	}
	ps := m.withRoom()
	home := x.bound
	if home == nil && x.ask.Affinity == ByKey {
		home, _ = m.home(x)
	}
	if home != nil {
		ps = []*place{home}
	}
	if len(ps) > 1 {
		ps = slices.DeleteFunc(ps, func(p *place) bool { return p == not })
	}
	at := slices.IndexFunc(ps, func(p *place) bool { return p.i == x.r.instance })
	if at < 0 {
		m.failf("the slot given is not one of those to give: %v", x.r.instance)
		return
	}
	got := ps[at]
	for _, p := range ps {
		switch {
		case x.ask.Affinity == ByKey || x.ask.Affinity == ByHash:
			if weight(p.i.hash, x.ask.Key) > weight(got.i.hash, x.ask.Key) {
				m.failf("key %d: took %s, and %s is nearer", x.ask.Key, got.i.ID, p.i.ID)
			}
		case m.opts.Balance == Oldest && p.i.seq < got.i.seq:
			m.failf("oldest: took %s while the older %s has a free slot", got.i.ID, p.i.ID)
		case m.opts.Balance == LeastLoaded && p.load() < got.load():
			m.failf("least loaded: took %s at %v while %s is at %v", got.i.ID, got.load(), p.i.ID, p.load())
		}
	}
	// Of two, random takes the less loaded: never the one that is more loaded
	// than all others.
	if m.opts.Balance == Random && len(ps) > 1 && x.ask.Affinity < ByKey && !slices.ContainsFunc(ps, func(p *place) bool {
		return p != got && p.load() >= got.load()
	}) {
		m.failf("random: took %s, more loaded than each of the others", got.i.ID)
	}
	x.at, x.restored = got, got.restore
	got.inside = append(got.inside, x)
	got.served++
	m.take(x)
	m.spend()
}

// spend takes the instances out of use that have served what they may.
func (m *model) spend() {
	for _, p := range m.instances {
		if most := m.opts.MaxRequests; most > 0 && p.served >= most && !p.spent {
			p.spent = true
			m.used = append(m.used, p.i)
			m.unbind(p)
			m.sendAwayQuiet()
		}
	}
}

// sessionOf notes where the session of x goes on.
func (m *model) sessionOf(x *party, known bool) {
	switch {
	case len(m.errs) > 0:
		return
	case known:
		x.session = SessionKept
	case x.lost:
		x.session = SessionMoved
	default:
		x.session = SessionNew
	}
	if x.bound = nil; x.ask.Affinity == ByKey {
		m.keys[x.ask.Key] = x.at
	}
	if x.r.Session() != x.session {
		m.failf("the session is %v, want %v", x.r.Session(), x.session)
	}
}

// unbind lets the requests that wait for p alone wait for any, once p keeps no
// session.
func (m *model) unbind(p *place) {
	for _, x := range m.queue {
		if x.bound == p && !p.keeps() {
			x.bound, x.lost = nil, true
		}
	}
}

// handOut gives free slots to the requests of the queue, and calls visitors,
// until no more can have their turn.
func (m *model) handOut() {
	for len(m.errs) == 0 {
		switch x := m.next(); {
		case x == nil:
			return
		case x.state == visiting:
			m.turn(x)
			m.take(x)
			m.called = append(m.called, x)
			x.state = called
		default:
			m.turn(x)
			m.enter(x, nil)
			x.state = granted
			m.note(m.demand())
		}
	}
}

// visit puts x in the queue as a visitor, if it may wait.
func (m *model) visit(x *party, quiet bool) (err error) {
	switch {
	case m.refusal != nil:
		m.refusedDemand = m.refusedDemand || !quiet
		return m.refusal
	case quiet && m.stats().Open == 0:
		return ErrAsleep
	}
	x.quiet, x.again, x.state, x.bound = quiet, false, visiting, nil
	m.join(x, len(m.queue))
	m.note(m.demand())
	m.handOut()
	return nil
}

// ask lets x take a slot, if one that it may use is free once those that were
// tried again earlier had their turns, or puts it in the queue, at the end or
// behind those, if it may wait.
func (m *model) ask(x *party, quiet, again bool, not *place, shared func() bool) (bool, error) {
	waiting, inShare := len(m.requests()), 0
	for _, o := range m.requests() {
		inShare += truth(o.ask.Share == x.ask.Share && !o.again)
	}
	x.quiet, x.again, x.state = quiet, again, inQueue
	if again {
		// Those that were tried again earlier go first.
		for y := m.next(); y != nil && y.again; y = m.next() {
			m.enter(y, nil)
			y.state = granted
			m.note(m.demand())
		}
	}
	x.bound, x.lost = m.home(x)
	pos := len(m.queue)
	if again {
		pos = slices.IndexFunc(m.queue, func(o *party) bool { return !o.again })
		if pos < 0 {
			pos = len(m.queue)
		}
	}
	m.join(x, pos)
	if x.bound == nil && len(m.withRoom()) > 0 || x.bound != nil && x.bound.free() {
		m.enter(x, not)
		x.state = inside
		m.note(m.demand())
		return true, nil
	}
	var err error
	switch {
	case m.refusal != nil:
		err = m.refusal
	case quiet && m.stats().Open == 0:
		err = ErrAsleep
	case m.opts.MaxWaiting == 0 && !x.doubt, !again && waiting >= m.opts.MaxWaiting,
		!again && x.ask.ShareLimit > 0 && inShare >= x.ask.ShareLimit, !again && !shared():
		err = ErrQueueFull
	}
	if err == nil {
		m.note(m.demand())
		return false, nil
	}
	m.take(x)
	x.state = outside
	if !quiet && err == ErrQueueFull && x.bound == nil {
		m.note(m.demand() + 1) // came, and left
		m.note(m.demand())
	}
	m.refusedDemand = m.refusedDemand || !quiet && err != ErrAsleep && (x.bound == nil || err != ErrQueueFull)
	x.bound = nil
	return false, err
}

// leave takes x out of its instance, with what that tells about the instance.
func (m *model) leave(x *party, outcome Outcome) {
	p := x.at
	m.from, m.had = p, len(p.inside)
	x.at, x.state = nil, outside
	p.inside = slices.DeleteFunc(p.inside, func(o *party) bool { return o == x })
	if p.removed {
		return
	}
	m.note(m.demand())
	if x.restored == p.restore && !p.ejected {
		m.judge(p, outcome)
	}
	m.unbind(p)
	m.note(m.demand())
	m.left = p
	m.sendAwayQuiet()
}

// emptied notes that the last request has left a cordoned instance, and that a
// slot stays free or the instance had too many inside, once freed slots were
// handed out.
func (m *model) emptied() {
	if p := m.from; p != nil {
		full := p.slots != Unlimited && m.had > max(0, p.slots)
		if stays := len(p.inside) < m.had; full || m.watchFreed && stays {
			m.freed = append(m.freed, p.i)
		}
	}
	m.from = nil
	if p := m.left; p != nil && p.cordoned && !p.removed && len(p.inside) == 0 {
		m.drained = append(m.drained, p.i)
	}
	m.left = nil
}

func (m *model) judge(p *place, outcome Outcome) {
	first := 100 * time.Millisecond
	switch outcome {
	case Answered:
		p.strikes, p.ejections = 0, 0
		return
	case Neutral:
		return
	case Suspected:
		if p.i.AddressReusable() {
			if !p.suspected {
				m.asked = append(m.asked, p.i)
			}
			p.suspected, p.verifyRequested = true, true
		}
		return
	case Failed:
		if p.strikes++; p.strikes < 3 {
			return
		}
		first = time.Second
	}
	p.pause = first
	for range p.ejections {
		p.pause = min(2*p.pause, 30*time.Second)
	}
	p.ejections++
	p.strikes, p.ejected = 0, true
	m.ejected = append(m.ejected, p.i)
}

// dismiss answers the parties in the queue that the filter matches.
func (m *model) dismiss(reason error, matches func(*party) bool) {
	m.queue = slices.DeleteFunc(m.queue, func(x *party) bool {
		if !matches(x) {
			return false
		}
		x.bound = nil
		if x.reason = reason; x.state == visiting {
			x.state = sentAway
		} else {
			x.state = rejected
		}
		return true
	})
	m.closeRing()
	m.note(m.demand())
}

// sendAwayQuiet: quiet requests wait only while an instance takes requests.
func (m *model) sendAwayQuiet() {
	if m.stats().Open == 0 {
		m.dismiss(ErrAsleep, func(x *party) bool { return x.quiet })
	}
}

// changed is called after a change of an instance that frees or closes slots.
func (m *model) changed() {
	for _, x := range m.queue {
		if x.bound != nil {
			m.unbind(x.bound)
		}
	}
	m.note(m.demand())
	m.sendAwayQuiet()
	m.handOut()
}

// toGo returns the n of among that are to be cordoned first.
func (m *model) toGo(n int, among []*place) (chosen []*Instance) {
	for len(chosen) < n {
		var best *place
		for _, p := range among {
			if p.cordoned || p.removed || slices.Contains(chosen, p.i) {
				continue
			}
			if best == nil || p.ejected && !best.ejected ||
				p.ejected == best.ejected && (len(p.inside) < len(best.inside) ||
					len(p.inside) == len(best.inside) && p.i.seq > best.i.seq) {
				best = p
			}
		}
		if best == nil {
			break
		}
		chosen = append(chosen, best.i)
	}
	return chosen
}

package reserver

import (
	"fmt"
	"slices"
	"time"
)

// model is a service said as plainly as possible: the line is one slice, and
// whatever can be counted is counted anew each time. It is driven side by
// side with a Service (see machine), which has to agree with it in every
// step. Where the Service has a choice, between instances, the model only
// checks that the choice was allowed.
type model struct {
	opts      Options
	refusal   error
	line      []*party
	instances []*place // in the order of Add, without the removed ones

	knocked    bool
	peak, mark int
	lastDemand int

	// What a step is expected to cause; cleared by begin.
	rang      int // calls of Hooks.Demand
	idleMoved bool
	ejected   []*Instance
	asked     []*Instance // that Hooks.Questioned is to be called for
	drained   []*Instance

	errs []string
}

// party is a reservation as the model sees it.
type party struct {
	r            *Reservation
	state        partyState
	quiet, again bool
	doubt        bool // its last instance was doubted for it
	at           *place
	restored     int   // of the place, when the slot was given
	reason       error // what Granted has to deliver
	joined       time.Time
	interrupted  int
}

type partyState string

const (
	outside  partyState = "outside"
	inLine   partyState = "in line"
	granted  partyState = "granted"  // holds a slot and has not heard of it
	rejected partyState = "rejected" // was refused and has not heard of it
	inside   partyState = "inside"
)

// place is an instance as the model sees it.
type place struct {
	i                           *Instance
	slots                       int
	cordoned, ejected, removed  bool
	strikes, ejections, restore int
	doubted, questioned         bool
	pause                       time.Duration
	inside                      []*party
}

func (p *place) open() bool { return !p.cordoned && !p.ejected && !p.removed }

func (p *place) room() bool {
	return p.open() && !p.doubted && (p.slots == Unlimited || len(p.inside) < p.slots)
}

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
	m.rang, m.idleMoved, m.ejected, m.asked, m.drained = 0, false, nil, nil, nil
}

func (m *model) demand() (n int) {
	for _, x := range m.line {
		if !x.quiet {
			n++
		}
	}
	for _, p := range m.instances {
		n += p.demand()
	}
	return n
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
	st.Waiting, st.Demand = len(m.line), m.demand()
	for _, p := range m.instances {
		st.InUse += len(p.inside)
		if !p.open() {
			continue
		}
		st.Open++
		st.Slots += p.slots
		st.Unlimited = st.Unlimited || p.slots == Unlimited
	}
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

// enter lets x, the first of the line, take a slot, which has to be the one
// that its reservation was given.
func (m *model) enter(x *party, not *place) {
	ps := m.withRoom()
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
		case m.opts.Balance == Oldest && p.i.seq < got.i.seq:
			m.failf("oldest: took %s while the older %s has a free slot", got.i.ID, p.i.ID)
		case m.opts.Balance == LeastLoaded && p.load() < got.load():
			m.failf("least loaded: took %s at %v while %s is at %v", got.i.ID, got.load(), p.i.ID, p.load())
		}
	}
	// Of two, random takes the less loaded: never the one that is more loaded
	// than all others.
	if m.opts.Balance == Random && len(ps) > 1 && !slices.ContainsFunc(ps, func(p *place) bool {
		return p != got && p.load() >= got.load()
	}) {
		m.failf("random: took %s, more loaded than each of the others", got.i.ID)
	}
	x.at, x.restored = got, got.restore
	got.inside = append(got.inside, x)
	m.line = m.line[1:]
}

// handOut gives free slots to the line until there are no more of one of
// them.
func (m *model) handOut(asking *party, not *place) {
	for len(m.line) > 0 && len(m.withRoom()) > 0 && len(m.errs) == 0 {
		x := m.line[0]
		if x == asking {
			m.enter(x, not)
			x.state = inside
		} else {
			m.enter(x, nil)
			x.state = granted
		}
	}
}

// ask puts x in the line, at the end or behind those that are tried again,
// hands out what is free, and if that does not reach x decides if x may wait.
func (m *model) ask(x *party, quiet, again bool, not *place, shared func() bool) (bool, error) {
	waiting := len(m.line)
	x.quiet, x.again, x.state = quiet, again, inLine
	pos := waiting
	if again {
		pos = slices.IndexFunc(m.line, func(o *party) bool { return !o.again })
		if pos < 0 {
			pos = waiting
		}
	}
	m.line = slices.Insert(m.line, pos, x)
	m.handOut(x, not)
	if x.state == inside {
		m.note(m.demand())
		return true, nil
	}
	var err error
	switch {
	case m.refusal != nil:
		err = m.refusal
	case quiet && m.stats().Open == 0:
		err = ErrAsleep
	case m.opts.MaxWaiting == 0 && !x.doubt, !again && waiting >= m.opts.MaxWaiting, !again && !shared():
		err = ErrQueueFull
	}
	if err == nil {
		m.note(m.demand())
		return false, nil
	}
	m.line = slices.DeleteFunc(m.line, func(o *party) bool { return o == x })
	x.state = outside
	if !quiet && err == ErrQueueFull {
		m.note(m.demand() + 1) // came, and left
		m.note(m.demand())
	}
	m.knocked = m.knocked || !quiet && err != ErrAsleep
	return false, err
}

// leave takes x out of its instance, with what that tells about the instance.
func (m *model) leave(x *party, fate Fate) {
	p := x.at
	x.at, x.state = nil, outside
	p.inside = slices.DeleteFunc(p.inside, func(o *party) bool { return o == x })
	if p.removed {
		return
	}
	m.note(m.demand())
	if x.restored == p.restore && !p.ejected {
		m.judge(p, fate)
	}
	if p.cordoned && len(p.inside) == 0 {
		m.drained = append(m.drained, p.i)
	}
	m.sendAwayQuiet()
}

func (m *model) judge(p *place, fate Fate) {
	first := 100 * time.Millisecond
	switch fate {
	case Answered:
		p.strikes, p.ejections = 0, 0
		return
	case Neutral:
		return
	case Doubted:
		if p.i.Unbound {
			if !p.doubted {
				m.asked = append(m.asked, p.i)
			}
			p.doubted, p.questioned = true, true
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

// dismiss answers those in the line of whom who is true.
func (m *model) dismiss(reason error, who func(*party) bool) {
	m.line = slices.DeleteFunc(m.line, func(x *party) bool {
		if !who(x) {
			return false
		}
		x.state, x.reason = rejected, reason
		return true
	})
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
	m.note(m.demand())
	m.sendAwayQuiet()
	m.handOut(nil, nil)
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

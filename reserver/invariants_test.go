package reserver

import (
	"slices"
	"strings"
	"time"
)

// check compares a service, after a step, with what the model says.
func (sd *side) check(after string) {
	m, s := sd.m, sd.s
	for _, e := range sd.model.errs {
		m.fail("%s: %s", after, e)
	}

	st := s.Stats()
	want := sd.model.stats()
	want.OldestWait, want.OldestVisitor, want.IdleSince = st.OldestWait, st.OldestVisitor, st.IdleSince
	if st != want {
		m.fail("%s: the counters are\n\t%+v; want\n\t%+v", after, st, want)
	}
	if moved := !st.IdleSince.Equal(sd.lastIdle); moved && !sd.model.idleMoved {
		m.fail("%s: the idle time began anew without a reason", after)
	} else if sd.model.idleMoved && (st.IdleSince.Before(sd.began) || time.Now().Before(st.IdleSince)) {
		m.fail("%s: the idle time did not begin anew", after)
	}
	sd.lastIdle = st.IdleSince

	if sd.rang != sd.model.rang {
		m.fail("%s: Demand was called %d times; want %d", after, sd.rang, sd.model.rang)
	}
	if !slices.Equal(sd.ejected, sd.model.ejected) {
		m.fail("%s: Ejected was called for %v; want %v", after, sd.ejected, sd.model.ejected)
	}
	if !slices.Equal(sd.asked, sd.model.asked) {
		m.fail("%s: Questioned was called for %v; want %v", after, sd.asked, sd.model.asked)
	}
	if !slices.Equal(sd.drained, sd.model.drained) {
		m.fail("%s: Drained was called for %v; want %v", after, sd.drained, sd.model.drained)
	}

	if !slices.Equal(sd.freed, sd.model.freed) {
		m.fail("%s: the function of SetFreed was called for %v; want %v", after, sd.freed, sd.model.freed)
	}
	sd.checkNeed(after)

	byID := func(a, b *Instance) int { return strings.Compare(a.ID, b.ID) }
	slices.SortFunc(sd.used, byID)
	slices.SortFunc(sd.model.used, byID)
	if !slices.Equal(sd.used, sd.model.used) {
		m.fail("%s: Spent was called for %v; want %v", after, sd.used, sd.model.used)
	}

	// Since when they wait, of those that joined in this step and others.
	var oldest, visits time.Time
	for _, x := range sd.model.queue {
		since, first := x.since(), &oldest
		if x.state == visiting {
			first = &visits
		}
		if since.Before(x.joined) {
			m.fail("%s: one waits since before it came", after)
		}
		if first.IsZero() || since.Before(*first) {
			*first = since
		}
	}
	if !st.OldestWait.Equal(oldest) || !st.OldestVisitor.Equal(visits) {
		m.fail("%s: the oldest wait since %v and %v; want %v and %v", after, st.OldestWait, st.OldestVisitor, oldest, visits)
	}

	for _, p := range append(slices.Clone(sd.model.instances), sd.gone...) {
		got := p.i.Stats()
		if w := (InstanceStats{
			Slots: p.slots, InUse: len(p.inside), Cordoned: p.cordoned, Ejected: p.ejected,
			Suspected: p.suspected, VerifyRequested: p.verifyRequested, Served: uint64(p.served), Spent: p.spent,
		}); got != w {
			m.fail("%s: %s counts %+v; want %+v", after, p.i.ID, got, w)
		}
		if p.i.Pause() != p.pause {
			m.fail("%s: %s pauses %v; want %v", after, p.i.ID, p.i.Pause(), p.pause)
		}
		// Above its slots it can be only because they were lowered.
		if got.Slots != Unlimited && got.InUse > got.Slots && got.InUse > sd.inUse[p.i] {
			m.fail("%s: %s took a request above its slots: %+v", after, p.i.ID, got)
		}
		if sd.closed[p.i] && got.Slots == NoSlots && got.Served > sd.served[p.i] {
			m.fail("%s: %s took a request without a slot: %+v", after, p.i.ID, got)
		}
		if got.InUse < sd.inUse[p.i] && sd.model.watchFreed && !slices.Contains(sd.freed, p.i) {
			m.fail("%s: a slot of %s is free and that was not told", after, p.i.ID)
		}
		sd.know(p)
	}
}

// know takes note of how an instance is, to see what the next step does to it.
func (sd *side) know(p *place) {
	st := p.i.Stats()
	sd.inUse[p.i], sd.served[p.i], sd.closed[p.i] = st.InUse, st.Served, st.Slots == NoSlots
}

// checkNeed compares what Need reads, and whether a change of it was told.
func (sd *side) checkNeed(after string) {
	m := sd.m
	was := sd.need
	was.Bound = slices.Clone(was.Bound)
	changed := sd.changed
	sd.changed = 0
	sd.s.Need(&sd.need)
	got := sd.need

	st := sd.model.stats()
	want := Need{Waiting: st.Waiting - st.Bound, Visitors: st.Visitors - len(sd.model.called), InUse: st.InUse, Demand: st.Demand, Arrivals: st.Arrivals}
	byAge := slices.Clone(sd.model.queue)
	slices.SortFunc(byAge, func(x, y *party) int { return x.since().Compare(y.since()) })
	for _, x := range byAge {
		switch {
		case x.state == visiting:
			if want.OldestVisitor.IsZero() {
				want.OldestVisitor = x.since()
			}
		case x.bound == nil:
			if want.OldestWait.IsZero() {
				want.OldestWait = x.since()
			}
		default:
			k := slices.IndexFunc(want.Bound, func(b BoundNeed) bool { return b.Instance == x.bound.i })
			if k < 0 {
				k = len(want.Bound)
				want.Bound = append(want.Bound, BoundNeed{Instance: x.bound.i, OldestWait: x.since()})
			}
			want.Bound[k].Waiting++
		}
	}
	if !sameNeed(got, want) {
		m.fail("%s: the need is\n\t%+v; want\n\t%+v", after, got, want)
	}
	if changed > 1 || changed == 0 && !sameNeed(got, was) {
		m.fail("%s: the need was\n\t%+v and is\n\t%+v; that was told %d times", after, was, got, changed)
	}
}

func sameNeed(a, b Need) bool {
	return a.Waiting == b.Waiting && a.OldestWait.Equal(b.OldestWait) && a.Visitors == b.Visitors && a.OldestVisitor.Equal(b.OldestVisitor) &&
		a.InUse == b.InUse && a.Demand == b.Demand && a.Arrivals == b.Arrivals && slices.Equal(a.Bound, b.Bound)
}

// checkInside looks at what the service keeps, and does so also when the step
// was on another one.
func (sd *side) checkInside() {
	m, s := sd.m, sd.s

	if len(s.pool.items) > 0 && s.waiting[requests] > s.bound {
		m.fail("a free slot and a waiter side by side: %d instances, %d waiters, %d of them bound", len(s.pool.items), s.waiting[requests], s.bound)
	}
	for _, p := range sd.model.instances {
		if p.i.line.n > 0 && (!p.keeps() || p.free()) {
			m.fail("%d wait for %s, which has a free slot or is not to be waited for", p.i.line.n, p.i.ID)
		}
	}
	for k, i := range s.pool.items {
		if i.place != k {
			m.fail("%s is at %d of the pool and believes at %d", i.ID, k, i.place)
		}
		if parent := (k - 1) / 2; k > 0 && s.pool.balance != Random && s.pool.less(i, s.pool.items[parent]) {
			m.fail("the pool is out of order: %s under %s", i.ID, s.pool.items[parent].ID)
		}
	}
	for _, p := range sd.model.instances {
		if in := slices.Contains(s.pool.items, p.i); in != p.room() || in != (p.i.place >= 0) {
			m.fail("%s is in the pool: %v, has room: %v, place %d", p.i.ID, in, p.room(), p.i.place)
		}
	}
	if n := len(sd.model.withRoom()); n != len(s.pool.items) {
		m.fail("%d instances have room, the pool has %d", n, len(s.pool.items))
	}

	if n := sd.model.free(); n > 0 && s.waiting[visitors] > 0 && int(s.called) < n {
		m.fail("%d visitors wait and %d were called, with %d free slots", s.waiting[visitors], s.called, n)
	}
	sd.checkVisitors()

	// First in, first out, those that are tried again before the others.
	var again, others []*party
	quiet := 0
	for _, x := range sd.model.requests() {
		if x.again {
			again = append(again, x)
		} else {
			others = append(others, x)
		}
	}
	for _, x := range sd.model.queue {
		quiet += truth(x.quiet)
	}
	if int(s.quiet) != quiet {
		m.fail("%d quiet ones wait, the service counts %d", quiet, s.quiet)
	}
	if q, ok := s.queue.(*turns); ok {
		sd.checkTurns(q)
	} else {
		sd.checkList("the front of the queue", &plainOf(s).urgent, again)
		sd.checkList("the queue", &plainOf(s).lists[requests], others)
	}
	for _, p := range append(slices.Clone(sd.model.instances), sd.gone...) {
		sd.checkList("inside "+p.i.ID, &p.i.holders, p.inside)
	}

	for _, x := range sd.parties {
		var st state
		var at *Instance
		told := 0
		switch x.state {
		case inQueue:
			st = waiting
		case granted:
			st, at, told = holding, x.at.i, 1
		case rejected:
			told = 1
		case inside:
			st, at = holding, x.at.i
		case visiting, called, sentAway:
			sd.checkTurn(x)
		}
		if x.r.state != st || x.r.instance != at || len(x.r.granted) != told {
			m.fail("one that is %s: state %d, instance %v, %d answers", x.state, x.r.state, x.r.instance, len(x.r.granted))
		}
	}
}

// checkVisitors compares the visitors, and how many stand before each.
func (sd *side) checkVisitors() {
	m, s := sd.m, sd.s
	if _, ok := s.queue.(*turns); ok {
		if int(s.called) != len(sd.model.called) {
			m.fail("%d visitors were called; want %d", s.called, len(sd.model.called))
		}
		return
	}
	w, prev := plainOf(s).lists[visitors].first, (*waiter)(nil)
	waiting := 0
	for ahead, x := range sd.model.queue {
		if x.state != visiting {
			continue
		}
		waiting++
		if w != &x.g.waiter || w.prev != prev {
			m.fail("the visitors are out of order")
			return
		}
		if n, want := x.g.Ahead(), ahead+len(sd.model.called); n != want {
			m.fail("%d stand before a visitor; want %d", n, want)
		}
		prev, w = w, w.next
	}
	if w != nil || plainOf(s).lists[visitors].last != prev || int(s.waiting[visitors]) != waiting || int(s.called) != len(sd.model.called) {
		m.fail("visitors: %d wait, %d were called; want %d, %d", s.waiting[visitors], s.called, waiting, len(sd.model.called))
	}
}

// checkTurns compares an order of turns with the model: which waiter stands
// where, and how many have their turns before each of them.
func (sd *side) checkTurns(q *turns) {
	m := sd.m
	if len(q.shares) != len(sd.model.ring) {
		m.fail("%d shares wait; want %v", len(q.shares), sd.model.ring)
	}
	ranked := slices.Clone(sd.model.queue)
	slices.SortStableFunc(ranked, func(x, y *party) int { return truth(sd.model.before(y, x)) - truth(sd.model.before(x, y)) })
	for k, x := range ranked {
		w := &x.r.waiter
		if x.state == visiting {
			w = &x.g.waiter
		}
		l := &q.lines[w.kind]
		if x.bound != nil {
			l = &x.bound.i.line
		}
		if w.lane == nil || w.lane.line != l || w.lane.waiters.items[w.place] != w || l.levels[w.level()].items[w.lane.place] != w.lane {
			m.fail("one that waits stands in the wrong lane")
			return
		}
		for _, y := range ranked[:k] {
			v := &y.r.waiter
			if y.state == visiting {
				v = &y.g.waiter
			}
			if q.before(w, v) {
				m.fail("turns are out of order: %+v before %+v", x.ask, y.ask)
			}
		}
		if x.bound == nil {
			// Turns of a higher class can bring a share nearer or farther in the
			// ring, by one turn of each other share.
			off := 0
			if ranked[0].ask.Class != x.ask.Class || ranked[0].again {
				off = len(sd.model.ring)
			}
			if got, want := q.ahead(w, AheadMost), sd.model.ahead(x); got < want-off || got > want+off {
				m.fail("%d have their turns before %+v; want %d", got, x.ask, want)
			}
		}
	}
	n := 0
	for _, l := range q.lanes {
		n += len(l.waiters.items)
	}
	if n != len(ranked) || int(sd.s.waiting[requests]+sd.s.waiting[visitors]) != n {
		m.fail("%d wait in lanes, want %d", n, len(ranked))
	}
}

// ahead serves a copy of the queue until it is the turn of x.
func (m *model) ahead(x *party) (n int) {
	c := model{queue: slices.Clone(m.queue), ring: slices.Clone(m.ring)}
	for {
		first := c.best(func(o *party) bool { return o.bound == nil })
		if first == x {
			return n
		}
		c.turn(first)
		c.take(first)
		n++
	}
}

// checkTurn compares what a visitor was told.
func (sd *side) checkTurn(x *party) {
	told := false
	select {
	case <-x.g.Turn():
		told = true
	default:
	}
	var reason error
	if x.state == sentAway {
		reason = x.reason
	}
	if told == (x.state == visiting) || x.g.Reason() != reason {
		sd.m.fail("a visitor that is %s was told: %v, %v", x.state, told, x.g.Reason())
	}
}

func (sd *side) checkList(name string, l *list, want []*party) {
	var prev *waiter
	w := l.first
	for n, x := range want {
		if w == nil || w.reservation != x.r || w.prev != prev {
			sd.m.fail("%s: position %d of %d has the wrong party", name, n, len(want))
			return
		}
		prev, w = w, w.next
	}
	if w != nil || l.last != prev {
		sd.m.fail("%s does not end after %d", name, len(want))
	}
}

// plainOf returns the queue of s, which is first in, first out; an empty one
// while none waited yet.
func plainOf(s *Service) *fifo {
	if s.queue == nil {
		return new(fifo)
	}
	return s.queue.(*fifo)
}

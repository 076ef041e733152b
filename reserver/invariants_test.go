package reserver

import (
	"slices"
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
	want.OldestWait, want.IdleSince = st.OldestWait, st.IdleSince
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

	// Since when they wait, of those that joined in this step and others.
	var oldest time.Time
	for _, x := range sd.model.line {
		if x.r.since.Before(x.joined) {
			m.fail("%s: one waits since before it came", after)
		}
		if oldest.IsZero() || x.r.since.Before(oldest) {
			oldest = x.r.since
		}
	}
	if !st.OldestWait.Equal(oldest) {
		m.fail("%s: the oldest waits since %v; want %v", after, st.OldestWait, oldest)
	}

	for _, p := range append(slices.Clone(sd.model.instances), sd.gone...) {
		got := p.i.Stats()
		if w := (InstanceStats{
			Slots: p.slots, InUse: len(p.inside), Cordoned: p.cordoned, Ejected: p.ejected,
			Doubted: p.doubted, Questioned: p.questioned,
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
		sd.inUse[p.i] = got.InUse
	}
}

// checkInside looks at what the service keeps, and does so also when the step
// was on another one.
func (sd *side) checkInside() {
	m, s := sd.m, sd.s

	if len(s.pool.items) > 0 && s.line.len > 0 {
		m.fail("a free slot and a waiter side by side: %d instances, %d waiters", len(s.pool.items), s.line.len)
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

	// First in, first out, those that are tried again before the others.
	var again, others []*party
	quiet := 0
	for _, x := range sd.model.line {
		if x.again {
			again = append(again, x)
		} else {
			others = append(others, x)
		}
		if x.quiet {
			quiet++
		}
	}
	if s.line.quiet != quiet {
		m.fail("%d quiet ones wait, the line counts %d", quiet, s.line.quiet)
	}
	sd.checkList("the front of the line", &s.line.front, again)
	sd.checkList("the line", &s.line.back, others)
	for _, p := range append(slices.Clone(sd.model.instances), sd.gone...) {
		sd.checkList("inside "+p.i.ID, &p.i.holders, p.inside)
	}

	for _, x := range sd.parties {
		var st state
		var at *Instance
		told := 0
		switch x.state {
		case inLine:
			st = waiting
		case granted:
			st, at, told = held, x.at.i, 1
		case rejected:
			told = 1
		case inside:
			st, at = held, x.at.i
		}
		if x.r.state != st || x.r.instance != at || len(x.r.granted) != told {
			m.fail("one that is %s: state %d, instance %v, %d answers", x.state, x.r.state, x.r.instance, len(x.r.granted))
		}
	}
}

func (sd *side) checkList(name string, l *list, want []*party) {
	var prev *Reservation
	r := l.first
	for n, x := range want {
		if r != x.r || r.prev != prev {
			sd.m.fail("%s: position %d of %d is not who should be there", name, n, len(want))
			return
		}
		prev, r = r, r.next
	}
	if r != nil || l.last != prev {
		sd.m.fail("%s does not end after %d", name, len(want))
	}
}

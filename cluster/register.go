package cluster

import "slices"

// register is what a node knows of the coordinator's one object, the view, and
// what it has asked it.
type register struct {
	ids     uint64 // of questions
	reading uint64 // the Read that is not answered yet, or 0
	begun   Instant
	readAt  int64  // no earlier read, unless wanted
	wanted  bool   // something happened that the view may tell of
	old     uint64 // reads up to this one were begun before the view was followed

	answers bool  // the last question was answered
	answer  int64 // when

	known bool // found is what was read last
	found View
	odd   bool // found is neither the view that is followed nor a newer one

	swapping  uint64 // the Swap that is not answered yet, or 0
	swapBegun Instant
	swapAt    int64  // no earlier swap
	from      uint64 // the number of the view that was followed when next was asked for
	next      View   // asked for last
	risky     bool   // next does not replace the view that is followed: there may be Caddys that no member knows of
	lost      bool   // the result of a swap is not known: it may be made still
}

// unsure reports whether a view that this node asked for may come to be. Until
// a new view is followed it cannot say that it follows the old one.
func (r *register) unsure() bool { return r.swapping != 0 || r.lost }

// continues reports whether a view is what this node made of the one before.
func (r *register) continues(before, v View) bool {
	return !r.risky && r.from == before.Number && v.Equal(r.next)
}

// followed begins anew with a view.
func (r *register) followed() {
	r.old, r.wanted, r.odd, r.lost, r.risky = r.ids, false, false, false, false
	r.swapping, r.swapAt = 0, 0
}

// hear takes note of a view that lies in the coordinator, or has been there.
func (n *Node) hear(v View) {
	if v.Number > n.view.Number && v.Valid() {
		n.follow(v)
	}
}

func (n *Node) read() {
	r := &n.register
	if r.reading != 0 {
		return
	}
	r.ids++
	r.reading, r.begun, r.wanted = r.ids, n.now, false
	r.readAt = after(n.now.Mono, n.options.Beat)
	n.emit(Read{ID: r.ids})
}

func (n *Node) readDone(e ReadDone) {
	r := &n.register
	if e.ID != r.reading {
		return
	}
	r.reading = 0
	if r.answers = e.Err == nil; !r.answers {
		if n.lead != nil {
			n.ask()
		}
		return
	}
	r.answer = n.now.Mono
	n.found(e.ID, e.View, r.begun)
}

// found takes note of what lay in the coordinator at some moment since begun.
func (n *Node) found(id uint64, v View, begun Instant) {
	r := &n.register
	if n.faults.followLower && v.Number < n.view.Number && id > r.old {
		n.follow(v)
		return
	}
	switch {
	case v.Number > n.view.Number && v.Valid():
		r.known, r.found = true, v
		n.follow(v)
	case id <= r.old && v.Number < n.view.Number:
		// It is older than the view that is followed.
	case v.Equal(n.view):
		r.known, r.found, r.odd = true, v, false
		if n.lead != nil && v.Number > 0 {
			n.confirm(begun)
		}
	default:
		if !r.odd || !r.found.Equal(v) {
			n.emit(Forgotten{Found: v, Followed: n.view})
		}
		r.known, r.found, r.odd = true, v, true
	}
}

func (n *Node) swap(next View, risky bool) {
	r := &n.register
	expect := n.view
	if r.odd || n.view.Number == 0 {
		expect = r.found
	}
	r.ids++
	r.swapping, r.swapBegun, r.from, r.next = r.ids, n.now, n.view.Number, next
	r.risky = r.risky || risky
	r.swapAt = after(n.now.Mono, n.options.Beat)
	n.emit(Swap{ID: r.ids, Expect: expect, Next: next})
}

func (n *Node) swapDone(e SwapDone) {
	r := &n.register
	if e.ID != r.swapping {
		return
	}
	r.swapping = 0
	switch e.Result {
	case Swapped:
		begun := r.swapBegun
		if r.next.Number > n.view.Number {
			n.follow(r.next)
			if n.lead != nil {
				n.confirm(begun)
			}
		}
	case Conflict:
		n.found(e.ID, e.View, r.swapBegun)
	case Failed:
	case Unknown:
		r.lost, r.wanted, r.answers = true, true, false
	}
}

// coordinate reads the view and asks for a new one where that is due.
func (n *Node) coordinate() {
	r := &n.register
	if n.member.gone(n) {
		return
	}
	trouble := n.view.Number == 0 || n.lead != nil || !n.member.welcomed ||
		n.now.Mono >= after(n.member.acked, 2*n.options.Beat)
	if r.wanted || trouble && n.now.Mono >= r.readAt {
		n.read()
	}
	if r.swapping != 0 || n.now.Mono < r.swapAt {
		return
	}
	next, risky, ok := n.wantedView()
	switch {
	case !ok:
	case r.answers && n.now.Mono <= after(r.answer, 2*n.options.Beat):
		n.swap(next, risky)
	case n.now.Mono >= r.readAt:
		// A swap whose result is lost would keep this node from confirming the
		// view with the others, so none is begun while there is no answer.
		n.read()
	}
}

// wantedView returns the view that should replace the one in the coordinator,
// if this node is the one to say so.
func (n *Node) wantedView() (next View, risky, ok bool) {
	r := &n.register
	switch {
	case n.view.Number == 0:
		// The first one makes the view. Nothing is known of who was there
		// before, so it waits as long as any may be inside.
		if !r.known || r.found.Number > 0 || n.member.leaving {
			return View{}, false, false
		}
		return View{Number: 1, Leader: n.self.Boot, Members: []Peer{n.self}}, true, true
	case n.lead != nil:
		next = n.roster()
		if r.odd {
			return n.heal(next), true, true
		}
		return next, false, !next.sameButNumber(n.view)
	case n.shouldTakeOver():
		next = n.successor()
		if r.odd {
			return n.heal(next), true, true
		}
		return next, false, true
	}
	return View{}, false, false
}

// heal makes a view that is newer than what is followed and than what was
// found in the coordinator, with all Caddys of both.
func (n *Node) heal(next View) View {
	found := n.register.found
	next.Number = max(n.view.Number, found.Number) + 1
	for _, p := range slices.Concat(found.Members, found.Lost) {
		if !next.Has(p.Boot) && !n.isDead(p.Boot) {
			next.Lost = with(next.Lost, p)
		}
	}
	return next
}

func (v View) sameButNumber(w View) bool {
	v.Number = w.Number
	return v.Equal(w)
}

// successor is the view in which this node leads in place of the leader.
func (n *Node) successor() View {
	next := View{Number: n.view.Number + 1, Leader: n.self.Boot, Members: []Peer{n.self}}
	for _, p := range n.view.Members {
		switch {
		case n.isDead(p.Boot):
		case p.Boot != n.view.Leader:
			next.Members = with(next.Members, p)
		case !n.faults.forgetLost:
			next.Lost = with(next.Lost, p)
		}
	}
	for _, p := range n.view.Lost {
		if !n.isDead(p.Boot) && p.Boot != n.self.Boot && !n.faults.forgetLost {
			next.Lost = with(next.Lost, p)
		}
	}
	return next
}

// shouldTakeOver reports whether this node, which does not lead, should lead.
func (n *Node) shouldTakeOver() bool {
	if n.member.leaving {
		return false
	}
	if !n.view.Has(n.self.Boot) {
		// Only when there is no other member any more.
		return !slices.ContainsFunc(n.view.Members, func(p Peer) bool { return !n.isDead(p.Boot) })
	}
	return n.isDead(n.view.Leader) || n.now.Mono >= n.takeOverAt()
}

// takeOverAt is when the leader has been silent for too long. The members take
// their turns, so that they do not all ask at once.
func (n *Node) takeOverAt() int64 {
	rank := int64(0)
	for _, p := range n.view.Members {
		if p.Boot == n.self.Boot {
			break
		}
		if p.Boot != n.view.Leader {
			rank++
		}
	}
	return max(n.member.acked, n.followed) + int64(n.options.Lease) + rank*int64(n.options.Beat)/2
}

func (n *Node) scheduleRegister() {
	r := &n.register
	if n.member.gone(n) {
		return
	}
	if r.reading == 0 {
		switch {
		case r.wanted:
			n.due(n.now.Mono)
		case n.view.Number == 0 || n.lead != nil || !n.member.welcomed:
			n.due(r.readAt)
		default:
			n.due(max(r.readAt, after(n.member.acked, 2*n.options.Beat)))
		}
	}
	if r.swapping == 0 {
		if _, _, ok := n.wantedView(); ok {
			if r.reading == 0 {
				n.due(max(r.swapAt, r.readAt))
			}
		} else if n.lead == nil && n.view.Has(n.self.Boot) && !n.member.leaving {
			n.due(n.takeOverAt())
		}
	}
}

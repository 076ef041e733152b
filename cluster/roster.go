package cluster

import "slices"

// confirm takes note that no other Caddy leads before begun and a lease.
func (n *Node) confirm(begun Instant) {
	l := n.lead
	if n.now.Mono < l.quiet {
		return
	}
	if end := begun.Add(n.options.Lease); end.Mono > l.confirm.Mono {
		l.confirm = end
		for k := range l.rows {
			n.ack(&l.rows[k])
		}
	}
}

func (n *Node) confirmed() bool { return !n.now.reached(n.lead.confirm) || n.faults.noConfirm }

// ask begins a round: if the coordinator cannot be read, all members together
// can confirm the view, because only they can change it. This does not hold
// once the coordinator has shown another one than it should.
func (n *Node) ask() {
	l, r := n.lead, &n.register
	l.round, l.roundBegun = 0, n.now
	if r.odd || r.unsure() && !n.faults.stillUnsure {
		return
	}
	l.rounds++
	l.round, l.answered = l.rounds, nil
	for _, p := range n.view.Members {
		n.send(p.Boot, 0, Ask{Round: l.round})
	}
}

// askAt is when the coordinator has not answered for so long that the members
// are asked.
func (n *Node) askAt() int64 {
	if n.register.reading == 0 {
		return never
	}
	return after(max(n.register.begun.Mono, n.lead.roundBegun.Mono), n.options.Beat)
}

func (n *Node) still(from string, b Still) {
	l := n.lead
	if b.Round != l.round || l.round == 0 || slices.Contains(l.answered, from) {
		return
	}
	l.answered = append(slices.Clone(l.answered), from)
	for _, p := range n.view.Members {
		if !slices.Contains(l.answered, p.Boot) {
			return
		}
	}
	l.round = 0
	if !n.register.odd && (!n.register.unsure() || n.faults.stillUnsure) {
		n.confirm(l.roundBegun)
	}
}

// silent reports whether a member has said nothing for too long.
func (n *Node) silent(r *row) bool {
	return !r.lost && r.peer.Boot != n.self.Boot && n.now.Mono >= n.silentAt(r)
}

func (n *Node) silentAt(r *row) int64 { return after(r.heard, n.options.Lease) }

// roster is the view as the leader wants it.
func (n *Node) roster() View {
	l := n.lead
	next := View{Number: n.view.Number + 1, Leader: n.self.Boot}
	for k := range l.rows {
		r := &l.rows[k]
		switch {
		case r.left && r.peer.Boot != n.self.Boot:
		case !r.lost && !n.silent(r):
			next.Members = append(next.Members, r.peer)
		case n.faults.forgetLost:
		case !r.lost && !n.faults.dropSilent, r.unheard, l.holds(r.peer.Boot):
			// A member that is silent is lost even if it holds nothing: it may get
			// slots once more before the view is made, which may be late.
			next.Lost = append(next.Lost, r.peer)
		}
	}
	for _, p := range l.joining {
		next.Members = with(next.Members, p)
		next.Lost = slices.DeleteFunc(next.Lost, func(q Peer) bool { return q.Boot == p.Boot })
	}
	if n.member.leaving {
		n.handOver(&next)
	}
	return next
}

// handOver names another leader, once this one holds nothing any more.
func (n *Node) handOver(next *View) {
	if !n.HoldsNothing() || n.lead.holds(n.self.Boot) {
		return
	}
	members := slices.DeleteFunc(slices.Clone(next.Members), func(p Peer) bool { return p.Boot == n.self.Boot })
	leader := ""
	for _, p := range members {
		if r := n.lead.row(p.Boot); r != nil && r.known && !r.leaving && leader == "" {
			leader = p.Boot
		}
	}
	if leader == "" && len(members) > 0 {
		return // no Caddy can take it yet
	}
	next.Leader, next.Members = leader, members
}

func (n *Node) actAsLeader() {
	l := n.lead
	if on := n.confirmed(); on != l.told {
		l.told = on
		n.emit(Confirmed{On: on})
		if on {
			l.lookAgain()
		}
	}
	if n.now.Mono >= n.askAt() {
		n.ask()
	}
	for k := 0; k < len(l.rows); {
		if r := &l.rows[k]; r.lost && n.now.Mono >= n.writeOffAt(r) {
			n.writeOff(r.peer.Boot) // removes the row
			continue
		}
		k++
	}
	if l.unsettled {
		n.settle()
	}
	n.replace()
	n.divide()
}

// writeOffAt is when a lost Caddy has no request inside any more, by the
// clock: its lease was over, and it has cut what was inside.
func (n *Node) writeOffAt(r *row) int64 {
	if !r.unheard && !n.lead.holds(r.peer.Boot) {
		return n.now.Mono
	}
	if n.options.Replace {
		return never
	}
	return after(r.until, n.options.LostAfter)
}

// replace orders the replacement of instances in which a lost Caddy may have
// requests for an unknown time.
func (n *Node) replace() {
	l := n.lead
	if !n.options.Replace || !n.confirmed() {
		return
	}
	for k := range l.ledgers {
		s := &l.ledgers[k]
		for j := range s.instances {
			e := &s.instances[j]
			if e.listed && !e.replaced && n.inDoubt(e) {
				e.replaced = true
				n.emit(Replace{Service: s.name, Instance: e.instance.ID})
			}
		}
	}
	n.replaceSuccessors()
}

func (n *Node) inDoubt(e *entry) bool {
	for k := range n.lead.rows {
		r := &n.lead.rows[k]
		if r.lost && n.now.Mono >= r.until && (e.heldBy(r.peer.Boot) > 0 || r.unheard && e.unknown > 0) {
			return true
		}
	}
	return false
}

func (n *Node) scheduleLeader() {
	l := n.lead
	n.due(n.askAt())
	if l.told {
		n.due(n.now.Mono + int64(n.now.until(l.confirm)))
	}
	if l.unsettled && l.blind > n.now.Mono {
		n.due(l.blind)
	}
	for k := range l.rows {
		r := &l.rows[k]
		switch {
		case r.lost:
			n.due(n.writeOffAt(r))
			if n.options.Replace && r.until > n.now.Mono {
				n.due(r.until)
			}
		case r.peer.Boot != n.self.Boot && n.silentAt(r) > n.now.Mono:
			n.due(n.silentAt(r))
		}
	}
	if n.confirmed() {
		for k := range l.ledgers {
			n.due(l.ledgers[k].planAt)
		}
	}
}

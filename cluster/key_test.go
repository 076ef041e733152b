package cluster

// keyer writes a state so that two states from which the same can follow are
// the same: times are told from now, and counters from what they are compared
// with.
type keyer struct {
	b   []byte
	now int64
}

func (k *keyer) num(n int64) {
	for n > 63 || n < -64 {
		k.b = append(k.b, byte(n)|0x80)
		n >>= 7
	}
	k.b = append(k.b, byte(n)&0x7f)
}

func (k *keyer) yes(flags ...bool) {
	n := byte(0)
	for _, f := range flags {
		n <<= 1
		if f {
			n |= 1
		}
	}
	k.b = append(k.b, n)
}

// time is told in tenths of a tick from now. What lies long back is all one.
func (k *keyer) time(t int64) {
	k.num(max(-60, min(60, (t-k.now)/(tick/10))))
}

func (k *keyer) word(s string) { k.b = append(append(k.b, s...), 0) }

func (k *keyer) view(v View) {
	k.num(int64(v.Number))
	k.word(v.Leader)
	for _, p := range v.Members {
		k.b = append(k.b, p.Boot...)
	}
	k.b = append(k.b, 0)
	for _, p := range v.Lost {
		k.b = append(k.b, p.Boot...)
	}
	k.b = append(k.b, 0)
}

func (w *world) key(b []byte) []byte {
	k := &keyer{b: b[:0], now: w.now}
	k.num((w.until - w.now) / (tick / 4))
	k.view(w.store)
	l := w.left
	for _, n := range []int{l.crashes, l.breaks, l.stale, l.lost, l.demands, l.slow, l.away, l.restores, l.wipes, l.views, l.leaves, l.joins, len(w.stale), len(w.late)} {
		k.num(int64(n))
	}
	for i, r := range w.routers {
		k.yes(r.alive, r.looked, r.waiting, r.watch, r.mustList, r.reading != 0, r.swap != nil)
		if !r.alive {
			continue
		}
		k.num(int64(r.slots))
		k.num(int64(r.inUse))
		k.yes(r.sawDead...)
		if r.reading != 0 {
			k.view(r.begun)
		}
		if r.swap != nil {
			k.view(r.swap.Expect)
			k.view(r.swap.Next)
		}
		k.node(w, r.node)
		for j := range w.pipes[i] {
			p := w.pipes[i][j]
			k.yes(p.up, p.heardDown)
			for _, batch := range p.messages {
				k.messages(w, i, j, batch)
			}
		}
	}
	for _, s := range w.stale {
		k.num(int64(s.from*8 + s.to))
		k.messages(w, s.from, s.to, s.messages)
	}
	for _, s := range w.late {
		k.view(s.Expect)
		k.view(s.Next)
	}
	return k.b
}

func (k *keyer) messages(w *world, from, to int, batch []Message) {
	k.num(int64(len(batch)))
	for _, m := range batch {
		k.message(w, from, to, m)
	}
}

// message writes a message between two, counters as differences to what the
// member has.
func (k *keyer) message(w *world, from, to int, m Message) {
	k.num(int64(m.View))
	member := w.routers[to].node
	switch m.Body.(type) {
	case Hello, Heartbeat, Return, Need, Leave, Still:
		member = w.routers[from].node
	}
	k.num(int64(member.member.session) - int64(m.Session))
	s := member.service(theService)
	switch b := m.Body.(type) {
	case Hello:
		k.word("hello")
		k.yes(b.Leaving)
		for _, h := range b.Held {
			k.num(int64(h.N))
		}
	case Welcome:
		k.word("welcome")
	case Heartbeat:
		k.word("beat")
		k.time(b.Sent.Mono)
	case Ack:
		k.word("ack")
		k.time(b.Sent.Mono)
		k.num(int64(b.Rest) / (tick / 10))
	case Grant:
		k.word("grant")
		for _, g := range b.Slots {
			k.num(int64(g.N))
		}
	case Return:
		k.word("return")
		for _, g := range b.Slots {
			k.num(int64(g.N))
		}
	case Recall:
		k.word("recall")
		k.num(int64(b.Until) - int64(s.returned))
		k.num(int64(b.Busy))
	case Need:
		k.word("need")
		k.num(int64(b.Waiting))
		k.num(int64(s.granted) - int64(b.Granted))
	case Leave:
		k.word("leave")
	case Announce:
		k.word("announce")
		k.num(int64(len(b.Instances)))
	case Ask:
		k.word("ask")
		k.num(int64(b.Round))
	case Still:
		k.word("still")
		k.num(int64(b.Round))
	case NewView:
		k.word("view")
		k.view(b.View)
	}
}

func (k *keyer) node(w *world, n *Node) {
	m, r := &n.member, &n.register
	k.view(n.view)
	k.time(n.followed)
	for _, s := range n.streams {
		k.b = append(k.b, s...)
	}
	k.b = append(k.b, 0)
	for _, s := range n.dead {
		k.b = append(k.b, s...)
	}
	k.b = append(k.b, 0)
	k.yes(r.reading != 0, r.wanted, r.reading <= r.old, r.answers, r.known, r.odd, r.swapping != 0)
	k.yes(r.risky, r.lost, m.helloed, m.welcomed, m.isolated, m.cut, m.leaving, m.leaveSent)
	k.time(r.begun.Mono)
	k.time(r.readAt)
	k.time(r.answer)
	k.view(r.found)
	k.time(r.swapAt)
	if r.swapping != 0 || r.lost {
		k.time(r.swapBegun.Mono)
		k.num(int64(r.from))
		k.view(r.next)
	}
	k.time(m.helloAt)
	k.time(m.beatAt)
	k.time(m.acked)
	k.time(m.leaseEnd.Mono)
	s := n.service(theService)
	k.yes(s.told, s.known, s.watched)
	k.num(int64(s.need.Waiting))
	k.num(int64(s.sent.Waiting))
	k.num(int64(s.granted - s.sent.Granted))
	k.time(s.sentAt)
	k.num(int64(s.until) - int64(s.returned))
	k.num(int64(s.busy))
	for _, sh := range s.shares {
		k.yes(sh.listed, sh.obeyed)
		k.num(int64(sh.held))
		k.num(int64(sh.limit))
		k.num(int64(sh.inUse))
		k.num(int64(sh.pinned))
	}
	if l := n.lead; l != nil {
		k.leader(w, l)
	}
}

func (k *keyer) leader(w *world, l *leader) {
	k.word("leads")
	k.num(int64(l.term))
	k.time(l.confirm.Mono)
	k.time(l.blind)
	k.time(l.quiet)
	k.yes(l.told, l.unsettled, l.round != 0)
	if l.round != 0 {
		k.time(l.roundBegun.Mono)
		for _, a := range l.answered {
			k.b = append(k.b, a...)
		}
	}
	for _, r := range l.rows {
		k.word(r.peer.Boot)
		k.yes(r.known, r.leased, r.unheard, r.lost, r.leaving, r.left, r.beats)
		if r.beats {
			k.time(r.beat.Mono)
		}
		k.num(int64(w.routers[index(r.peer.Boot)].node.member.session) - int64(r.session))
		k.time(r.heard)
		k.time(r.until)
	}
	for _, j := range l.joining {
		k.word(j.Boot)
	}
	s := l.ledger(theService)
	k.yes(s.dirty, s.changed, s.summed)
	k.time(s.planAt)
	k.time(s.sumAt)
	for _, e := range s.instances {
		k.yes(e.listed, e.empty, e.replaced)
		k.num(int64(e.unknown))
		for _, h := range e.holdings {
			k.word(h.boot)
			k.num(int64(h.n))
		}
	}
	for _, c := range s.claims {
		k.word(c.boot)
		k.num(int64(c.need.Waiting))
		k.time(c.since)
		k.num(int64(c.granted) - int64(c.need.Granted))
		k.num(int64(c.asked) - int64(c.back))
		k.num(int64(c.busy))
	}
}

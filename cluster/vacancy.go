package cluster

import "slices"

// vacancy is an address that an instance has left. What gets it next, a container
// that was started again or another instance, is reached by Caddys that have not
// heard of it yet, in the slots of the one before. So those count as slots of the
// next one: none of it is granted before they were returned or written off.
type vacancy struct {
	service, instance, network, address string

	// unknown is true if Caddys of which the leader has not heard may hold slots of
	// it, too.
	unknown bool
}

// of reports whether an instance is reached at the address.
func (v vacancy) of(s *ledger, e *entry) bool {
	return v.address == e.instance.Address && v.network == e.instance.Network && (v.instance != e.instance.ID || v.service != s.name)
}

// vacate takes note that the instance of e has left its address.
func (n *Node) vacate(service string, e *entry) {
	if e.instance.Address != "" && !n.faults.noVacancy {
		v := vacancy{service, e.instance.ID, e.instance.Network, e.instance.Address, n.lead.unsettled && !e.instance.Fresh}
		n.lead.vacancies = append(slices.Clone(n.lead.vacancies), v)
	}
}

// vacated takes note of the address of an instance that a member holds slots of,
// and that is not listed.
func (n *Node) vacated(e *entry, h Slots) {
	if !e.listed && h.Address != "" && e.instance.Address == "" {
		e.instance.Network, e.instance.Address = h.Network, h.Address
		n.vacate(h.Service, e)
	}
}

// left returns the record of the instance that has left an address, if a Caddy
// still holds slots of it; else nil.
func (l *leader) left(v vacancy) *entry {
	s := l.ledger(v.service)
	if k, ok := s.find(v.instance); ok && !s.instances[k].listed && s.instances[k].held() > 0 {
		return &s.instances[k]
	}
	return nil
}

// settleVacancies forgets the addresses that can be used anew.
func (n *Node) settleVacancies() {
	l := n.lead
	if len(l.vacancies) == 0 {
		return
	}
	unknown := l.mayHoldUnknown(n)
	some := slices.DeleteFunc(slices.Clone(l.vacancies), func(v vacancy) bool { return l.left(v) == nil && !(unknown && v.unknown) })
	if len(some) < len(l.vacancies) {
		l.vacancies = some
		l.lookAgain()
	}
}

// mayHoldUnknown reports whether a Caddy may hold slots of which the leader does
// not know.
func (l *leader) mayHoldUnknown(n *Node) bool {
	if !l.unsettled || !n.options.Replace {
		return l.unsettled
	}
	return n.now.Mono < l.blind || slices.ContainsFunc(l.rows, func(r row) bool { return r.unheard && !(r.lost && n.now.Mono >= r.until) })
}

// closeVacant keeps the slots of instances from being granted that others may
// reach in the slots of one that has left.
func (l *leader) closeVacant(s *ledger) {
	for k := range s.instances {
		e := &s.instances[k]
		e.waits = slices.ContainsFunc(l.vacancies, func(v vacancy) bool { return v.of(s, e) })
	}
}

// replaceSuccessors orders the replacement of what has an address at which a lost
// Caddy may have requests for an unknown time.
func (n *Node) replaceSuccessors() {
	l := n.lead
	for _, v := range l.vacancies {
		e := l.left(v)
		inDoubt := false
		for k := range l.rows {
			r := &l.rows[k]
			if !r.lost || n.now.Mono < r.until {
				continue
			}
			if holds := e != nil && e.heldBy(r.peer.Boot) > 0; holds || r.unheard && v.unknown {
				inDoubt = true
			}
			if e != nil {
				e.drop(r.peer.Boot) // from here on it is the successor that counts
			}
		}
		if !inDoubt {
			continue
		}
		for k := range l.ledgers {
			s := &l.ledgers[k]
			for j := range s.instances {
				if e := &s.instances[j]; e.listed && !e.replaced && v.of(s, e) {
					e.replaced = true
					n.emit(Replace{Service: s.name, Instance: e.instance.ID})
				}
			}
		}
	}
}

package reserver

// list is an intrusive, doubly linked list of reservations.
type list struct {
	first, last *Reservation
}

func (l *list) push(r *Reservation) {
	r.prev, r.next = l.last, nil
	if l.last == nil {
		l.first = r
	} else {
		l.last.next = r
	}
	l.last = r
}

func (l *list) remove(r *Reservation) {
	if r.prev == nil {
		l.first = r.next
	} else {
		r.prev.next = r.next
	}
	if r.next == nil {
		l.last = r.prev
	} else {
		r.next.prev = r.prev
	}
	r.next, r.prev = nil, nil
}

// line is the waiting line: those that are tried again, in the order of
// their failures, then all others in the order of their arrival.
type line struct {
	front, back list
	len, quiet  int
}

func (l *line) part(r *Reservation) *list {
	if r.again {
		return &l.front
	}
	return &l.back
}

func (l *line) push(r *Reservation) {
	l.part(r).push(r)
	l.len++
	if r.quiet {
		l.quiet++
	}
}

func (l *line) remove(r *Reservation) {
	l.part(r).remove(r)
	l.len--
	if r.quiet {
		l.quiet--
	}
}

func (l *line) first() *Reservation {
	if l.front.first != nil {
		return l.front.first
	}
	return l.back.first
}

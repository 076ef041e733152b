package reserver

import "time"

// kind tells the two kinds of waiters apart.
type kind uint8

const (
	requests kind = iota // Reservation: gets a slot when its turn comes
	visitors             // Visitor: is called when its turn comes, and gets none
	kinds
)

// waiter is a place in the queue, with what it asks for. It is part of a
// Reservation or of a Visitor. All fields are guarded by the service's lock.
type waiter struct {
	Ask
	kind    kind
	urgent  bool          // stands before all others: it had a slot, or was called
	arrived time.Duration // as arrival gives it; a visitor keeps that of its request

	reservation *Reservation // of requests
	visitor     *Visitor     // of visitors

	// links of the list that the waiter is in: a part of the queue, or the
	// holders of an instance.
	next, prev *waiter

	// bound is the instance for which alone it waits, or nil.
	bound *Instance

	// Of turns: where it waits, and the class to which it has risen, with the
	// time of the next rise.
	class            Class
	share            *share
	lane             *lane
	place, risePlace int
	rises            time.Duration
}

// order is the order in which waiters get their turns. The service's lock is
// held in all calls.
type order interface {
	// push adds w behind all waiters of its kind that came before it.
	push(w *waiter)
	// remove takes w out.
	remove(w *waiter)
	// first returns the waiter of a kind whose turn is next, or nil. Those that
	// are bound to an instance have their turns there.
	first(k kind) *waiter
	// before reports whether the turn of v comes before that of w.
	before(v, w *waiter) bool
	// served takes note that w has had its turn. It is called before remove.
	served(w *waiter)
	// oldest returns the waiter of a kind that has waited longest, or nil.
	oldest(k kind) *waiter
	// ahead counts the waiters that have their turns before w, which waits or
	// would come now, but no more than most.
	ahead(w *waiter, most int) int
	// each calls f for every waiter of a kind. f may remove the waiter that it
	// is given.
	each(k kind, f func(w *waiter))
}

// fifo is first in, first out, with urgent waiters before all others: the order
// of a queue in which all waiters are plain. Pushing and removing take O(1), but
// a visitor that takes the place of its request looks for it among the visitors
// that came later.
type fifo struct {
	urgent list // requests only: a visitor gives up its claim when it arrives
	lists  [kinds]list
}

func (q *fifo) list(w *waiter) *list {
	if w.urgent {
		return &q.urgent
	}
	return &q.lists[w.kind]
}

func (q *fifo) push(w *waiter)   { q.list(w).insert(w) }
func (q *fifo) remove(w *waiter) { q.list(w).remove(w) }

func (q *fifo) first(k kind) *waiter {
	if k == requests && q.urgent.first != nil {
		return q.urgent.first
	}
	return q.lists[k].first
}

func (q *fifo) before(v, w *waiter) bool {
	if v.urgent != w.urgent {
		return v.urgent
	}
	return v.arrived < w.arrived
}

func (q *fifo) served(*waiter) {}

func (q *fifo) oldest(k kind) *waiter {
	w := q.lists[k].first
	if u := q.urgent.first; k == requests && u != nil && (w == nil || u.arrived < w.arrived) {
		return u
	}
	return w
}

func (q *fifo) ahead(w *waiter, most int) int {
	n := 0
	for _, l := range []*list{&q.urgent, &q.lists[requests], &q.lists[visitors]} {
		for v := l.first; v != nil && q.before(v, w) && n < most; v = v.next {
			n++
		}
	}
	return n
}

func (q *fifo) each(k kind, f func(*waiter)) {
	if k == requests {
		q.urgent.each(f)
	}
	q.lists[k].each(f)
}

// asTurns moves all waiters to an order for waiters that are not plain. None of
// those here is bound, and each keeps its place.
func (q *fifo) asTurns(now func() time.Duration) *turns {
	t := newTurns(now)
	for k := range kinds {
		q.each(k, func(w *waiter) {
			q.remove(w)
			t.push(w)
		})
	}
	return t
}

// list is an intrusive, doubly linked list of waiters.
type list struct {
	first, last *waiter
}

// insert puts w behind all that came before it. Most come later than all
// others.
func (l *list) insert(w *waiter) {
	after := l.last
	for after != nil && after.arrived > w.arrived {
		after = after.prev
	}
	w.prev = after
	if after == nil {
		w.next, l.first = l.first, w
	} else {
		w.next, after.next = after.next, w
	}
	if w.next == nil {
		l.last = w
	} else {
		w.next.prev = w
	}
}

// each calls f for every waiter. f may remove the waiter that it is given.
func (l *list) each(f func(*waiter)) {
	for w := l.first; w != nil; {
		next := w.next
		f(w)
		w = next
	}
}

// push puts w at the end.
func (l *list) push(w *waiter) {
	w.prev, w.next = l.last, nil
	if l.last == nil {
		l.first = w
	} else {
		l.last.next = w
	}
	l.last = w
}

func (l *list) remove(w *waiter) {
	if w.prev == nil {
		l.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		l.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.next, w.prev = nil, nil
}

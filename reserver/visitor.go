package reserver

import "time"

type visitorState uint8

const (
	visitorOut    visitorState = iota // has no place in the queue, or not any more
	visitorWaits                      // has a place in the queue
	visitorCalled                     // its turn came, and its request is on the way
)

// Visitor is a waiter without a request: a person whose browser was told to ask
// again when it is their turn. It counts as demand like a waiting request, and
// it never holds a slot. When its turn comes it is called, and the slot stays
// free. The request that follows, by Visitor.Reserve, stands before all others
// in the queue.
//
// No more visitors are called than slots are free, so that they need not ask
// more than once.
//
// A visitor has one turn. The zero value is ready for use and must not be copied
// once used.
type Visitor struct {
	waiter

	service *Service
	turn    chan struct{} // closed when the visitor has no place any more

	// Guarded by the service's lock.
	state  visitorState
	reason error // why it has no place; nil when it was called
}

// Visit gives v a place at the end of the queue. It returns an error if
// waiting is refused now. The caller bounds the number of visitors.
func (s *Service) Visit(v *Visitor, ask Ask) error {
	s.mu.Lock()
	defer s.unlock()
	if s.refusal != nil || ask.Quiet && len(s.opened) == 0 {
		err := s.refusal
		if err == nil {
			err = ErrAsleep
		} else {
			s.refusedDemand = s.refusedDemand || !ask.Quiet
		}
		return err
	}
	if !ask.Quiet {
		s.addDemand(1)
	}
	s.seatVisitor(v, ask, s.arrival())
	s.dispatch()
	return nil
}

// Keep gives the place of r, which waits, to v. It returns false, and does
// nothing, if r waits no longer: Granted says why.
func (r *Reservation) Keep(v *Visitor) bool {
	s := r.service
	s.mu.Lock()
	defer s.unlock()
	if r.state != waiting {
		return false
	}
	if r.bound != nil && !r.Quiet {
		s.addDemand(1) // as a visitor
	}
	// The other way round its share could lose its turn.
	s.seatVisitor(v, r.Ask, r.arrived)
	s.leave(r)
	r.state = idle
	s.dispatch() // r may have been bound to a full instance
	return true
}

// seatVisitor puts v into the queue. Demand is not touched. The lock is held.
func (s *Service) seatVisitor(v *Visitor, ask Ask, arrived time.Duration) {
	*v = Visitor{service: s, turn: make(chan struct{}), state: visitorWaits}
	v.waiter = waiter{Ask: ask, kind: visitors, arrived: arrived, visitor: v}
	s.enqueue(&v.waiter)
}

// Turn returns a channel that is closed when v has no place in the queue any
// more: Reason says why.
func (v *Visitor) Turn() <-chan struct{} { return v.turn }

// Reason says why v has no place any more; nil if its turn has come.
func (v *Visitor) Reason() error {
	v.service.mu.Lock()
	defer v.service.mu.Unlock()
	return v.reason
}

// Since returns the time at which v got its place, or since when it counts by
// Advance.
func (v *Visitor) Since() time.Time {
	v.service.mu.Lock()
	defer v.service.mu.Unlock()
	return v.service.made.Add(v.arrived)
}

// AheadMost is what Ahead returns if so many waiters stand before a visitor, or
// more. Counting holds the lock, so it has a bound.
const AheadMost = 1000

// Ahead returns how many waiters stand before v, AheadMost at most. It looks at
// each of them.
func (v *Visitor) Ahead() int {
	s := v.service
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.state != visitorWaits {
		return 0
	}
	called := min(int(s.called), AheadMost)
	return called + s.queue.ahead(&v.waiter, AheadMost-called)
}

// Leave gives up the place of v, and its claim if it was called. It does
// nothing if v has neither.
func (v *Visitor) Leave() {
	if v.service == nil {
		return
	}
	s := v.service
	s.mu.Lock()
	left := s.dropVisitor(v)
	if left && !v.Quiet {
		s.addDemand(-1)
	}
	// Another one may be called instead.
	s.dispatch()
	last := left && s.waiting[requests]+s.waiting[visitors]+s.called == 0
	s.unlock()
	if last {
		s.hooks.Abandoned()
	}
}

// dropVisitor takes v out of whatever it is in. Demand is not touched. The lock
// is held.
func (s *Service) dropVisitor(v *Visitor) bool {
	switch v.state {
	case visitorWaits:
		s.dequeue(&v.waiter)
		close(v.turn)
	case visitorCalled:
		s.called--
	default:
		return false
	}
	v.state = visitorOut
	return true
}

// Reserve asks for a slot for r, which is the request of v. v gives up its
// place. If v was called, r stands before all others in the queue. The request
// may have got a session that v had not. The result is that of Service.Reserve.
func (v *Visitor) Reserve(r *Reservation, ask Ask) (bool, error) {
	s := v.service
	s.mu.Lock()
	r.ask(s, ask)
	r.urgent = v.state == visitorCalled
	if s.dropVisitor(v) && !v.Quiet {
		// First, or the two would count as more demand than there is.
		s.addDemand(-1)
	}
	ok, err := s.reserve(r)
	s.dispatch() // r may wait for the instance of its session, and its claim is free
	s.unlock()
	return ok, err
}

// callVisitor calls the first visitor if its turn comes before that of the next
// request, which may be nil, and fewer were called than slots are free. The lock
// is held.
func (s *Service) callVisitor(next *waiter) bool {
	w := s.queue.first(visitors)
	if w == nil {
		return false
	}
	if next != nil && s.queue.before(next, w) {
		return false
	}
	if !s.pool.hasMoreThan(int(s.called)) {
		return false
	}
	s.queue.served(w)
	s.dequeue(w)
	s.called++
	w.visitor.state = visitorCalled
	close(w.visitor.turn)
	return true
}

// dismissVisitor takes v out of the queue and tells it why. The lock is held.
func (s *Service) dismissVisitor(v *Visitor, reason error) {
	v.reason = reason
	s.dropVisitor(v)
	if !v.Quiet {
		s.addDemand(-1)
	}
}

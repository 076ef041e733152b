package reserver

import "time"

// Advance gives r, if it waits, the place of one that has waited for age: it goes
// on with a wait that began elsewhere. If that one was called, r stands before all
// others. It does nothing if r does not wait, and never puts r further back. A
// share of which only r waits takes its turn behind the others.
func (r *Reservation) Advance(age time.Duration, called bool) {
	s := r.service
	s.mu.Lock()
	defer s.unlock()
	if r.state == waiting {
		s.advance(&r.waiter, age, called)
	}
}

// Advance gives v, if it waits, the place of one that has waited for age. Else it
// does nothing, and it never puts v further back.
func (v *Visitor) Advance(age time.Duration) {
	s := v.service
	s.mu.Lock()
	defer s.unlock()
	if v.state == visitorWaits {
		s.advance(&v.waiter, age, false)
	}
}

// advance puts w, which waits, further to the front. The lock is held.
func (s *Service) advance(w *waiter, age time.Duration, urgent bool) {
	s.dequeue(w)
	w.arrived, w.urgent = min(w.arrived, s.sinceMade()-age), w.urgent || urgent
	s.enqueue(w)
}

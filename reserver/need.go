package reserver

import "time"

// Need says what the requests of a service need at one moment. It is filled in
// by Service.Need.
type Need struct {
	// Waiting is the number of requests that wait for any instance, quiet ones
	// included, and OldestWait the time since when the oldest of them waits
	// (zero if there is none).
	Waiting    int
	OldestWait time.Time

	// Bound are the instances for which requests of their sessions wait. They are
	// in the order in which the oldest of those requests came.
	Bound []BoundNeed

	// Visitors is the number of visitors that wait to be called, and OldestVisitor
	// the time at which the first of them came (zero if there is none). They are
	// called when a slot is free.
	Visitors      int
	OldestVisitor time.Time

	// InUse, Demand and Arrivals are those of Stats.
	InUse, Demand int
	Arrivals      uint64
}

// BoundNeed says how many requests wait for one instance alone, and since when
// the oldest of them waits.
type BoundNeed struct {
	Instance   *Instance
	Waiting    int
	OldestWait time.Time
}

// Need fills in n, and uses the memory of n.Bound again. It also asks for one
// call of the function of SetChanged. It takes the lock for a few loads; if
// requests wait for the instances of their sessions, it also looks at waiters,
// in the order of their arrival, until it has seen the oldest of each kind.
func (s *Service) Need(n *Need) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*n = Need{
		Waiting: int(s.waiting[requests] - s.bound), Bound: n.Bound[:0], Visitors: int(s.waiting[visitors]),
		InUse: s.inUse, Demand: s.demand, Arrivals: s.arrivals,
	}
	if n.Visitors > 0 {
		n.OldestVisitor = s.made.Add(s.queue.oldest(visitors).arrived)
	}
	s.oldestOfEach(n)
	s.tellChange = s.changed != nil
}

// oldestOfEach looks for the oldest request that waits for any instance, and the
// oldest for each that requests are bound to. The lock is held.
func (s *Service) oldestOfEach(n *Need) {
	if s.waiting[requests] == 0 {
		return
	}
	s.reading++
	w, bound := s.queue.oldest(requests), int(s.bound)
	if bound == 0 {
		n.OldestWait = s.made.Add(w.arrived)
		return
	}
	// Only turns have waiters that are bound, and there all requests are in one
	// list.
	for ; bound > 0 || n.Waiting > 0 && n.OldestWait.IsZero(); w = w.next {
		switch i := w.bound; {
		case i == nil:
			if n.OldestWait.IsZero() {
				n.OldestWait = s.made.Add(w.arrived)
			}
		case i.reading != s.reading:
			i.reading = s.reading
			bound -= i.line.n
			n.Bound = append(n.Bound, BoundNeed{Instance: i, Waiting: i.line.n, OldestWait: s.made.Add(w.arrived)})
		}
	}
}

// SetChanged sets the function that is called, once after each call of Need,
// when what Need reads may have changed. So a receiver is called no more often
// than it reads. The function is called without the lock of the service held, in
// the goroutine of the change, and must not block. It may be called when nothing
// has changed, and after a later call of Need; it is never left out. SetChanged is
// called once, before the first Need.
func (s *Service) SetChanged(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = f
}

package reserver

import "time"

// Placement says on which instance the session of a key is.
type Placement struct {
	Key      uint64
	Instance uint64 // its Hash

	// Learned is true if an answer of the instance has set the key, so that no
	// other instance can have the session.
	Learned bool
}

// SetPlaced sets the function that is called when TakePlaced has something, once
// until that is called. It is called without the lock of the service held and must
// not block. SetPlaced is called once, before the first request; without it
// nothing is kept for TakePlaced.
func (s *Service) SetPlaced(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.placed = f
	s.sessions.tells = true
}

// TakePlaced returns the placements since the last call, by requests of this
// service: of keys that are new, that have moved, or that are still in use and
// were not returned for a quarter of the session timeout. So another service that
// is told of them remembers what this one does.
func (s *Service) TakePlaced() []Placement {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.sessions.untold
	s.sessions.untold = nil
	return all
}

// Placements returns all that is remembered.
func (s *Service) Placements() []Placement {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Placement, 0, len(s.sessions.of))
	for _, x := range s.sessions.of {
		all = append(all, x.placement())
	}
	return all
}

func (x *session) placement() Placement { return Placement{x.key, x.instance.hash, x.learned} }

// Place notes that the session of a key is where p says, as another service has
// it. It returns false, and does nothing, if there is no such instance, or if it
// serves no sessions.
func (s *Service) Place(p Placement) bool {
	s.mu.Lock()
	defer s.unlock()
	return s.place(p)
}

func (s *Service) place(p Placement) bool {
	i := s.byHash[p.Instance]
	if i == nil || !i.keeps() {
		return false
	}
	var was *Instance
	if x := s.sessions.of[p.Key]; x != nil {
		was = x.instance
	}
	now := time.Since(s.made)
	x := s.sessions.put(p.Key, i, now)
	x.told, x.learned = now, p.Learned
	if was != nil && was != i {
		s.moveWaiters(p.Key, was, i)
	}
	return true
}

// moveWaiters lets the requests of a key that wait for the one instance alone wait
// for the other. There they would be served, and take the session back with them.
// The lock is held.
func (s *Service) moveWaiters(key uint64, from, to *Instance) {
	if from.line.n == 0 {
		return
	}
	q := s.queue.(*turns)
	q.each(requests, func(w *waiter) {
		if w.bound == from && w.Affinity == ByKey && w.Key == key {
			q.bind(w, to)
		}
	})
	s.serve(to)
}

// PlaceUnlessKept does the same unless the key has a session on another instance
// that goes on; one that was learned moves it in any case. It returns the placement
// that holds now. ok is false if there is none.
func (s *Service) PlaceUnlessKept(p Placement) (holds Placement, ok bool) {
	s.mu.Lock()
	defer s.unlock()
	if x := s.sessions.find(p.Key, time.Since(s.made)); x != nil && x.instance.keeps() && !p.Learned {
		if x.instance.hash == p.Instance {
			s.place(p)
		}
		return x.placement(), true
	}
	return p, s.place(p)
}

// tell has a placement returned by TakePlaced, if it was not of late. It reports
// whether it is the first one there.
func (t *sessions) tell(x *session, moved bool, now time.Duration) (first bool) {
	if !t.tells || !moved && now-x.told < t.timeout/4 {
		return false
	}
	x.told = now
	t.untold = append(t.untold, x.placement())
	return len(t.untold) == 1
}

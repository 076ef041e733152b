package reserver

import "time"

type guestState uint8

const (
	guestOut    guestState = iota // has no place, or not any more
	guestWaits                    // has a place in the line
	guestCalled                   // its turn came, and its request is on the way
)

// Guest is a place in the line without a request: somebody was told to come
// again when it is their turn. It counts as demand like one who waits, and it
// never holds a slot: when its turn comes it is called, and the slot stays
// free for whoever asks. The request that comes then, by Guest.Reserve, stands
// before everyone in the line.
//
// No more guests are called than slots are free, so that they need not come
// again and again.
//
// A guest has one turn. The zero value is ready for use and must not be copied
// once used.
type Guest struct {
	service *Service
	turn    chan struct{} // closed when the guest has no place any more

	// Guarded by the service's lock.
	state      guestState
	reason     error // why it has no place; nil when it was called
	since      time.Time
	quiet      bool
	next, prev *Guest
}

// guests are those that have a place, by the time since when they have it.
type guests struct {
	first, last *Guest
	len, quiet  int
	called      int // of those that have none any more: how many are on the way
}

// nobody are the guests of all services that never had any: most have no
// waiting page. It is never written to.
var nobody guests

// insert finds the place of g. Most come later than all others.
func (l *guests) insert(g *Guest) {
	after := l.last
	for after != nil && after.since.After(g.since) {
		after = after.prev
	}
	g.prev = after
	if after == nil {
		g.next, l.first = l.first, g
	} else {
		g.next, after.next = after.next, g
	}
	if g.next == nil {
		l.last = g
	} else {
		g.next.prev = g
	}
	l.len++
	if g.quiet {
		l.quiet++
	}
}

func (l *guests) remove(g *Guest) {
	if g.prev == nil {
		l.first = g.next
	} else {
		g.prev.next = g.next
	}
	if g.next == nil {
		l.last = g.prev
	} else {
		g.next.prev = g.prev
	}
	g.next, g.prev = nil, nil
	l.len--
	if g.quiet {
		l.quiet--
	}
}

// Invite gives g a place at the end of the line. It returns an error if nobody
// may wait. How many guests there are is for the caller to bound.
//
// A quiet guest is no reason to have an instance.
func (s *Service) Invite(g *Guest, quiet bool) error {
	s.mu.Lock()
	if s.refusal != nil || quiet && s.open == 0 {
		err := s.refusal
		if err == nil {
			err = ErrAsleep
		} else {
			s.knocked = s.knocked || !quiet
		}
		s.mu.Unlock()
		return err
	}
	due := false
	if !quiet {
		due = s.addDemand(1)
	}
	s.admitGuest(g, time.Now(), quiet)
	s.dispatch()
	s.mu.Unlock()
	if due {
		s.hooks.Demand()
	}
	return nil
}

// Keep gives the place of r, which waits, to g. It returns false, and does
// nothing, if r waits no longer: Granted says why.
func (r *Reservation) Keep(g *Guest) bool {
	s := r.service
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.state != waiting {
		return false
	}
	s.leave(r)
	r.state = idle
	s.admitGuest(g, r.since, r.quiet)
	return true
}

// admitGuest puts g into the line. Demand is not touched. The lock is held.
func (s *Service) admitGuest(g *Guest, since time.Time, quiet bool) {
	*g = Guest{service: s, turn: make(chan struct{}), state: guestWaits, since: since, quiet: quiet}
	if s.guests == &nobody {
		s.guests = new(guests)
	}
	s.guests.insert(g)
}

// Turn returns a channel that is closed when g has no place in the line any
// more: Reason says why.
func (g *Guest) Turn() <-chan struct{} { return g.turn }

// Reason says why g has no place any more; nil if its turn has come.
func (g *Guest) Reason() error {
	g.service.mu.Lock()
	defer g.service.mu.Unlock()
	return g.reason
}

// Since returns the time since when g has its place.
func (g *Guest) Since() time.Time { return g.since }

// AheadMost is what Ahead returns if so many stand before a guest, or more:
// everybody waits for the lock meanwhile.
const AheadMost = 1000

// Ahead returns how many stand in the line before g, AheadMost at most. It
// looks at each of them.
func (g *Guest) Ahead() int {
	s := g.service
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.state != guestWaits {
		return 0
	}
	n := s.guests.called
	for r := s.line.front.first; r != nil && n < AheadMost; r = r.next {
		n++
	}
	for r := s.line.back.first; r != nil && !r.since.After(g.since) && n < AheadMost; r = r.next {
		n++
	}
	for o := g.prev; o != nil && n < AheadMost; o = o.prev {
		n++
	}
	return min(n, AheadMost)
}

// Leave gives up the place of g, and its claim if it was called. It does
// nothing if g has neither.
func (g *Guest) Leave() {
	if g.service == nil {
		return
	}
	s := g.service
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.outGuest(g) && !g.quiet {
		s.addDemand(-1)
	}
	// Another one may be called instead.
	s.dispatch()
}

// outGuest takes g out of whatever it is in. Demand is not touched. The lock
// is held.
func (s *Service) outGuest(g *Guest) bool {
	switch g.state {
	case guestWaits:
		s.guests.remove(g)
		close(g.turn)
	case guestCalled:
		s.guests.called--
	default:
		return false
	}
	g.state = guestOut
	return true
}

// Reserve asks for a slot for r, which is the request of g, and g gives up its
// place. If g was called, r stands before everyone in the line. The result is
// that of Service.Reserve.
func (g *Guest) Reserve(r *Reservation) (bool, error) {
	s := g.service
	s.mu.Lock()
	r.service, r.quiet, r.again = s, g.quiet, g.state == guestCalled
	if s.outGuest(g) && !g.quiet {
		// First, or the two would count as more demand than there is.
		s.addDemand(-1)
	}
	ok, due, err := s.reserve(r)
	s.mu.Unlock()
	if due {
		s.hooks.Demand()
	}
	return ok, err
}

// callGuest calls the first guest if it is older than all who wait, and fewer
// were called than slots are free. The lock is held, and a slot is free.
func (s *Service) callGuest() bool {
	g := s.guests.first
	if g == nil {
		return false
	}
	if r := s.line.first(); r != nil && (r.again || !r.since.After(g.since)) {
		return false
	}
	if s.unlimited == 0 && s.guests.called >= max(1, s.slots-s.inUse) {
		return false
	}
	s.guests.remove(g)
	s.guests.called++
	g.state = guestCalled
	close(g.turn)
	return true
}

// dismissGuests tells the guests, or only the quiet ones, that nobody may
// wait. The lock is held.
func (s *Service) dismissGuests(reason error, onlyQuiet bool) {
	for g := s.guests.first; g != nil; {
		next := g.next
		if g.quiet || !onlyQuiet {
			g.reason = reason
			s.outGuest(g)
			if !g.quiet {
				s.addDemand(-1)
			}
		}
		g = next
	}
}

package reserver

import "time"

// Fate is what became of a request on its instance, as far as it tells
// something about the instance.
type Fate uint8

// The fates of a request.
const (
	// Neutral tells nothing: the client left, or nothing was sent.
	Neutral Fate = iota
	// Answered: the instance answered, whatever the answer. It clears the
	// instance's record.
	Answered
	// Failed: the instance may have seen the request and did not answer it.
	// Three in a row eject it.
	Failed
	// Refused: no connection could be made. It ejects the instance at once.
	Refused
	// Doubted: nothing was sent, because at the address of the instance there
	// may be something else by now. It gets nothing more until it was vouched
	// for.
	Doubted
)

type state uint8

const (
	idle    state = iota // neither waits nor holds anything
	waiting              // stands in the line
	held                 // holds a slot of instance
)

// Reservation is one request's hold on a slot, or its place in the line. The
// zero value is ready for use, can be embedded, and must not be copied once
// used. It belongs to one goroutine, that of the request; only Granted may be
// received from elsewhere.
type Reservation struct {
	// Interrupt, if set before Reserve, is called when the instance is gone
	// and the request should not wait for an answer any longer. It is called
	// from any goroutine, without locks, possibly more than once, and
	// possibly a moment after the release.
	Interrupt func(cause error)

	service  *Service
	granted  chan error // size 1, filled under the service's lock
	since    time.Time  // when it joined the line
	instance *Instance
	epoch    uint32 // of the instance, when the slot was given

	// links of the list that it is in: a part of the line, or the holders of
	// the instance. Guarded by the service's lock, as state is.
	next, prev *Reservation
	state      state
	quiet      bool
	again      bool
	doubt      bool
}

// Reserve asks for a slot. It returns true if r holds one now, and an error
// if r neither holds one nor may wait for one. Otherwise r stands in the
// line, and the caller waits for Granted or calls Cancel.
//
// A quiet request is served while an instance takes requests, but is no
// reason to have one: it gets ErrAsleep while there is none.
func (s *Service) Reserve(r *Reservation, quiet bool) (bool, error) {
	r.service, r.quiet, r.again, r.doubt = s, quiet, false, false
	s.mu.Lock()
	ok, due, err := s.reserve(r)
	s.mu.Unlock()
	if due {
		s.hooks.Demand()
	}
	return ok, err
}

func (s *Service) reserve(r *Reservation) (ok, due bool, err error) {
	// An instance in the pool means an empty line, so nobody is overtaken.
	if i := s.pool.take(); i != nil {
		s.seat(r, i)
		if !r.quiet {
			due = s.addDemand(1)
		}
		return true, due, nil
	}
	switch {
	case r.quiet && s.open == 0 && s.refusal == nil:
		return false, false, ErrAsleep
	case s.refusal != nil:
		s.knocked = s.knocked || !r.quiet
		return false, false, s.refusal
	case s.maxWaiting == 0 && !r.doubt || !r.again && s.line.len >= s.maxWaiting, !s.shared.take(r.again):
		// Demand that may not wait is demand all the same: with a limit of
		// 0 it is the only sign that a service is needed.
		if !r.quiet {
			due = s.addDemand(1)
			s.addDemand(-1)
			s.knocked = true
		}
		return false, due, ErrQueueFull
	}
	if r.granted == nil {
		r.granted = make(chan error, 1)
	}
	r.state = waiting
	r.since = time.Now()
	s.line.push(r)
	if !r.quiet {
		due = s.addDemand(1)
	}
	return false, due, nil
}

// Granted delivers, to a reservation in the line, exactly one value: nil when
// it holds a slot, or the reason why it will not get one.
func (r *Reservation) Granted() <-chan error { return r.granted }

// Instance returns the instance of which r holds a slot, or nil.
func (r *Reservation) Instance() *Instance { return r.instance }

// Cancel leaves the line. It returns true if r had got a slot already, which
// it still holds; the caller uses or releases it.
func (r *Reservation) Cancel() (granted bool) {
	s := r.service
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.state == waiting {
		s.leave(r)
		r.state = idle
		if !r.quiet {
			s.addDemand(-1)
		}
		return false
	}
	// The grant, or the refusal, was sent under the lock: it is there.
	select {
	case <-r.granted: //nolint:errcheck // the caller has a reason of its own
	default:
	}
	return r.state == held
}

// Release gives the slot back and tells what became of the request. It does
// nothing if r holds none, so it may be called once too often.
func (r *Reservation) Release(fate Fate) {
	if r.instance == nil {
		return
	}
	s, i := r.service, r.instance
	s.mu.Lock()
	told := s.release(r, fate)
	s.dispatch()
	s.mu.Unlock()
	s.after(i, told)
}

// release takes r out of its instance. The caller hands on the freed slot,
// under the same lock.
func (s *Service) release(r *Reservation, fate Fate) (told news) {
	i := r.instance
	r.state, r.instance = idle, nil
	i.holders.remove(r)
	i.inUse--
	if r.quiet {
		i.quiet--
	}
	if i.removed {
		return told
	}
	s.inUse--
	if !r.quiet && !i.cordoned {
		s.addDemand(-1)
	}
	// What was sent before the instance was ejected and restored tells
	// nothing about it now.
	current := r.epoch == i.epoch
	switch {
	case current && i.judge(fate):
		told.ejected = true
		s.shut(i)
		i.ejected = true
	case current && fate == Doubted && i.Unbound && !i.ejected:
		told.questioned = !i.doubted
		i.doubted, i.questioned = true, true
		s.pool.remove(i)
	case i.isOpen():
		s.pool.freed(i)
	}
	told.drained = i.cordoned && i.inUse == 0
	return told
}

// news is what has happened to an instance that somebody wants to know.
type news struct{ ejected, questioned, drained bool }

// after passes the news on. The lock is not held.
func (s *Service) after(i *Instance, told news) {
	if told.ejected {
		s.hooks.Ejected(i)
	}
	if told.questioned {
		s.hooks.Questioned(i)
	}
	if told.drained {
		s.hooks.Drained(i)
	}
}

// Again gives the slot back and asks for another one, before everyone in the
// line. It is for a request that goes to a second instance, because the first
// cannot have seen it or because it may be repeated; it gets the first again
// only if no other has a free slot. The result is that of Reserve. The limit of
// the line does not apply, unless it is 0 and the instance was not just doubted.
func (r *Reservation) Again(fate Fate) (bool, error) {
	s, i := r.service, r.instance
	var told news
	s.mu.Lock()
	if i != nil {
		told = s.release(r, fate)
		// The freed slot goes to those that were tried again before r; if
		// there are none, r takes it before the rest of the line does.
		if s.line.front.first != nil {
			s.dispatch()
		}
	}
	r.again, r.doubt = true, fate == Doubted
	// The first instance has just become less loaded, so it would be chosen
	// once more; it is, only if there is no other.
	aside := i != nil && i.place >= 0 && len(s.pool.items) > 1
	if aside {
		s.pool.remove(i)
	}
	ok, due, err := s.reserve(r)
	if aside {
		s.pool.freed(i)
	}
	s.mu.Unlock()
	s.after(i, told)
	if due {
		s.hooks.Demand()
	}
	return ok, err
}

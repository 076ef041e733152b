package reserver

// Outcome is what became of a request on its instance, as far as it tells
// something about the instance.
type Outcome uint8

// The fates of a request.
const (
	// Neutral tells nothing: the client left, or nothing was sent.
	Neutral Outcome = iota
	// Answered: the instance answered, whatever the answer. It clears the
	// instance's record.
	Answered
	// Failed: the instance may have seen the request and did not answer it.
	// Three in a row eject it.
	Failed
	// Refused: no connection could be made. It ejects the instance at once.
	Refused
	// Suspected: nothing was sent, because at the address of the instance there
	// may be something else by now. It gets nothing more until it was vouched
	// for.
	Suspected
)

type state uint8

const (
	idle    state = iota // neither waits nor holds anything
	waiting              // stands in the queue
	holding              // holds a slot of instance
)

// Interrupter is told about the end of an instance on which a reservation is,
// or was a moment ago. It is called from any goroutine, without locks, and
// possibly more than once.
type Interrupter interface {
	Interrupt(i *Instance, cause error)
}

// InterruptFunc is a function as an Interrupter.
type InterruptFunc func(i *Instance, cause error)

// Interrupt implements Interrupter.
func (f InterruptFunc) Interrupt(i *Instance, cause error) { f(i, cause) }

// Reservation is one request's hold on a slot, or its place in the queue. The
// zero value is ready for use, can be embedded, and must not be copied once
// used. It belongs to one goroutine, that of the request; only Granted may be
// received from elsewhere.
type Reservation struct {
	waiter

	// Interrupter, if set before Reserve, is told when an instance is gone
	// and the request should not wait for its answer any longer.
	Interrupter Interrupter

	service  *Service
	granted  chan error // size 1, filled under the service's lock
	instance *Instance
	epoch    uint32 // of the instance, when the slot was given
	state    state  // guarded by the service's lock
	doubt    bool   // the last instance was doubted for it
	lost     bool   // the instance of its session serves no more
	spilled  bool   // with ByHash: the first instance in the order of its key was full
	session  Session

	inSession  bool     // it counts in inSessions of the instance
	remembered *session // its session, if that has a key
}

// ask prepares r for a first attempt.
func (r *Reservation) ask(s *Service, ask Ask) {
	r.service, r.doubt, r.lost, r.session = s, false, false, NoSession
	r.waiter = waiter{Ask: ask, kind: requests, reservation: r}
}

// Reserve asks for a slot. It returns true if r holds one now, and an error
// if r neither holds one nor may wait for one. Otherwise r stands in the
// queue, and the caller waits for Granted or calls Cancel.
//
// A quiet request gets ErrAsleep while no instance takes requests.
func (s *Service) Reserve(r *Reservation, ask Ask) (bool, error) {
	r.ask(s, ask)
	s.mu.Lock()
	if !ask.Quiet {
		s.arrivals++
	}
	ok, err := s.reserve(r)
	s.unlock()
	return ok, err
}

func (s *Service) reserve(r *Reservation) (ok bool, err error) {
	// While an instance has a free slot no request waits that may use it, so
	// none is overtaken.
	if i := s.choose(r); i != nil {
		s.seat(r, i)
		if !r.Quiet && !i.cordoned {
			s.addDemand(1)
		}
		return true, nil
	}
	switch {
	case r.Quiet && len(s.opened) == 0 && s.refusal == nil:
		return false, ErrAsleep
	case s.refusal != nil:
		s.refusedDemand = s.refusedDemand || !r.Quiet
		return false, s.refusal
	case s.isFull(r), !s.shared.take(r.urgent):
		// Demand that may not wait is demand all the same: with a limit of
		// 0 it is the only sign that a service is needed.
		if !r.Quiet && r.bound == nil {
			s.addDemand(1)
			s.addDemand(-1)
			s.refusedDemand = true
		}
		return false, ErrQueueFull
	}
	if r.granted == nil {
		r.granted = make(chan error, 1)
	}
	r.state = waiting
	r.arrived = s.arrival()
	s.enqueue(&r.waiter)
	if !r.Quiet && r.bound == nil {
		s.addDemand(1)
	}
	return false, nil
}

// isFull reports whether there is no place in the queue for r. The lock is held.
func (s *Service) isFull(r *Reservation) bool {
	switch {
	case s.maxWaiting == 0:
		return !r.doubt
	case r.urgent:
		return false
	case int(s.waiting[requests])+s.elsewhere >= s.maxWaiting:
		return true
	}
	q, ok := s.queue.(*turns)
	return ok && r.ShareLimit > 0 && q.inShare(r.Share) >= r.ShareLimit
}

// Ahead returns how many waiters would have their turns before a request that
// came now. If the request is bound to an instance, it counts those that wait for
// that instance alone.
func (s *Service) Ahead(ask Ask) (waiters int, bound bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := int(s.waiting[requests] + s.waiting[visitors])
	if waiting == 0 {
		return 0, false
	}
	q, ok := s.queue.(*turns)
	if !ok {
		plain := s.queue.(*fifo)
		if ask.plain() {
			return waiting, false
		}
		q = plain.asTurns(s.sinceMade)
		s.queue = q
	}
	w := &waiter{Ask: ask, arrived: 1<<63 - 1, class: ask.Class}
	if i, _ := s.home(w); i != nil {
		return i.line.n, true
	}
	return q.ahead(w, waiting), false
}

// Granted delivers, to a reservation in the queue, exactly one value: nil when
// it holds a slot, or the reason why it will not get one.
func (r *Reservation) Granted() <-chan error { return r.granted }

// Instance returns the instance of which r holds a slot, or nil.
func (r *Reservation) Instance() *Instance { return r.instance }

// Bound reports whether r waits for the instance of its session alone.
func (r *Reservation) Bound() bool {
	r.service.mu.Lock()
	defer r.service.mu.Unlock()
	return r.state == waiting && r.bound != nil
}

// Cancel leaves the queue. It returns true if r had got a slot already, which
// it still holds; the caller uses or releases it.
func (r *Reservation) Cancel() (granted bool) {
	s := r.service
	s.mu.Lock()
	if r.state == waiting {
		s.leave(r)
		r.state = idle
		if !r.Quiet && r.bound == nil {
			s.addDemand(-1)
		}
		last := s.waiting[requests]+s.waiting[visitors]+s.called == 0
		s.unlock()
		if last {
			s.hooks.Abandoned()
		}
		return false
	}
	defer s.mu.Unlock()
	// The grant, or the refusal, was sent under the lock: it is there.
	select {
	case <-r.granted: //nolint:errcheck // the caller has a reason of its own
	default:
	}
	return r.state == holding
}

// Release gives the slot back and tells what became of the request. It does
// nothing if r holds none, so it may be called once too often.
func (r *Reservation) Release(outcome Outcome) {
	if r.instance == nil {
		return
	}
	s, i := r.service, r.instance
	s.mu.Lock()
	before := i.inUse
	told := s.release(r, outcome)
	s.serve(i)
	told.drained = told.drained && i.inUse == 0
	told.freed = s.tellsFreed(i, before)
	s.unlock()
	s.after(i, told)
}

// release takes r out of its instance. The caller hands on the freed slot,
// under the same lock.
func (s *Service) release(r *Reservation, outcome Outcome) (told changes) {
	i := r.instance
	r.state, r.instance = idle, nil
	i.holders.remove(&r.waiter)
	i.inUse--
	if r.Quiet {
		i.quiet--
	}
	s.leavesSession(r, i)
	if i.removed {
		return told
	}
	s.inUse--
	if !r.Quiet && !i.cordoned {
		s.addDemand(-1)
	}
	// What was sent before the instance was ejected and restored tells
	// nothing about it now.
	current := r.epoch == i.epoch
	switch {
	case current && i.judge(outcome):
		told.ejected = true
		s.eject(i)
	case current && outcome == Suspected && i.AddressReusable() && !i.ejected:
		told.verifyRequested = !i.suspected
		i.suspected, i.verifyRequested = true, true
		s.pool.remove(i)
	case i.isOpen():
		s.pool.freed(i)
	}
	told.drained = i.cordoned && i.inUse == 0
	return told
}

// changes are the events of an instance that the hooks report.
type changes struct{ ejected, verifyRequested, drained, freed bool }

// after passes the news on. The lock is not held.
func (s *Service) after(i *Instance, told changes) {
	if told.ejected {
		s.hooks.Ejected(i)
	}
	if told.verifyRequested {
		s.hooks.VerifyRequested(i)
	}
	if told.drained {
		s.hooks.Drained(i)
	}
	if told.freed {
		s.freed(i)
	}
}

// Requeue gives the slot back and asks for another one, before all others in the
// queue. It is for a request that goes to a second instance, because the first
// cannot have seen it or because it may be repeated; it gets the first again
// only if no other has a free slot. The result is that of Reserve. The limit of
// the queue does not apply, unless it is 0 and the instance was not just doubted.
//
// It is also for a request that may not be written although it has a slot: with
// Neutral nothing is counted against the instance. Such a request waits only if no
// slot is free, so the instances get NoSlots first.
func (r *Reservation) Requeue(outcome Outcome) (bool, error) {
	s, i := r.service, r.instance
	var told changes
	before := 0
	s.mu.Lock()
	if i != nil {
		before = i.inUse
		told = s.release(r, outcome)
		if outcome != Answered && r.session == SessionNew && r.Affinity == ByKey {
			// Nothing of the session is on the instance.
			s.sessions.drop(r.Key, i)
		}
		// The freed slot goes to those that were tried again before r; if
		// there are none, r takes it before the rest of the queue does.
		s.serveUrgent(i)
	}
	r.urgent, r.doubt = true, outcome == Suspected
	// The first instance has just become less loaded, so it would be chosen
	// once more; it is, only if there is no other.
	aside := i != nil && i.place >= 0 && len(s.pool.items) > 1
	if aside {
		s.pool.remove(i)
	}
	ok, err := s.reserve(r)
	if aside {
		s.pool.freed(i)
	}
	if i != nil {
		s.serve(i)
		told.drained = told.drained && i.inUse == 0
		told.freed = s.tellsFreed(i, before)
	}
	s.unlock()
	s.after(i, told)
	return ok, err
}

// serveUrgent gives the free slots of i, and those of others, to the urgent
// waiters alone. The lock is held.
func (s *Service) serveUrgent(i *Instance) {
	for s.waiting[requests] > 0 && i.keeps() && i.hasRoom() {
		w := s.nextOn(i)
		if w == nil || !w.urgent {
			return
		}
		s.grant(w, i)
	}
	for s.waiting[requests] > s.bound && len(s.pool.items) > 0 {
		w := s.nextUnbound()
		if w == nil || !w.urgent {
			return
		}
		s.grant(w, s.pick(w))
	}
}

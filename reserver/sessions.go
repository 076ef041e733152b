package reserver

import (
	"hash/fnv"
	"math/bits"
	"time"
)

// SessionsMost is how many keys of sessions a service remembers. Beyond that
// it forgets the one that was not used for the longest time: its next request
// is that of a new session.
const SessionsMost = 1 << 16

// sessions remembers on which instance the session of a key is. A key is
// forgotten once it was not used for the timeout.
type sessions struct {
	of             map[uint64]*session
	newest, eldest *session // by use
	timeout        time.Duration

	tells  bool        // others are told of placements
	untold []Placement // of TakePlaced
}

type session struct {
	key          uint64
	instance     *Instance
	used         time.Duration // since the service was made
	inside       int           // requests that have a slot: until they end, it is in use
	told         time.Duration // when others were told last, or have told, since the service was made
	learned      bool          // as in Placement
	newer, older *session
}

// find returns the session of a key, or nil.
func (t *sessions) find(key uint64, now time.Duration) *session {
	x := t.of[key]
	if x != nil && t.isOver(x, now) {
		t.forget(x)
		return nil
	}
	return x
}

func (t *sessions) isOver(x *session, now time.Duration) bool {
	return x.inside == 0 && now-x.used >= t.timeout
}

// keep notes that the session of a key is on i, and used now, by a request of this
// service.
func (s *Service) keep(key uint64, i *Instance, learned bool, now time.Duration) *session {
	t := &s.sessions
	x := t.of[key]
	moved := x == nil || x.instance != i || learned && !x.learned
	x = t.put(key, i, now)
	x.learned = learned || !moved && x.learned
	if t.tell(x, moved, now) {
		s.tellPlaced = true
	}
	return x
}

// put notes that the session of a key is on i, and used now.
func (t *sessions) put(key uint64, i *Instance, now time.Duration) *session {
	x := t.of[key]
	if x == nil {
		if t.of == nil {
			t.of = make(map[uint64]*session)
		}
		x = &session{key: key}
		t.of[key] = x
	} else {
		t.unlink(x)
	}
	x.instance = i
	t.use(x, now)
	t.trim(now)
	return x
}

// use puts x, which is in no list, before all that were used earlier.
func (t *sessions) use(x *session, now time.Duration) {
	x.used = now
	x.older = t.newest
	if t.newest != nil {
		t.newest.newer = x
	} else {
		t.eldest = x
	}
	t.newest = x
}

// trim forgets sessions that are too many, or were not used for the timeout.
func (t *sessions) trim(now time.Duration) {
	for x := t.eldest; x != nil && (len(t.of) > SessionsMost || now-x.used >= t.timeout); x = t.eldest {
		if x.inside == 0 || len(t.of) > SessionsMost {
			t.forget(x)
			continue
		}
		t.unlink(x)
		t.use(x, now)
	}
}

// drop forgets the session of a key if it is on i.
func (t *sessions) drop(key uint64, i *Instance) {
	if x := t.of[key]; x != nil && x.instance == i {
		t.forget(x)
	}
}

func (t *sessions) forget(x *session) {
	t.unlink(x)
	delete(t.of, x.key)
}

func (t *sessions) unlink(x *session) {
	if x.newer != nil {
		x.newer.older = x.older
	} else {
		t.newest = x.older
	}
	if x.older != nil {
		x.older.newer = x.newer
	} else {
		t.eldest = x.newer
	}
	x.newer, x.older = nil, nil
}

// keeps reports whether i serves the requests of its sessions. It does so while
// it drains. The lock is held.
func (i *Instance) keeps() bool { return !i.ejected && !i.removed && !i.retired && !i.spent }

// hasSession reports whether a request of a session was on i so recently that
// the session may go on. The lock is held.
func (i *Instance) hasSession(now time.Duration) bool {
	return i.inSessions > 0 || i.sessionAt > 0 && now-i.sessionAt < i.service.sessions.timeout
}

// takesPart notes that r, which has a slot, is a request of a session, and of
// which one if that is remembered. The lock is held.
func (r *Reservation) takesPart(x *session, now time.Duration) {
	if !r.inSession {
		r.inSession = true
		r.instance.inSessions++
	}
	r.instance.sessionAt = max(now, 1) // 0 is never
	if x == nil || x == r.remembered {
		return
	}
	if r.remembered != nil {
		r.remembered.inside--
	}
	x.inside++
	r.remembered = x
}

// leavesSession notes that r gives back its slot on i. The lock is held.
func (s *Service) leavesSession(r *Reservation, i *Instance) {
	if !r.inSession {
		return
	}
	now, x := s.sinceMade(), r.remembered
	r.inSession, r.remembered = false, nil
	i.inSessions--
	i.sessionAt = max(now, 1) // 0 is never
	if x == nil {
		return
	}
	if x.inside--; s.sessions.of[x.key] == x && x.instance == i {
		s.sessions.unlink(x)
		s.sessions.use(x, now)
	}
}

// home returns the instance to which the session of w binds it, or nil, and
// whether the session was on one that does not serve any more. The lock is held.
func (s *Service) home(w *waiter) (i *Instance, lost bool) {
	switch w.Affinity {
	case ByInstance:
		if i = w.Instance; i == nil && w.Key != 0 {
			// It may come yet: after a start of this program its instances come one
			// after the other.
			if i = s.byHash[w.Key]; i == nil {
				return nil, true
			}
		}
	case ByKey:
		if x := s.sessions.find(w.Key, time.Since(s.made)); x != nil {
			i = x.instance
		}
	}
	if i == nil {
		return nil, false
	}
	if i.service != s || !i.keeps() {
		return nil, true
	}
	return i, false
}

// choose returns an instance with a free slot for r, or nil. It binds r to the
// instance of its session. The lock is held.
func (s *Service) choose(r *Reservation) *Instance {
	switch r.Affinity {
	case NoAffinity:
		return s.pool.take()
	case ByHash:
		return s.pick(&r.waiter)
	}
	r.bound, r.lost = s.home(&r.waiter)
	switch {
	case r.bound == nil:
		return s.pick(&r.waiter)
	case r.bound.hasRoom():
		return r.bound
	}
	return nil
}

// pick returns the instance for a waiter that is bound to none, or nil. The lock
// is held.
func (s *Service) pick(w *waiter) *Instance {
	if w.Affinity != ByKey && w.Affinity != ByHash {
		return s.pool.take()
	}
	first, free := s.nearest(w.Key)
	w.reservation.spilled = first != free
	return free
}

// join notes that r has a slot on i, for its session. The lock is held.
func (s *Service) join(r *Reservation, i *Instance) {
	now := time.Since(s.made)
	if r.Affinity == ByHash {
		r.session = SessionKept
		if r.spilled {
			r.session = SessionMoved
		}
		return
	}
	known := r.bound == i
	if !known && r.findsHome() {
		// It may have become the instance of the session while r waited.
		home, _ := s.home(&r.waiter)
		known = home == i
	}
	switch {
	case known:
		r.session = SessionKept
	case r.bound != nil || r.lost:
		r.session = SessionMoved
	default:
		r.session = SessionNew
	}
	var x *session
	if r.Affinity == ByKey {
		x = s.keep(r.Key, i, false, now)
	}
	r.takesPart(x, now)
}

// Session says what the slot that r holds, or held last, means for its session.
func (r *Reservation) Session() Session { return r.session }

// Learn notes that the session of a key is on the instance on which r has its
// slot. It does nothing if r has none.
func (r *Reservation) Learn(key uint64) {
	if r.instance == nil {
		return
	}
	s := r.service
	s.mu.Lock()
	defer s.unlock()
	now := time.Since(s.made)
	r.takesPart(s.keep(key, r.instance, true, now), now)
}

// findsHome reports whether the session of w may find its instance while w waits.
func (w *waiter) findsHome() bool {
	return w.Affinity == ByKey || w.Affinity == ByInstance && w.Instance == nil && w.Key != 0
}

// nextUnbound returns the waiter whose turn is next of the requests that are
// bound to no instance, or nil. Requests of a session that has found its
// instance meanwhile are bound to that if it is full. The lock is held.
func (s *Service) nextUnbound() *waiter {
	for {
		w := s.queue.first(requests)
		if w == nil || !w.findsHome() {
			return w
		}
		i, _ := s.home(w)
		if i == nil || i.hasRoom() {
			return w
		}
		s.bind(w, i)
	}
}

// bind lets w, which waits, wait for the instance alone. Then it is no reason to
// have another one. The lock is held.
func (s *Service) bind(w *waiter, i *Instance) {
	s.queue.(*turns).bind(w, i)
	s.bound++
	if !w.Quiet {
		s.addDemand(-1)
	}
}

// unbind lets the waiters that are bound to i wait for any instance: i serves
// no more. The caller adds what it returns to demand. The lock is held.
func (s *Service) unbind(i *Instance) (demand int) {
	for i.line.n > 0 {
		w := i.line.next()
		s.queue.(*turns).bind(w, nil)
		w.reservation.lost = true
		s.bound--
		if !w.Quiet {
			demand++
		}
	}
	return demand
}

// nextOn returns the waiter that has the next turn on i, or nil. The lock is held.
func (s *Service) nextOn(i *Instance) (w *waiter) {
	if i.isOpen() && s.waiting[requests] > s.bound {
		w = s.nextUnbound() // which may bind another one to i
	}
	if i.line.n > 0 {
		if b := s.queue.(*turns).firstBound(i); w == nil || s.queue.before(b, w) {
			w = b
		}
	}
	return w
}

// serve gives the free slots of i to the waiters that may use them, after some
// became free. The lock is held.
func (s *Service) serve(i *Instance) {
	for i.line.n > 0 && i.keeps() && i.hasRoom() {
		w := s.nextOn(i)
		if !s.callVisitor(w) {
			s.grant(w, i)
		}
	}
	s.dispatch()
}

// Rendezvous hashing (Thaler and Ravishankar, 1996): of all instances the one
// with the highest weight for a key is the first in the key's order. One that
// comes or goes moves the keys alone that have it first.

// Hash identifies i by its id. It is the same in every process, and never 0.
func (i *Instance) Hash() uint64 { return i.hash }

// hashOf spreads the id of an instance over all bits. It is never 0.
func hashOf(id string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id)) // it never fails
	return max(weight(h.Sum64(), 0), 1)
}

// weight of an instance for a key.
func weight(instance, key uint64) uint64 {
	// One round of a multiply-and-fold mixer, which is what makes it fast.
	hi, lo := bits.Mul64(instance^0x9e3779b97f4a7c15, key^0xe7037ed1a0b428db)
	return hi ^ lo
}

// nearest returns the first instance in the order of a key, full or not, and the
// first one that is in the pool; nil if there is none.
func (s *Service) nearest(key uint64) (first, free *Instance) {
	var most, mostFree uint64
	for k, hash := range s.hashes {
		w := weight(hash, key)
		if w >= most {
			first, most = s.opened[k], w
		}
		// Looked at last, for it is elsewhere in memory.
		if w >= mostFree && s.opened[k].place >= 0 {
			free, mostFree = s.opened[k], w
		}
	}
	return first, free
}

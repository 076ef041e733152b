package reserver

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"
)

// strikesToEject is how many requests in a row an instance may fail before it
// is ejected.
const strikesToEject = 3

// The pause before an ejected instance is probed again doubles with each
// ejection that no answered request came in between.
const (
	pauseRefused = 100 * time.Millisecond
	pauseFailed  = time.Second
	pauseMax     = 30 * time.Second
)

// Numbers of slots with a meaning of their own.
const (
	// Unlimited is that of an instance without a limit.
	Unlimited = 0

	// NoSlots is that of an instance that takes no further request, of a session
	// or not. Requests inside go on. Like a full one it is waited for, and counts
	// as an instance that takes requests. All other negative numbers mean the
	// same.
	NoSlots = -1
)

// Instance is one running copy of the service that has been ready at least
// once. Its exported fields do not change.
type Instance struct {
	// ID, Network and Address are those of the platform's instance, and
	// Revision names what it was made from.
	ID, Revision, Network, Address string

	// Notes belongs to the package that sends requests to the instance. It may
	// keep anything here.
	Notes atomic.Value

	service    *Service
	seq        uint64
	verifiedAt atomic.Int64 // since the service was made; when it was added or vouched for
	reusable   atomic.Bool  // AddressReusable; written with the service's lock held

	// Guarded by the service's lock.
	slots    int // Unlimited, NoSlots, or the most reservations it may have
	inUse    int // reservations it has
	quiet    int // those of them that are quiet
	place    int // in the pool, or -1
	cordoned bool
	ejected  bool
	removed  bool
	retired  bool // about to stop: not even its sessions get a slot
	spent    bool // was given the last request of its life
	served   uint64

	openAt     int           // in Service.opened, while it is open
	hash       uint64        // of ID, for rendezvous hashing
	line       line          // the requests that wait for this instance alone
	inSessions int           // requests of sessions inside
	sessionAt  time.Duration // since the service was made; when a session last had a slot

	// A doubted instance counts as one that takes requests, and is given
	// none; a questioned one is to be vouched for, doubted or not.
	suspected, verifyRequested bool

	strikes   int
	ejections int
	cause     Outcome // of the latest ejection
	pause     time.Duration
	epoch     uint32 // counts restorations
	holders   list

	added  time.Duration // since the service was made
	gone   chan struct{} // nil until it is asked for
	reason error         // why it was removed

	reading uint64 // Service.reading when it was last seen by one
}

// Add puts a ready instance to use: its slots are given to the queue at once.
// slots is a number, Unlimited or NoSlots.
func (s *Service) Add(id, revision, network, address string, slots int) *Instance {
	return s.add(&Instance{ID: id, Revision: revision, Network: network, Address: address, slots: slots})
}

// AddUnbound is Add for an instance whose address can be given to something
// else before it is known that it has ended.
func (s *Service) AddUnbound(id, revision, network, address string, slots int) *Instance {
	i := &Instance{ID: id, Revision: revision, Network: network, Address: address, slots: slots}
	i.reusable.Store(true)
	return s.add(i)
}

func (s *Service) add(i *Instance) *Instance {
	s.mu.Lock()
	defer s.unlock()
	s.seq++
	i.service, i.seq, i.place = s, s.seq, -1
	i.slots = max(i.slots, NoSlots)
	i.added = time.Since(s.made)
	i.hash = hashOf(i.ID)
	if s.byHash == nil {
		s.byHash = make(map[uint64]*Instance)
	}
	s.byHash[i.hash] = i
	i.prove()
	s.admit(i)
	return i
}

// admit begins to give out the slots of i. The lock is held.
func (s *Service) admit(i *Instance) {
	i.openAt = len(s.opened)
	s.opened, s.hashes = append(s.opened, i), append(s.hashes, i.hash)
	s.countSlots(i, 1)
	s.pool.freed(i)
	s.serve(i)
}

// shut stops giving out slots of i. The lock is held.
func (s *Service) shut(i *Instance) {
	if !i.isOpen() {
		return
	}
	last := len(s.opened) - 1
	s.opened[i.openAt], s.hashes[i.openAt] = s.opened[last], s.hashes[last]
	s.opened[i.openAt].openAt = i.openAt
	s.opened[last] = nil
	s.opened, s.hashes = s.opened[:last], s.hashes[:last]
	s.countSlots(i, -1)
	s.pool.remove(i)
	s.closed()
}

func (s *Service) countSlots(i *Instance, sign int) {
	switch i.slots {
	case Unlimited:
		s.unlimited += int32(sign)
	case NoSlots:
	default:
		s.slots += sign * i.slots
	}
}

func (i *Instance) isOpen() bool { return !i.cordoned && !i.ejected && !i.removed && !i.spent }

// hasRoom reports whether i has a free slot. NoSlots is below any number inside.
func (i *Instance) hasRoom() bool {
	return !i.suspected && !i.spent && (i.slots == Unlimited || i.inUse < i.slots)
}

// lessLoaded compares the parts of the slots in use. An instance without a
// limit compares by its requests alone with others of its kind.
func (i *Instance) lessLoaded(j *Instance) bool {
	if i.slots == j.slots {
		return i.inUse < j.inUse
	}
	return int64(i.inUse)*int64(j.weight()) < int64(j.inUse)*int64(i.weight())
}

func (i *Instance) weight() int {
	if i.slots == Unlimited {
		return 1 << 20
	}
	return i.slots
}

// judge takes note of a request's outcome and reports whether the instance is
// to be ejected for it. The lock is held.
func (i *Instance) judge(outcome Outcome) (eject bool) {
	// What was inside when it was ejected tells nothing about it later:
	// strikes counted now would eject it on its first failure once restored,
	// and an answer now would start its pauses anew.
	if i.ejected {
		return false
	}
	var pause time.Duration
	switch outcome {
	case Answered:
		i.strikes, i.ejections = 0, 0
		return false
	case Refused:
		pause = pauseRefused
	case Failed:
		i.strikes++
		if i.strikes < strikesToEject {
			return false
		}
		pause = pauseFailed
	default:
		return false
	}
	i.strikes, i.cause = 0, outcome
	i.pause = min(pause<<min(i.ejections, 16), pauseMax)
	i.ejections++
	return true
}

// Pause returns how long to wait before an ejected instance is probed again.
func (i *Instance) Pause() time.Duration {
	i.service.mu.Lock()
	defer i.service.mu.Unlock()
	return i.pause
}

// EjectedFor returns why the instance was ejected last: Refused; Failed for
// three requests in a row; or Suspected, if Eject was called.
func (i *Instance) EjectedFor() Outcome {
	i.service.mu.Lock()
	defer i.service.mu.Unlock()
	return i.cause
}

// Restore ends an ejection: the instance has passed its readiness check
// again. It does nothing to one that is not ejected.
func (i *Instance) Restore() {
	s := i.service
	s.mu.Lock()
	defer s.unlock()
	if !i.ejected || i.removed {
		return
	}
	i.ejected = false
	i.epoch++
	i.prove()
	if i.isOpen() {
		s.admit(i)
	}
}

// Cordon stops giving new reservations of the instance, except to requests of
// its own sessions. Hooks.Drained is called when the last one has ended, but not
// if there is none now. It takes back Retire.
func (i *Instance) Cordon() {
	s := i.service
	s.mu.Lock()
	defer s.unlock()
	s.cordon(i)
}

func (s *Service) cordon(i *Instance) {
	i.retired = false
	if i.cordoned || i.removed {
		return
	}
	s.shut(i)
	i.cordoned = true
	s.addDemand(i.quiet - i.inUse)
}

// Uncordon lets the instance take requests again.
func (i *Instance) Uncordon() {
	s := i.service
	s.mu.Lock()
	defer s.unlock()
	if !i.cordoned || i.removed {
		return
	}
	i.cordoned, i.retired = false, false
	s.addDemand(i.inUse - i.quiet)
	if i.isOpen() {
		s.admit(i)
	}
}

// Retire ends the use of a cordoned instance that is to be stopped: its sessions
// get no slot of it any more, and go on elsewhere. Unless force is true it does
// so only if no request is inside, and reports whether it did.
func (i *Instance) Retire(force bool) bool {
	s := i.service
	s.mu.Lock()
	defer s.unlock()
	if i.inUse > 0 && !force {
		return false
	}
	d := s.unbind(i)
	if !i.cordoned && !i.removed {
		s.shut(i)
		i.cordoned = true
		d += i.quiet - i.inUse
	}
	i.retired = true
	s.addDemand(d)
	s.dispatch()
	return true
}

// SessionUntil returns until when a session of the instance may go on, if no
// further request of one comes; zero if none is known.
func (i *Instance) SessionUntil() time.Time {
	s := i.service
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.sinceMade()
	switch {
	case !i.hasSession(now):
		return time.Time{}
	case i.inSessions > 0:
		return s.made.Add(now + s.sessions.timeout)
	}
	return s.made.Add(i.sessionAt + s.sessions.timeout)
}

// CordonLeastLoaded cordons n of the given instances and returns them: those
// that are ejected first, then those with the fewest requests inside, and of
// equals the youngest. If idleSince is not zero it does so only while there
// has been no demand since then, and otherwise returns nil: the decision to
// go to sleep is void once a request came in between.
func (s *Service) CordonLeastLoaded(n int, among []*Instance, idleSince time.Time) []*Instance {
	s.mu.Lock()
	defer s.unlock()
	if !idleSince.IsZero() && (s.demand > 0 || !s.made.Add(s.idle).Equal(idleSince)) {
		return nil
	}
	if n <= 0 {
		return nil
	}
	// Sorted once, for requests wait for the lock: cordoning one does not
	// change the rank of another.
	var chosen []*Instance
	for _, i := range among {
		if !i.cordoned && !i.removed {
			chosen = append(chosen, i)
		}
	}
	slices.SortFunc(chosen, rank)
	chosen = slices.Compact(chosen)
	chosen = chosen[:min(n, len(chosen))]
	for _, i := range chosen {
		s.cordon(i)
	}
	return chosen
}

// rank orders instances by how soon they are to go.
func rank(i, j *Instance) int {
	switch {
	case i.ejected && !j.ejected:
		return -1
	case j.ejected && !i.ejected:
		return 1
	case i.inUse != j.inUse:
		return cmp.Compare(i.inUse, j.inUse)
	}
	return cmp.Compare(j.seq, i.seq)
}

// Remove forgets the instance: it is gone. Its slots are free at once; the
// requests that were inside end in their own time, or by Interrupt.
func (i *Instance) Remove() {
	i.service.mu.Lock()
	defer i.service.unlock()
	i.remove()
}

// remove is Remove, with the lock held.
func (i *Instance) remove() {
	s := i.service
	if i.removed {
		return
	}
	s.shut(i)
	i.removed = true
	if s.byHash[i.hash] == i {
		delete(s.byHash, i.hash)
	}
	s.inUse -= i.inUse
	d := s.unbind(i)
	if !i.cordoned {
		d += i.quiet - i.inUse
	}
	s.addDemand(d)
	if i.gone != nil {
		close(i.gone)
	}
	s.dispatch()
}

// Interrupt tells the Interrupter of every reservation on the
// instance, removed or not, and returns how many there were.
func (i *Instance) Interrupt(cause error) int {
	s := i.service
	s.mu.Lock()
	var told []Interrupter
	n := 0
	for w := i.holders.first; w != nil; w = w.next {
		n++
		if t := w.reservation.Interrupter; t != nil {
			told = append(told, t)
		}
	}
	s.mu.Unlock()
	for _, r := range told {
		r.Interrupt(i, cause)
	}
	return n
}

// SetSlots changes the number of slots while the instance runs: to a number,
// Unlimited or NoSlots. Lowering it interrupts no request.
func (i *Instance) SetSlots(slots int) {
	s := i.service
	slots = max(slots, NoSlots)
	s.mu.Lock()
	defer s.unlock()
	if i.slots == slots {
		return
	}
	if !i.isOpen() {
		i.slots = slots
		s.serve(i)
		return
	}
	s.countSlots(i, -1)
	i.slots = slots
	s.countSlots(i, 1)
	s.pool.moved(i)
	s.serve(i)
}

// InstanceStats are the counters of an instance at one moment.
type InstanceStats struct {
	Slots, InUse      int // Slots may be Unlimited or NoSlots
	Cordoned, Ejected bool

	// Served is how many reservations it was given, and Spent is true after the
	// last one of its life.
	Served uint64
	Spent  bool

	// VerifyRequested is true while the instance should be verified. Suspected
	// is true while it gets no requests until then.
	VerifyRequested, Suspected bool
}

// Stats returns the counters of the instance.
func (i *Instance) Stats() InstanceStats {
	i.service.mu.Lock()
	defer i.service.mu.Unlock()
	return InstanceStats{
		Slots: i.slots, InUse: i.inUse, Cordoned: i.cordoned, Ejected: i.ejected, Served: i.served, Spent: i.spent,
		VerifyRequested: i.verifyRequested, Suspected: i.suspected,
	}
}

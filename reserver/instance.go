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

// Unlimited is the number of slots of an instance without a limit.
const Unlimited = 0

// Instance is one running copy of the service that has been ready at least
// once. Its exported fields do not change.
type Instance struct {
	// ID, Network and Address are those of the platform's instance, and
	// Revision names what it was made from.
	ID, Revision, Network, Address string

	// Unbound is true where the address can be given to something else before
	// anybody knows that the instance has ended.
	Unbound bool

	// Notes is for whoever sends requests to the instance, to keep with it
	// what it likes.
	Notes atomic.Value

	service *Service
	seq     uint64
	proven  atomic.Int64 // since the service was made; when it was added or vouched for

	// Guarded by the service's lock.
	slots    int // Unlimited, or the most reservations it may have
	inUse    int // reservations it has
	quiet    int // those of them that are quiet
	place    int // in the pool, or -1
	cordoned bool
	ejected  bool
	removed  bool

	// A doubted instance counts as one that takes requests, and is given
	// none; a questioned one is to be vouched for, doubted or not.
	doubted, questioned bool

	strikes   int
	ejections int
	pause     time.Duration
	epoch     uint32 // counts restorations
	holders   list
}

// Add puts a ready instance to use: its slots are given to the line at once.
func (s *Service) Add(id, revision, network, address string, slots int) *Instance {
	return s.add(&Instance{ID: id, Revision: revision, Network: network, Address: address, slots: slots})
}

// AddUnbound is Add for an instance whose address can be given to something
// else before anybody knows that it has ended.
func (s *Service) AddUnbound(id, revision, network, address string, slots int) *Instance {
	return s.add(&Instance{ID: id, Revision: revision, Network: network, Address: address, Unbound: true, slots: slots})
}

func (s *Service) add(i *Instance) *Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	i.service, i.seq, i.place = s, s.seq, -1
	i.prove()
	s.admit(i)
	return i
}

// admit begins to give out the slots of i. The lock is held.
func (s *Service) admit(i *Instance) {
	s.open++
	s.countSlots(i, 1)
	s.pool.freed(i)
	s.dispatch()
}

// shut stops giving out slots of i. The lock is held.
func (s *Service) shut(i *Instance) {
	if !i.isOpen() {
		return
	}
	s.open--
	s.countSlots(i, -1)
	s.pool.remove(i)
	s.closed()
}

func (s *Service) countSlots(i *Instance, sign int) {
	if i.slots == Unlimited {
		s.unlimited += int32(sign)
	} else {
		s.slots += sign * i.slots
	}
}

func (i *Instance) isOpen() bool { return !i.cordoned && !i.ejected && !i.removed }
func (i *Instance) hasRoom() bool {
	return !i.doubted && (i.slots == Unlimited || i.inUse < i.slots)
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

// judge takes note of a request's fate and reports whether the instance is
// to be ejected for it. The lock is held.
func (i *Instance) judge(fate Fate) (eject bool) {
	// What was inside when it was ejected tells nothing about it later:
	// strikes counted now would eject it on its first failure once restored,
	// and an answer now would start its pauses anew.
	if i.ejected {
		return false
	}
	var pause time.Duration
	switch fate {
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
	i.strikes = 0
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

// Restore ends an ejection: the instance has passed its readiness check
// again. It does nothing to one that is not ejected.
func (i *Instance) Restore() {
	s := i.service
	s.mu.Lock()
	defer s.mu.Unlock()
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

// Cordon stops giving new reservations of the instance. Hooks.Drained is
// called when the last one has ended, but not if there is none now.
func (i *Instance) Cordon() {
	s := i.service
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cordon(i)
}

func (s *Service) cordon(i *Instance) {
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
	if !i.cordoned || i.removed {
		s.mu.Unlock()
		return
	}
	i.cordoned = false
	due := s.addDemand(i.inUse - i.quiet)
	if i.isOpen() {
		s.admit(i)
	}
	s.mu.Unlock()
	if due {
		s.hooks.Demand()
	}
}

// CordonLeastLoaded cordons n of the given instances and returns them: those
// that are ejected first, then those with the fewest requests inside, and of
// equals the youngest. If idleSince is not zero it does so only while there
// has been no demand since then, and otherwise returns nil: the decision to
// go to sleep is void once a request came in between.
func (s *Service) CordonLeastLoaded(n int, among []*Instance, idleSince time.Time) []*Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
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
	s := i.service
	s.mu.Lock()
	defer s.mu.Unlock()
	if i.removed {
		return
	}
	s.shut(i)
	s.inUse -= i.inUse
	if !i.cordoned {
		s.addDemand(i.quiet - i.inUse)
	}
	i.removed = true
}

// Interrupt calls the Interrupt function of every reservation on the
// instance, removed or not, and returns how many there were.
func (i *Instance) Interrupt(cause error) int {
	s := i.service
	s.mu.Lock()
	var calls []func(error)
	n := 0
	for r := i.holders.first; r != nil; r = r.next {
		n++
		if r.Interrupt != nil {
			calls = append(calls, r.Interrupt)
		}
	}
	s.mu.Unlock()
	for _, c := range calls {
		c(cause)
	}
	return n
}

// SetSlots changes the number of slots while the instance runs. A lowered
// number takes nobody out.
func (i *Instance) SetSlots(slots int) {
	s := i.service
	s.mu.Lock()
	defer s.mu.Unlock()
	if i.slots == slots {
		return
	}
	if !i.isOpen() {
		i.slots = slots
		return
	}
	s.countSlots(i, -1)
	i.slots = slots
	s.countSlots(i, 1)
	s.pool.moved(i)
	s.dispatch()
}

// InstanceStats are the counters of an instance at one moment.
type InstanceStats struct {
	Slots, InUse      int // Slots may be Unlimited
	Cordoned, Ejected bool

	// Questioned is true while somebody should vouch for the instance, and
	// Doubted while it is given nothing before.
	Questioned, Doubted bool
}

// Stats returns the counters of the instance.
func (i *Instance) Stats() InstanceStats {
	i.service.mu.Lock()
	defer i.service.mu.Unlock()
	return InstanceStats{
		Slots: i.slots, InUse: i.inUse, Cordoned: i.cordoned, Ejected: i.ejected,
		Questioned: i.questioned, Doubted: i.doubted,
	}
}

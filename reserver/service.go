package reserver

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

var (
	// ErrQueueFull is returned to a request that would have to wait while the
	// line, or all lines together, are at their limit.
	ErrQueueFull = errors.New("the waiting line is full")

	// ErrAsleep is returned to a quiet request while no instance is ready.
	ErrAsleep = errors.New("no instance is ready, and this request does not wake the service")
)

// Balance is the rule by which an instance is chosen for a request.
type Balance uint8

// The rules of balancing.
const (
	// LeastLoaded takes the instance with the smallest part of its slots in
	// use.
	LeastLoaded Balance = iota
	// Oldest takes the instance that became ready first and has a free slot:
	// it packs, so that the younger ones become idle and can go.
	Oldest
	// Random takes the less loaded of two chosen at random.
	Random
)

// Options of a service that may change while it runs.
type Options struct {
	// MaxWaiting is the length limit of the line. With 0 no request is held.
	MaxWaiting int

	// Balance is the rule for choosing an instance.
	Balance Balance
}

// Hooks are called by a Service without any of its locks held, in the
// goroutine of whoever caused the event. They must not block.
type Hooks interface {
	// Demand is called when demand has risen above the mark set by Watch,
	// once for each call of Watch.
	Demand()

	// Ejected is called when an instance was ejected. Restore puts it back.
	Ejected(*Instance)

	// Questioned is called when an instance should be vouched for, because it
	// was doubted or will be. Vouch or Eject is the answer.
	Questioned(*Instance)

	// Drained is called when the last request has left a cordoned instance.
	Drained(*Instance)
}

// Limit bounds the number of requests that wait in several services
// together. The zero value admits none; all methods are safe for concurrent
// use.
type Limit struct {
	max, used atomic.Int64
}

// Set changes the limit. Who already waits stays.
func (l *Limit) Set(limit int) { l.max.Store(int64(limit)) }

// Used returns how many requests wait now.
func (l *Limit) Used() int { return int(l.used.Load()) }

func (l *Limit) take(force bool) bool {
	if l == nil {
		return true
	}
	if force {
		l.used.Add(1)
		return true
	}
	// Not by adding and taking back: while many are being refused that would
	// also refuse one for whom there is a place.
	for {
		n := l.used.Load()
		if n >= l.max.Load() {
			return false
		}
		if l.used.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (l *Limit) give(n int) {
	if l != nil {
		l.used.Add(-int64(n))
	}
}

// Service is the truth about one service. All methods are safe for
// concurrent use and hold one short lock.
type Service struct {
	hooks  Hooks
	shared *Limit

	mu         sync.Mutex
	maxWaiting int

	// pool has the instances that are open (ready, not cordoned) and have a
	// free slot. Invariant: pool or line is empty.
	pool   pool
	line   line
	guests *guests // its own from the first one on

	refusal error // not nil: nobody waits; whoever would is told this
	knocked bool  // somebody was told so since the last call of Knocked

	open      int32 // instances that take requests
	unlimited int32 // open instances without a limit
	slots     int   // slots of the open instances with a limit
	inUse     int   // reservations held on instances that are not removed

	// demand counts the requests that are a reason to have instances: those
	// that wait, and those inside instances that are not cordoned; and the
	// guests; quiet ones never.
	demand int
	peak   int // highest demand since the last TakePeak
	mark   int // Hooks.Demand is due when demand exceeds it

	// When demand last became 0, as time since the service was made: a warm
	// service comes here with every request, and time.Now costs twice as
	// much as time.Since, because it asks a second clock.
	made time.Time
	idle time.Duration

	seq uint64 // numbers instances by age
}

// noMark is a mark that demand never exceeds.
const noMark = int(^uint(0) >> 1)

// New returns a service without instances. A nil shared limit is no limit.
// The mark is at 0: the first demand calls Hooks.Demand.
func New(opts Options, shared *Limit, hooks Hooks) *Service {
	s := &Service{hooks: hooks, shared: shared, maxWaiting: opts.MaxWaiting, guests: &nobody, made: time.Now()}
	s.pool.balance = opts.Balance
	return s
}

// SetOptions changes the options at once. Who already waits stays in the
// line, even if it is now longer than allowed.
func (s *Service) SetOptions(opts Options) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maxWaiting = opts.MaxWaiting
	s.pool.rebalance(opts.Balance)
}

// Refuse ends all waiting: everyone in the line is told the reason now, and
// so is, from now on, every request for which no slot is free. Free slots are
// still given out. A nil reason lets requests wait again.
func (s *Service) Refuse(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusal = reason
	if reason == nil {
		return
	}
	for r := s.line.first(); r != nil; r = s.line.first() {
		s.dismiss(r, reason)
	}
	s.dismissGuests(reason, false)
}

// Knocked reports whether a request that could have woken the service was
// refused since the last call.
func (s *Service) Knocked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.knocked
	s.knocked = false
	return k
}

// Watch asks for one call of Hooks.Demand when demand exceeds the mark. It
// returns false, and asks for nothing, if demand exceeds it already.
func (s *Service) Watch(mark int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.demand > mark {
		s.mark = noMark
		return false
	}
	s.mark = mark
	return true
}

// TakePeak returns the highest demand since the last call, and begins anew
// with the present one.
func (s *Service) TakePeak() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := max(s.peak, s.demand)
	s.peak = s.demand
	return p
}

// Touch counts as demand that came and went just now.
func (s *Service) Touch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = time.Since(s.made)
}

// Stats are the counters of a service at one moment.
type Stats struct {
	// Waiting is the length of the line, and OldestWait the time since when
	// the oldest request in it waits (zero if there is none).
	Waiting    int
	OldestWait time.Time

	// Guests is how many others have a place in the line or were called, and
	// OldestGuest the time since when the first of them has it.
	Guests      int
	OldestGuest time.Time

	// InUse is the number of reservations held on instances.
	InUse int

	// Slots is the number of slots of the instances that take requests;
	// Unlimited is true if one of them has no limit.
	Slots     int
	Unlimited bool

	// Open is the number of instances that take requests.
	Open int

	// Demand is the number of requests and guests that are a reason to have
	// instances, and IdleSince when it last became 0.
	Demand    int
	IdleSince time.Time
}

// Oldest returns the time since when somebody waits, with a request or as a
// guest; zero if nobody does.
func (s Stats) Oldest() time.Time {
	if s.OldestWait.IsZero() || !s.OldestGuest.IsZero() && s.OldestGuest.Before(s.OldestWait) {
		return s.OldestGuest
	}
	return s.OldestWait
}

// Stats returns the counters. It takes the lock for a few loads, whatever
// the number of instances and waiters.
func (s *Service) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{
		Waiting: s.line.len, Guests: s.guests.len + s.guests.called, InUse: s.inUse, Slots: s.slots, Unlimited: s.unlimited > 0,
		Open: int(s.open), Demand: s.demand, IdleSince: s.made.Add(s.idle),
	}
	if r := s.line.first(); r != nil {
		st.OldestWait = r.since
	}
	if r := s.line.back.first; r != nil && r.since.Before(st.OldestWait) {
		st.OldestWait = r.since
	}
	if g := s.guests.first; g != nil {
		st.OldestGuest = g.since
	}
	return st
}

// addDemand changes demand by d and reports whether Hooks.Demand is due. The
// lock is held.
func (s *Service) addDemand(d int) (due bool) {
	s.demand += d
	switch {
	case s.demand == 0:
		if d != 0 {
			s.idle = time.Since(s.made)
		}
	case s.demand > s.mark:
		s.mark = noMark
		due = true
	}
	if s.demand > s.peak {
		s.peak = s.demand
	}
	return due
}

// dispatch hands free slots to the line, and calls the guests whose turn it
// is. The lock is held.
func (s *Service) dispatch() {
	for s.line.len > 0 || s.guests.len > 0 {
		i := s.pool.take()
		if i == nil {
			return
		}
		if s.callGuest() {
			continue
		}
		r := s.line.first()
		if r == nil {
			return
		}
		s.leave(r)
		s.seat(r, i)
		r.granted <- nil
	}
}

// seat gives a slot of i, which has one, to r. Demand is not touched. The
// lock is held.
func (s *Service) seat(r *Reservation, i *Instance) {
	r.state = held
	r.instance, r.epoch = i, i.epoch
	i.holders.push(r)
	i.inUse++
	s.inUse++
	if r.quiet {
		i.quiet++
	}
	s.pool.used(i)
}

// leave takes r out of the line. The lock is held.
func (s *Service) leave(r *Reservation) {
	s.line.remove(r)
	s.shared.give(1)
}

// dismiss takes r out of the line and tells it why. The lock is held.
func (s *Service) dismiss(r *Reservation, reason error) {
	s.leave(r)
	r.state = idle
	if !r.quiet {
		s.addDemand(-1)
	}
	r.granted <- reason
}

// closed is called after an instance has stopped taking requests: quiet
// requests wait only while there is one that does. The lock is held.
func (s *Service) closed() {
	if s.open > 0 || s.line.quiet+s.guests.quiet == 0 {
		return
	}
	s.dismissGuests(ErrAsleep, true)
	for _, l := range []*list{&s.line.front, &s.line.back} {
		for r := l.first; r != nil; {
			next := r.next
			if r.quiet {
				s.dismiss(r, ErrAsleep)
			}
			r = next
		}
	}
}

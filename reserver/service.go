package reserver

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

var (
	// ErrQueueFull is returned to a request that would have to wait while the
	// queue, or all queues together, are at their limit.
	ErrQueueFull = errors.New("the queue is full")

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
	// MaxWaiting is the length limit of the queue, visitors aside. With 0 no request is held.
	MaxWaiting int

	// MaxRequests is how many reservations an instance is given in its life; 0 is
	// no limit. After the last one it takes no more: it is spent.
	MaxRequests int

	// SessionTimeout is how long after its last request a session still counts.
	SessionTimeout time.Duration

	// Balance is the rule for choosing an instance.
	Balance Balance
}

// Hooks are called by a Service without any of its locks held, in the
// goroutine that caused the event. They must not block.
type Hooks interface {
	// Demand is called when demand has risen above the mark set by Watch,
	// once for each call of Watch.
	Demand()

	// Ejected is called when an instance was ejected. Restore puts it back.
	Ejected(*Instance)

	// VerifyRequested is called when an instance should be vouched for, because it
	// was doubted or will be. Verify or Eject is the answer.
	VerifyRequested(*Instance)

	// Spent is called when an instance was given the last request of its life.
	Spent(*Instance)

	// Drained is called when the last request has left a cordoned instance.
	Drained(*Instance)

	// Abandoned is called when the last request or visitor that waited has
	// left without a slot.
	Abandoned()
}

// Limit bounds the number of requests that wait in several services
// together. The zero value admits none; all methods are safe for concurrent
// use.
type Limit struct {
	max, used atomic.Int64
}

// Set changes the limit. Requests that already wait stay.
func (l *Limit) Set(limit int) { l.max.Store(int64(limit)) }

// Max returns the limit.
func (l *Limit) Max() int { return int(l.max.Load()) }

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
	elsewhere  int // requests in the queues of others, which count for maxWaiting

	// pool has the instances that are open (ready, not cordoned) and have a
	// free slot. Invariant: the pool is empty, or no request waits that is not
	// bound to an instance. An instance that keeps its sessions has no free slot,
	// or no request that is bound to it waits.
	pool   pool
	opened []*Instance          // all that are open, in no order
	hashes []uint64             // of those, for rendezvous hashing: side by side they are found fast
	byHash map[uint64]*Instance // all that are not removed

	// queue has the waiters: a fifo until the first one comes that is not plain,
	// then turns. waiting counts them, quiet those of them that are quiet, and
	// bound those that wait for one instance alone. called is the number of
	// visitors that were called and whose requests have not come yet.
	queue   order // nil until the first one waits
	waiting [kinds]int32
	quiet   int32
	bound   int32
	called  int32
	latest  time.Duration // arrival of the latest waiter, since made

	sessions sessions

	refusal       error // not nil: no request waits; each gets this error instead
	refusedDemand bool  // a request got the error since the last TakeRefusedDemand

	unlimited int32 // open instances without a limit
	slots     int   // slots of the open instances with a limit
	inUse     int   // reservations held on instances that are not removed

	// demand counts what is a reason to have instances: the requests that wait,
	// unless they wait for one instance alone, those inside instances that are
	// not cordoned, and the visitors; quiet ones never.
	demand int
	peak   int  // highest demand since the last TakePeak
	mark   int  // Hooks.Demand is due when demand exceeds it
	due    bool // it did, and unlock calls it

	tellChange bool // unlock calls changed
	tellPlaced bool // unlock calls placed
	watchFreed bool // freed is told of every slot that was given back and stays free

	maxServed uint64      // Options.MaxRequests
	spent     []*Instance // for which unlock calls Hooks.Spent

	// When demand last became 0, as time since the service was made: a warm
	// service comes here with every request, and time.Now costs twice as
	// much as time.Since, because it asks a second clock.
	made time.Time
	idle time.Duration

	seq uint64 // numbers instances by age

	arrivals uint64 // requests that asked, quiet ones not counted

	freed   func(*Instance) // of SetFreed
	changed func()          // of SetChanged
	placed  func()          // of SetPlaced
	reading uint64          // counts the calls of Need
}

// noMark is a mark that demand never exceeds.
const noMark = int(^uint(0) >> 1)

// New returns a service without instances. A nil shared limit is no limit.
// The mark is at 0: the first demand calls Hooks.Demand.
func New(opts Options, shared *Limit, hooks Hooks) *Service {
	s := &Service{hooks: hooks, shared: shared, maxWaiting: opts.MaxWaiting, made: time.Now(), latest: -1}
	s.pool.balance = opts.Balance
	s.sessions.timeout = opts.SessionTimeout
	s.maxServed = uint64(max(0, opts.MaxRequests))
	return s
}

// unlock ends a call that may have changed demand, or what Need reads.
func (s *Service) unlock() {
	if !s.due && !s.tellChange && !s.tellPlaced && len(s.spent) == 0 {
		s.mu.Unlock()
		return
	}
	s.unlockAndTell()
}

// unlockAndTell is unlock with functions to be called.
func (s *Service) unlockAndTell() {
	if len(s.spent) > 0 {
		s.dispatch() // requests that were bound to them
	}
	due, spent, changed, placed := s.due, s.spent, s.tellChange, s.tellPlaced
	s.due, s.spent, s.tellChange, s.tellPlaced = false, nil, false, false
	s.mu.Unlock()
	if placed {
		s.placed()
	}
	if changed {
		s.changed()
	}
	if due {
		s.hooks.Demand()
	}
	for _, i := range spent {
		s.hooks.Spent(i)
	}
}

// SetElsewhere sets how many requests wait in queues that share the limit
// MaxWaiting with this one. It refuses none that wait already.
func (s *Service) SetElsewhere(waiting int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.elsewhere = waiting
}

// SetOptions changes the options at once. Waiters stay in the queue, even if it
// is now longer than allowed.
func (s *Service) SetOptions(opts Options) {
	s.mu.Lock()
	defer s.unlock()
	s.maxWaiting, s.sessions.timeout = opts.MaxWaiting, opts.SessionTimeout
	s.maxServed = uint64(max(0, opts.MaxRequests))
	s.pool.rebalance(opts.Balance)
	for _, i := range s.byHash {
		if s.maxServed > 0 && i.served >= s.maxServed && !i.spent {
			s.spend(i)
		}
	}
}

// Refuse ends all waiting: every waiter is told the reason now, and so is, from
// now on, every request for which no slot is free. Free slots are still given
// out. A nil reason lets requests wait again.
func (s *Service) Refuse(reason error) {
	s.mu.Lock()
	defer s.unlock()
	s.refusal = reason
	if reason == nil {
		return
	}
	s.dismissAll(reason, false)
}

// TakeRefusedDemand reports whether a request that could have woken the service was
// refused since the last call.
func (s *Service) TakeRefusedDemand() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.refusedDemand
	s.refusedDemand = false
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

// ResetIdle counts as demand that came and went just now.
func (s *Service) ResetIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = time.Since(s.made)
}

// Stats are the counters of a service at one moment.
type Stats struct {
	// Waiting is the number of requests in the queue, and OldestWait the time
	// since when the oldest of them waits (zero if there is none).
	Waiting    int
	OldestWait time.Time

	// Visitors is the number of visitors in the queue or called, and
	// OldestVisitor the time at which the first one in the queue came.
	Visitors      int
	OldestVisitor time.Time

	// InUse is the number of reservations held on instances.
	InUse int

	// Slots is the number of slots of the instances that take requests, where
	// NoSlots counts as 0;
	// Unlimited is true if one of them has no limit.
	Slots     int
	Unlimited bool

	// Open is the number of instances that take requests.
	Open int

	// Demand is the number of requests and visitors that are a reason to have
	// instances, and IdleSince when it last became 0. Requests that wait for the
	// instance of their session are none: another instance would not help them.
	Demand    int
	IdleSince time.Time

	// Bound is the number of requests that wait for the instance of their
	// session, and Sessions how many sessions are remembered by a key.
	Bound, Sessions int

	// Arrivals is how many requests have asked for a slot since the service was
	// made, those that were refused included and quiet ones not.
	Arrivals uint64
}

// Oldest returns the time since when the oldest waiter waits; zero if there is
// none.
func (s Stats) Oldest() time.Time {
	if s.OldestWait.IsZero() || !s.OldestVisitor.IsZero() && s.OldestVisitor.Before(s.OldestWait) {
		return s.OldestVisitor
	}
	return s.OldestWait
}

// Stats returns the counters. It takes the lock for a few loads, whatever
// the number of instances and waiters.
func (s *Service) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{
		Waiting: int(s.waiting[requests]), Visitors: int(s.waiting[visitors] + s.called), InUse: s.inUse, Slots: s.slots, Unlimited: s.unlimited > 0,
		Open: len(s.opened), Demand: s.demand, IdleSince: s.made.Add(s.idle), Arrivals: s.arrivals,
		Bound: int(s.bound), Sessions: len(s.sessions.of),
	}
	if s.waiting[requests] > 0 {
		st.OldestWait = s.made.Add(s.queue.oldest(requests).arrived)
	}
	if s.waiting[visitors] > 0 {
		st.OldestVisitor = s.made.Add(s.queue.oldest(visitors).arrived)
	}
	return st
}

// addDemand changes demand by d. The lock is held, and unlock releases it.
func (s *Service) addDemand(d int) {
	s.demand += d
	switch {
	case s.demand == 0:
		if d != 0 {
			s.idle = time.Since(s.made)
		}
	case s.demand > s.mark:
		s.mark = noMark
		s.due = true
	}
	if s.demand > s.peak {
		s.peak = s.demand
	}
}

// dispatch hands free slots to the requests in the queue that are bound to no
// instance, and calls the visitors whose turn it is. The lock is held.
func (s *Service) dispatch() {
	for s.waiting[requests]-s.bound+s.waiting[visitors] > 0 {
		if len(s.pool.items) == 0 {
			return
		}
		w := s.nextUnbound()
		if s.callVisitor(w) {
			continue
		}
		i := s.pool.take()
		if w == nil || i == nil {
			return
		}
		if w.Affinity != NoAffinity {
			i = s.pick(w)
		}
		s.grant(w, i)
	}
}

// grant gives a slot of i to w, a request that waits. The lock is held.
func (s *Service) grant(w *waiter, i *Instance) {
	r := w.reservation
	if w.bound == nil && w.findsHome() {
		if home, _ := s.home(w); home != nil {
			i = home // which has a free slot
		}
	}
	s.queue.served(w)
	s.leave(r)
	if !r.Quiet {
		s.addDemand(truth(!i.cordoned) - truth(r.bound == nil))
	}
	s.seat(r, i)
	r.granted <- nil
}

func (s *Service) sinceMade() time.Duration { return time.Since(s.made) }

// seat gives a slot of i, which has one, to r. Demand is not touched. The
// lock is held.
func (s *Service) seat(r *Reservation, i *Instance) {
	r.state = holding
	r.instance, r.epoch = i, i.epoch
	i.holders.push(&r.waiter)
	i.inUse++
	i.served++
	s.inUse++
	if r.Quiet {
		i.quiet++
	}
	if r.Affinity != NoAffinity {
		s.join(r, i)
	}
	if s.maxServed > 0 && i.served >= s.maxServed {
		s.spend(i)
		return
	}
	s.pool.used(i)
}

// spend takes i out of use, which was given its last request. The lock is held,
// and unlock releases it.
func (s *Service) spend(i *Instance) {
	s.shut(i)
	i.spent = true
	s.spent = append(s.spent, i)
	s.addDemand(s.unbind(i))
}

// arrival returns the time now, since the service was made. No two are equal,
// so they order what comes. The lock is held.
func (s *Service) arrival() time.Duration {
	s.latest = max(time.Since(s.made), s.latest+1)
	return s.latest
}

// enqueue puts w into the queue. The lock is held.
func (s *Service) enqueue(w *waiter) {
	switch q := s.queue.(type) {
	case nil:
		s.queue = new(fifo)
		if !w.plain() {
			s.queue = newTurns(s.sinceMade)
		}
	case *fifo:
		if !w.plain() {
			s.queue = q.asTurns(s.sinceMade)
		}
	}
	s.queue.push(w)
	s.waiting[w.kind]++
	if w.bound != nil {
		s.bound++
	}
	if w.Quiet {
		s.quiet++
	}
}

// dequeue takes w out of the queue. The lock is held.
func (s *Service) dequeue(w *waiter) {
	s.queue.remove(w)
	s.waiting[w.kind]--
	if w.bound != nil {
		s.bound--
	}
	if w.Quiet {
		s.quiet--
	}
}

// leave takes r out of the queue. The lock is held.
func (s *Service) leave(r *Reservation) {
	s.dequeue(&r.waiter)
	s.shared.give(1)
}

// dismiss takes r out of the queue and tells it why. The lock is held.
func (s *Service) dismiss(r *Reservation, reason error) {
	s.leave(r)
	r.state = idle
	if !r.Quiet && r.bound == nil {
		s.addDemand(-1)
	}
	r.granted <- reason
}

// dismissAll tells all waiters, or only the quiet ones, that they cannot wait.
// The lock is held.
func (s *Service) dismissAll(reason error, onlyQuiet bool) {
	for k := range kinds {
		if s.waiting[k] == 0 {
			continue
		}
		s.queue.each(k, func(w *waiter) {
			switch {
			case onlyQuiet && !w.Quiet:
			case k == requests:
				s.dismiss(w.reservation, reason)
			default:
				s.dismissVisitor(w.visitor, reason)
			}
		})
	}
}

// closed is called after an instance has stopped taking requests: quiet waiters
// wait only while there is one that does. The lock is held.
func (s *Service) closed() {
	if len(s.opened) == 0 && s.quiet > 0 {
		s.dismissAll(ErrAsleep, true)
	}
}

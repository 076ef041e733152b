package reserver

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestAnInstanceWithoutSlotsTakesNoRequestAndThoseInsideGoOn(t *testing.T) {
	for _, b := range []Balance{LeastLoaded, Oldest, Random} {
		s := New(Options{MaxWaiting: 10, Balance: b}, nil, hooks{})
		x := s.Add("x", "", "", "", Unlimited)
		in := mustReserve(t, s)
		for _, none := range []int{NoSlots, -7} {
			x.SetSlots(none)
			if st := x.Stats(); st.Slots != NoSlots || st.InUse != 1 || in.Instance() != x {
				t.Fatalf("with %d: %+v", none, st)
			}
		}
		w, quiet := mustWait(t, s, false), mustWait(t, s, true)
		if st := s.Stats(); st.Slots != 0 || st.Unlimited || st.Open != 1 || st.Waiting != 2 || st.InUse != 1 {
			t.Fatalf("%+v", st)
		}
		in.Release(Answered)
		wantWaiting(t, w, "one that waits for a slot")
		y := s.Add("y", "", "", "", -3)
		if st := y.Stats(); st.Slots != NoSlots {
			t.Fatalf("added with -3: %+v", st)
		}
		wantWaiting(t, w, "one that waits for a slot")
		y.SetSlots(1)
		wantGranted(t, w, "the first")
		wantWaiting(t, quiet, "the second")
		x.SetSlots(Unlimited)
		wantGranted(t, quiet, "the second")
	}
}

func TestG16_ASessionWaitsForItsInstanceWhileThatHasNoSlots(t *testing.T) {
	s := New(Options{MaxWaiting: 10, SessionTimeout: 1e12}, nil, hooks{})
	x, y := s.Add("x", "", "", "", 2), s.Add("y", "", "", "", 2)
	key := uint64(1)
	for ; s.nearestOf(key) != x; key++ {
	}
	ask := Ask{Affinity: ByKey, Key: key}
	var in, bound, hashed, fresh Reservation
	if ok, err := s.Reserve(&in, ask); !ok || in.Instance() != x {
		t.Fatal(ok, err, in.Instance())
	}
	x.SetSlots(NoSlots)
	if ok, err := s.Reserve(&bound, ask); ok || err != nil || !bound.Bound() {
		t.Fatal(ok, err)
	}
	if ok, err := s.Reserve(&hashed, Ask{Affinity: ByHash, Key: key}); !ok || hashed.Instance() != y || hashed.Session() != SessionMoved {
		t.Fatal("a key whose first instance has no slots goes to the next one:", ok, err, hashed.Instance(), hashed.Session())
	}
	other := key + 1
	for ; s.nearestOf(other) != x; other++ {
	}
	if ok, err := s.Reserve(&fresh, Ask{Affinity: ByKey, Key: other}); !ok || fresh.Instance() != y || fresh.Session() != SessionNew {
		t.Fatal("a new key goes where a slot is:", ok, err, fresh.Instance(), fresh.Session())
	}
	in.Release(Answered)
	hashed.Release(Answered)
	wantWaiting(t, &bound, "the session")
	x.Cordon()
	x.SetSlots(1)
	wantGranted(t, &bound, "the session")
	if bound.Instance() != x || bound.Session() != SessionKept {
		t.Fatal(bound.Instance(), bound.Session())
	}
}

// nearestOf is the first instance in the order of a key.
func (s *Service) nearestOf(key uint64) *Instance {
	first, _ := s.nearest(key)
	return first
}

// A request that may not be written any more, although it has a slot, goes back
// with Requeue.
func TestARequestThatWasNotWrittenGoesBackToTheFrontOfTheQueue(t *testing.T) {
	s := New(Options{MaxWaiting: 1, SessionTimeout: 1e12}, nil, hooks{})
	var freed []*Instance
	s.SetFreed(func(i *Instance) { freed = append(freed, i) })
	x := s.Add("x", "", "", "", 1)
	r := new(Reservation)
	if ok, err := s.Reserve(r, Ask{Affinity: ByKey, Key: 1, Share: 1}); !ok {
		t.Fatal(err)
	}
	waits := mustWait(t, s, false)
	before := s.Stats().Arrivals
	x.SetSlots(NoSlots)
	for range 2 * strikesToEject {
		if ok, err := r.Requeue(Neutral); ok || err != nil {
			t.Fatal(ok, err)
		}
		if len(freed) != 1 || freed[0] != x || x.Stats().InUse != 0 {
			t.Fatalf("the slot was not given back: %v, %+v", freed, x.Stats())
		}
		x.SetSlots(1)
		wantGranted(t, r, "the request that was sent back")
		wantWaiting(t, waits, "one that came later")
		x.SetSlots(NoSlots)
		freed = nil
	}
	if st := s.Stats(); st.Arrivals != before || x.Stats().Ejected || r.Session() != SessionNew {
		t.Fatalf("it was counted: %+v, %+v, session %v", st, x.Stats(), r.Session())
	}
}

func TestFreedSlotsAreToldWhileWatchedAndAlwaysOfAnInstanceWithTooManyInside(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	var freed []int
	s.SetFreed(func(i *Instance) { freed = append(freed, i.Stats().InUse) }) // deadlocks if the lock is held
	x := s.Add("x", "", "", "", 3)
	leaves := func(r *Reservation, what string, want ...int) {
		t.Helper()
		freed = nil
		if r.Release(Answered); !slices.Equal(freed, want) {
			t.Fatalf("%s: told %v, want %v", what, freed, want)
		}
	}
	a, b, c := mustReserve(t, s), mustReserve(t, s), mustReserve(t, s)
	leaves(a, "not watched")
	s.WatchFreed(true)
	leaves(b, "watched", 1)
	a, b = mustReserve(t, s), mustReserve(t, s)
	w := mustWait(t, s, false)
	leaves(a, "one that waits takes the slot")
	wantGranted(t, w, "the one that waits")
	s.WatchFreed(false)
	x.SetSlots(1)
	leaves(b, "three inside one slot", 2)
	leaves(c, "two inside one slot", 1)
	leaves(w, "one inside one slot")
	c = mustReserve(t, s)
	x.SetSlots(NoSlots)
	leaves(c, "one inside no slot", 0)
	x.SetSlots(2)
	a, b = mustReserve(t, s), mustReserve(t, s)
	x.SetSlots(1)
	x.Remove()
	leaves(a, "one that is removed", 1)
	x.SetSlots(NoSlots)
	leaves(b, "one that is removed and has no slots", 0)
}

func TestOneChangeIsToldForEachReadingOfTheNeed(t *testing.T) {
	// Each begins with one request inside the only slot, and one that waits.
	for what, change := range map[string]func(s *Service, i *Instance, in, waits *Reservation){
		"a request takes over the slot": func(_ *Service, _ *Instance, in, _ *Reservation) { in.Release(Answered) },
		"the waiter leaves":             func(_ *Service, _ *Instance, _, waits *Reservation) { waits.Cancel() },
		"a request is refused":          func(s *Service, _ *Instance, _, _ *Reservation) { _, _ = s.Reserve(new(Reservation), Ask{}) },
		"all waiters are refused":       func(s *Service, _ *Instance, _, _ *Reservation) { s.Refuse(errSuspended) },
		"the demand is less": func(s *Service, i *Instance, _, _ *Reservation) {
			s.CordonLeastLoaded(1, []*Instance{i}, time.Time{})
		},
		"a slot more":   func(_ *Service, i *Instance, _, _ *Reservation) { i.SetSlots(2) },
		"a visitor":     func(s *Service, _ *Instance, _, _ *Reservation) { mustInvite(t, s, false) },
		"the end of it": func(_ *Service, i *Instance, _, _ *Reservation) { i.Remove() },
	} {
		t.Run(what, func(t *testing.T) {
			s := New(Options{MaxWaiting: 1}, nil, hooks{})
			told := 0
			s.SetChanged(func() { s.Stats(); told++ }) // deadlocks if the lock is held
			i := s.Add("x", "", "", "", 1)
			in, waits := mustReserve(t, s), mustWait(t, s, false)
			if told != 0 {
				t.Fatal("told before anything was read")
			}
			var before, after Need
			s.Need(&before)
			change(s, i, in, waits)
			if told != 1 {
				t.Fatalf("told %d times", told)
			}
			s.Refuse(nil)
			mustInvite(t, s, false)
			if told != 1 {
				t.Fatal("told again, and nothing was read")
			}
			if s.Need(&after); sameNeed(before, after) {
				t.Fatalf("nothing has changed: %+v", after)
			}
			mustInvite(t, s, false)
			if told != 2 {
				t.Fatalf("told %d times after the second reading", told)
			}
		})
	}
}

func TestTheNeedTellsWaitersOfOneInstanceFromThoseOfAny(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	x, y := s.Add("x", "", "", "", NoSlots), s.Add("y", "", "", "", NoSlots)
	var rs [5]Reservation
	var since []time.Time
	for k, to := range []*Instance{y, x, nil, y, nil} {
		ask := Ask{Affinity: ByInstance, Instance: to}
		if ok, err := s.Reserve(&rs[k], ask); ok || err != nil {
			t.Fatal(ok, err)
		}
		since = append(since, s.made.Add(rs[k].arrived))
	}
	mustInvite(t, s, false)
	var n Need
	for range 2 { // the second one uses the memory of the first
		s.Need(&n)
		want := Need{
			Waiting: 2, OldestWait: since[2], Bound: []BoundNeed{{y, 2, since[0]}, {x, 1, since[1]}},
			Visitors: 1, OldestVisitor: s.Stats().OldestVisitor, Demand: 3, Arrivals: 5,
		}
		if !sameNeed(n, want) {
			t.Fatalf("the need is\n%+v; want\n%+v", n, want)
		}
	}
	rs[0].Cancel()
	if s.Need(&n); !n.Bound[0].OldestWait.Equal(since[1]) || n.Bound[1] != (BoundNeed{y, 1, since[3]}) {
		t.Fatalf("%+v", n)
	}
	if got := testing.AllocsPerRun(100, func() { s.Need(&n) }); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

// The worst case: 10 000 sessions wait for one instance, and after them came one
// request that waits for any.
func BenchmarkNeed(b *testing.B) {
	for _, n := range []int{0, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := New(Options{MaxWaiting: n + 1}, nil, hooks{})
			x := s.Add("x", "", "", "", NoSlots)
			for range n {
				if ok, err := s.Reserve(new(Reservation), Ask{Affinity: ByInstance, Instance: x}); ok || err != nil {
					b.Fatal(ok, err)
				}
			}
			mustWait(b, s, false)
			var need Need
			b.ReportAllocs()
			for b.Loop() {
				s.Need(&need)
			}
		})
	}
}

// The receiver of the function of SetFreed reads elsewhere, and late. What it has
// read last is what is inside, although the watch was switched on meanwhile.
func TestNoFreedSlotIsMissedByALateReader(t *testing.T) {
	for round := range 200 {
		s := New(Options{MaxWaiting: 100}, nil, hooks{})
		told := make(chan struct{}, 1)
		tell := func() {
			select {
			case told <- struct{}{}:
			default:
			}
		}
		s.SetFreed(func(*Instance) { tell() })
		x := s.Add("x", "", "", "", 2)
		read := -1
		var reader, requests sync.WaitGroup
		reader.Go(func() {
			for range told {
				read = x.Stats().InUse
			}
		})
		last := mustReserve(t, s)
		for range 3 {
			requests.Go(func() {
				var r Reservation
				for range 20 {
					if ok, err := s.Reserve(&r, Ask{}); err != nil {
						t.Error(err)
					} else if !ok {
						<-r.Granted()
					}
					r.Release(Answered)
				}
			})
		}
		s.WatchFreed(true)
		tell() // the reading that follows the switch
		requests.Wait()
		last.Release(Answered)
		close(told)
		reader.Wait()
		if read != 0 {
			t.Fatalf("round %d: %d are inside by what was read last", round, read)
		}
	}
}

package reserver

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// mustReserve takes a slot at once.
func mustReserve(t testing.TB, s *Service) *Reservation {
	t.Helper()
	r := new(Reservation)
	if ok, err := s.Reserve(r, Ask{}); !ok {
		t.Fatalf("no slot: %v", err)
	}
	return r
}

// mustWait takes a place in the queue.
func mustWait(t testing.TB, s *Service, quiet bool) *Reservation {
	t.Helper()
	r := new(Reservation)
	if ok, err := s.Reserve(r, Ask{Quiet: quiet}); ok || err != nil {
		t.Fatalf("does not wait: %v, %v", ok, err)
	}
	return r
}

// answer returns what a reservation was told, and whether it was told
// anything yet.
func answer(r *Reservation) (told bool, err error) {
	select {
	case err := <-r.Granted():
		return true, err
	default:
		return false, nil
	}
}

func wantGranted(t testing.TB, r *Reservation, who string) {
	t.Helper()
	if told, err := answer(r); !told || err != nil || r.Instance() == nil {
		t.Fatalf("%s has no slot: told %v, %v", who, told, err)
	}
}

func wantWaiting(t testing.TB, r *Reservation, who string) {
	t.Helper()
	if told, err := answer(r); told {
		t.Fatalf("%s waits no longer: %v", who, err)
	}
}

func TestG1_NeverMoreRequestsThanSlots(t *testing.T) {
	for _, b := range []Balance{LeastLoaded, Oldest, Random} {
		s := New(Options{MaxWaiting: 10, Balance: b}, nil, hooks{})
		x, y := s.Add("x", "", "", "", 2), s.Add("y", "", "", "", 3)
		for range 5 {
			mustReserve(t, s)
		}
		mustWait(t, s, false)
		if x.Stats().InUse != 2 || y.Stats().InUse != 3 {
			t.Errorf("balance %d: %+v, %+v", b, x.Stats(), y.Stats())
		}
	}
}

func TestG1_ALoweredNumberOfSlotsTakesNobodyOutAndAdmitsNobodyUntilUseIsBelowIt(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	i := s.Add("x", "", "", "", 4)
	var in []*Reservation
	for range 4 {
		in = append(in, mustReserve(t, s))
	}
	i.SetSlots(2)
	if got := i.Stats().InUse; got != 4 {
		t.Fatalf("%d inside, want 4", got)
	}
	w := mustWait(t, s, false)
	in[0].Release(Answered)
	wantWaiting(t, w, "the waiter, with 3 of 2 inside,")
	in[1].Release(Answered)
	wantWaiting(t, w, "the waiter, with 2 of 2 inside,")
	in[2].Release(Answered)
	wantGranted(t, w, "the waiter, with 1 of 2 inside,")
}

func TestG2_EverySourceOfSlotsServesTheLineInItsOrder(t *testing.T) {
	slot := map[string]func(*Service, *Instance, *Reservation){
		"release":    func(_ *Service, _ *Instance, r *Reservation) { r.Release(Answered) },
		"new":        func(s *Service, _ *Instance, _ *Reservation) { s.Add("new", "", "", "", 1) },
		"more slots": func(_ *Service, i *Instance, _ *Reservation) { i.SetSlots(2) },
		"no limit":   func(_ *Service, i *Instance, r *Reservation) { i.SetSlots(Unlimited) },
		"uncordoned": func(_ *Service, i *Instance, r *Reservation) { i.Cordon(); r.Release(Answered); i.Uncordon() },
		"restored":   func(_ *Service, i *Instance, r *Reservation) { r.Release(Refused); i.Restore() },
	}
	for name, free := range slot {
		t.Run(name, func(t *testing.T) {
			s := New(Options{MaxWaiting: 10}, nil, hooks{})
			i := s.Add("x", "", "", "", 1)
			r := mustReserve(t, s)
			queue := []*Reservation{mustWait(t, s, false), mustWait(t, s, true), mustWait(t, s, false)}
			queue[0].Cancel()
			free(s, i, r)
			if name == "uncordoned" || name == "restored" {
				// The quiet one was sent away while nothing took requests.
				if told, err := answer(queue[1]); !told || err != ErrAsleep {
					t.Fatalf("the quiet one was told %v, %v", told, err)
				}
				wantGranted(t, queue[2], "the oldest")
				return
			}
			wantGranted(t, queue[1], "the oldest")
			if name != "no limit" {
				wantWaiting(t, queue[2], "the younger")
			}
		})
	}
}

func TestG2_ANewcomerNeverOvertakesAWaiter(t *testing.T) {
	s := New(Options{MaxWaiting: 100}, nil, hooks{})
	s.Add("x", "", "", "", 1)
	in := mustReserve(t, s)
	var queue []*Reservation
	for range 20 {
		queue = append(queue, mustWait(t, s, false))
	}
	for k, next := range queue {
		in.Release(Answered)
		queue = append(queue, mustWait(t, s, false)) // comes at the moment of the release
		wantGranted(t, next, fmt.Sprint("number ", k))
		in = next
	}
}

func TestG3_ReleasedExactlyOnce(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	i := s.Add("x", "", "", "", 2)
	a, b := mustReserve(t, s), mustReserve(t, s)
	a.Release(Answered)
	a.Release(Refused) // as a defer does
	if got := i.Stats(); got.InUse != 1 || got.Ejected {
		t.Fatalf("%+v", got)
	}
	if st := s.Stats(); st.InUse != 1 || st.Demand != 1 {
		t.Fatalf("%+v", st)
	}
	b.Release(Answered)
	if st := s.Stats(); st.InUse != 0 || st.Demand != 0 {
		t.Fatalf("%+v", st)
	}
	new(Reservation).Release(Answered) // never reserved
}

func TestG3_AGrantThatACancelMeetsIsKept(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	s.Add("x", "", "", "", 1)
	in := mustReserve(t, s)
	w := mustWait(t, s, false)
	in.Release(Answered) // w is granted, and does not know
	if !w.Cancel() || w.Instance() == nil {
		t.Fatal("the slot is lost")
	}
	w.Release(Neutral)
	mustReserve(t, s).Release(Neutral)
	// Nothing of the old grant is left for the next wait.
	in = mustReserve(t, s)
	if ok, err := s.Reserve(w, Ask{}); ok || err != nil {
		t.Fatal(ok, err)
	}
	wantWaiting(t, w, "the waiter")
	in.Release(Neutral)
	wantGranted(t, w, "the waiter")
}

func TestG3_WhatWasInsideARemovedInstanceIsNotCountedTwice(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	i := s.Add("x", "", "", "", 2)
	a, b := mustReserve(t, s), mustReserve(t, s)
	i.Remove()
	if st := s.Stats(); st.InUse != 0 || st.Demand != 0 || st.Slots != 0 || st.Open != 0 {
		t.Fatalf("%+v", st)
	}
	s.Add("y", "", "", "", 1)
	c := mustReserve(t, s)
	a.Release(Refused)
	if ok, err := b.Requeue(Failed); ok || err != nil {
		t.Fatal(ok, err)
	}
	if st := s.Stats(); st.InUse != 1 || st.Demand != 2 || st.Open != 1 {
		t.Fatalf("%+v", st)
	}
	c.Release(Answered)
	wantGranted(t, b, "the one tried again")
}

func TestG4_WhoGoesAwayLeavesTheLineAndIsNoReasonToStart(t *testing.T) {
	var limit Limit
	limit.Set(10)
	s := New(Options{MaxWaiting: 10}, &limit, hooks{})
	a, b := mustWait(t, s, false), mustWait(t, s, false)
	again := a.Cancel()
	if again || a.Cancel() || b.Cancel() {
		t.Fatal("granted without an instance")
	}
	if st := s.Stats(); st.Waiting != 0 || st.Demand != 0 || !st.OldestWait.IsZero() || int(limit.used.Load()) != 0 {
		t.Fatalf("%+v, %d", st, int(limit.used.Load()))
	}
	s.Add("x", "", "", "", 1)
	mustReserve(t, s) // no request that left has the slot
}

func TestG6_TheIdleThenTheLeastLoadedGoesFirst(t *testing.T) {
	s := New(Options{Balance: Oldest}, nil, hooks{})
	var all []*Instance
	for k, n := range []int{2, 1, 0, 0} {
		i := s.Add(fmt.Sprint(k), "", "", "", max(n, 1))
		all = append(all, i)
		for range n {
			mustReserve(t, s)
		}
		i.SetSlots(5)
		i.Cordon()
	}
	all = append(all, s.Add("broken", "", "", "", 5))
	mustReserve(t, s).Release(Refused)
	for _, i := range all {
		i.Uncordon()
	}
	var got []string
	for range 3 {
		for _, i := range s.CordonLeastLoaded(2, all, time.Time{}) {
			got = append(got, i.ID)
			if st := i.Stats(); !st.Cordoned {
				t.Fatalf("%s was chosen and not cordoned", i.ID)
			}
		}
	}
	if want := []string{"broken", "3", "2", "1", "0"}; !slices.Equal(got, want) {
		t.Fatalf("went in the order %v; want %v", got, want)
	}
	if s.Stats().Open != 0 {
		t.Fatal("a cordoned instance takes requests")
	}
}

func TestG6_ARequestMakesTheDecisionToSleepVoid(t *testing.T) {
	s := New(Options{MaxWaiting: 1}, nil, hooks{})
	among := []*Instance{s.Add("x", "", "", "", 1)}
	before := s.Stats().IdleSince
	r := mustReserve(t, s)
	if got := s.CordonLeastLoaded(1, among, before); got != nil {
		t.Fatal("put to sleep with a request inside")
	}
	r.Release(Answered)
	if got := s.CordonLeastLoaded(1, among, before); got != nil {
		t.Fatal("put to sleep although a request came and went")
	}
	before = s.Stats().IdleSince
	s.ResetIdle()
	if got := s.CordonLeastLoaded(1, among, before); got != nil {
		t.Fatal("put to sleep although it was touched")
	}
	if got := s.CordonLeastLoaded(1, among, s.Stats().IdleSince); len(got) != 1 {
		t.Fatal("not put to sleep")
	}
}

func TestG6_DrainedIsSaidWhenTheLastOneHasLeft(t *testing.T) {
	drained := 0
	s := New(Options{}, nil, hooks{drained: func(*Instance) { drained++ }})
	i := s.Add("x", "", "", "", 2)
	a, b := mustReserve(t, s), mustReserve(t, s)
	i.Cordon()
	a.Release(Answered)
	if drained != 0 {
		t.Fatal("drained with one inside")
	}
	b.Release(Answered)
	if drained != 1 {
		t.Fatalf("drained %d times", drained)
	}
}

func TestG8_ARefusalTellsEveryWaiterAtOnce(t *testing.T) {
	failing := errors.New("exit status 127")
	s := New(Options{MaxWaiting: 1000}, nil, hooks{})
	var queue []*Reservation
	for range 1000 {
		queue = append(queue, mustWait(t, s, false))
	}
	s.Refuse(failing)
	for _, r := range queue {
		if told, err := answer(r); !told || err != failing {
			t.Fatalf("told %v, %v", told, err)
		}
	}
	if ok, err := s.Reserve(queue[0], Ask{}); ok || err != failing {
		t.Fatal("waits for a service that is failing")
	}
	if !s.TakeRefusedDemand() || s.TakeRefusedDemand() {
		t.Fatal("one came, and once")
	}
	if st := s.Stats(); st.Waiting != 0 || st.Demand != 0 {
		t.Fatalf("%+v", st)
	}
	// A slot is given even so, and waiting allowed again afterwards.
	s.Add("x", "", "", "", 1)
	mustReserve(t, s)
	s.Refuse(nil)
	mustWait(t, s, false)
}

func TestG9_ARetryStandsBeforeEveryoneInTheQueue(t *testing.T) {
	s := New(Options{MaxWaiting: 2}, nil, hooks{})
	x, y := s.Add("x", "", "", "", 1), s.Add("y", "", "", "", 1)
	a, b := mustReserve(t, s), mustReserve(t, s)
	if a.Instance() != x {
		x, y = y, x
	}
	queue := []*Reservation{mustWait(t, s, false), mustWait(t, s, false)}
	// The queue is at its limit; a retry does not count against it.
	for k, r := range []*Reservation{a, b} {
		if ok, err := r.Requeue(Refused); ok || err != nil {
			t.Fatal(k, ok, err)
		}
	}
	y.Restore()
	wantGranted(t, a, "the first retry")
	wantWaiting(t, b, "the second retry")
	x.Restore()
	wantGranted(t, b, "the second retry")
	a.Release(Answered)
	wantGranted(t, queue[0], "the oldest of the queue")
	wantWaiting(t, queue[1], "the youngest of the queue")
}

func TestG9_ARetryIsNotOvertakenByWayOfItsOwnSlot(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	s.Add("x", "", "", "", 1)
	r := mustReserve(t, s)
	w := mustWait(t, s, false)
	if ok, err := r.Requeue(Neutral); !ok || err != nil {
		t.Fatalf("the retry waits behind the queue: %v, %v", ok, err)
	}
	wantWaiting(t, w, "the waiter")
	// But those that were tried again earlier keep their places.
	other := s.Add("y", "", "", "", 1)
	wantGranted(t, w, "the waiter")
	if ok, err := w.Requeue(Refused); ok || err != nil || !other.Stats().Ejected {
		t.Fatal(ok, err, other.Stats())
	}
	if ok, err := r.Requeue(Neutral); ok || err != nil {
		t.Fatalf("a later retry overtook an earlier one: %v, %v", ok, err)
	}
	wantGranted(t, w, "the earlier retry")
}

func TestG9_ARetryGoesToAnotherInstanceIfOneHasRoom(t *testing.T) {
	for _, b := range []Balance{LeastLoaded, Oldest, Random} {
		s := New(Options{MaxWaiting: 10, Balance: b}, nil, hooks{})
		s.Add("x", "", "", "", 10)
		r := mustReserve(t, s)
		busy := s.Add("y", "", "", "", 10)
		if b == LeastLoaded {
			for range 3 {
				mustReserve(t, s)
			}
		}
		for range 20 {
			first := r.Instance()
			if ok, err := r.Requeue(Neutral); !ok || err != nil || r.Instance() == first {
				t.Fatalf("balance %d: %v, %v, again on %s", b, ok, err, r.Instance().ID)
			}
		}
		busy.Cordon()
		if ok, err := r.Requeue(Neutral); !ok || err != nil {
			t.Fatalf("balance %d: no slot although the only instance has one: %v", b, err)
		}
	}
}

func TestG9_ADoubtedInstanceIsGivenNothingUntilItIsVouchedFor(t *testing.T) {
	asked := 0
	s := New(Options{}, nil, hooks{verifyRequested: func(*Instance) { asked++ }})
	i := s.AddUnbound("x", "", "", "", 10)
	inside, r := mustReserve(t, s), mustReserve(t, s)
	before := i.VerifiedAt()
	// It waits although no other request may: it had a slot, and has not used it.
	if ok, err := r.Requeue(Suspected); ok || err != nil {
		t.Fatal(ok, err)
	}
	s.SetOptions(Options{MaxWaiting: 2})
	quiet := mustWait(t, s, true)
	if st := s.Stats(); asked != 1 || st.Open != 1 || st.Slots != 10 || !i.Stats().Suspected {
		t.Fatalf("asked %d times, %+v", asked, st)
	}
	inside.Release(Answered)
	wantWaiting(t, r, "the one that doubts")
	i.Verify()
	wantGranted(t, r, "the one that doubts")
	wantGranted(t, quiet, "the next")
	if !i.VerifiedAt().After(before) {
		t.Error("it is not known that it was vouched for")
	}
	// Suspicions do not count as failures: however many there are, none ejects.
	for range 5 {
		mustReserve(t, s).Release(Suspected)
		i.Verify()
	}
	// Without a verification, it is as if the instance had refused a connection.
	mustReserve(t, s).Release(Suspected)
	i.Eject()
	if st := s.Stats(); st.Open != 0 || i.Pause() != pauseRefused {
		t.Fatalf("%+v, a pause of %v", st, i.Pause())
	}
	i.Restore()
	mustReserve(t, s)
	if asked != 7 {
		t.Errorf("asked %d times", asked)
	}
}

func TestG11_TheLineIsBounded(t *testing.T) {
	var limit Limit
	limit.Set(3)
	a, b := New(Options{MaxWaiting: 2}, &limit, hooks{}), New(Options{MaxWaiting: 2}, &limit, hooks{})
	first := mustWait(t, a, false)
	mustWait(t, a, false)
	refused := func(s *Service) {
		t.Helper()
		if ok, err := s.Reserve(new(Reservation), Ask{}); ok || err != ErrQueueFull {
			t.Fatal(ok, err)
		}
	}
	refused(a) // its own limit
	mustWait(t, b, false)
	refused(b) // the one over all
	first.Cancel()
	mustWait(t, b, false)
	refused(a)
	a.SetOptions(Options{})
	refused(a)
}

func TestG13_TheFirstRequestRingsInItsOwnPathAndAReadyInstanceServesAtOnce(t *testing.T) {
	rang := 0
	s := New(Options{MaxWaiting: 10}, nil, hooks{demand: func() { rang++ }})
	w := mustWait(t, s, false)
	if rang != 1 {
		t.Fatalf("rang %d times", rang)
	}
	v := mustWait(t, s, false)
	if rang != 1 {
		t.Fatal("rang again, unasked")
	}
	if s.Watch(1) {
		t.Fatal("watches for what is there already")
	}
	if !s.Watch(2) {
		t.Fatal("does not watch")
	}
	mustWait(t, s, false)
	if rang != 2 {
		t.Fatalf("rang %d times", rang)
	}
	s.Add("x", "", "", "", 1)
	wantGranted(t, w, "the first")
	wantWaiting(t, v, "the second")
}

func TestDemandThatMayNotWaitStillRings(t *testing.T) {
	rang := 0
	s := New(Options{MaxWaiting: 0}, nil, hooks{demand: func() { rang++ }})
	if ok, err := s.Reserve(new(Reservation), Ask{Quiet: true}); ok || err != ErrAsleep || rang != 0 {
		t.Fatal("a quiet one: ", ok, err, rang)
	}
	if ok, err := s.Reserve(new(Reservation), Ask{}); ok || err != ErrQueueFull || rang != 1 {
		t.Fatal(ok, err, rang)
	}
	if s.TakePeak() != 1 || s.TakePeak() != 0 || s.Stats().Demand != 0 {
		t.Fatal("the peak does not tell of it, or the demand stayed")
	}
}

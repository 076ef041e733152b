package reserver

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func withSessions(maxWaiting int) *Service {
	return New(Options{MaxWaiting: maxWaiting, SessionTimeout: 10 * time.Minute}, nil, hooks{})
}

// ask reserves, and fails the test unless it holds a slot as expected.
func ask(t testing.TB, s *Service, a Ask, holds bool) *Reservation {
	t.Helper()
	r := new(Reservation)
	if ok, err := s.Reserve(r, a); ok != holds || err != nil {
		t.Fatalf("%+v: holds a slot: %v, %v; want %v", a, ok, err, holds)
	}
	return r
}

func wantOn(t testing.TB, r *Reservation, i *Instance, session Session) {
	t.Helper()
	if r.Instance() != i || r.Session() != session {
		t.Fatalf("the request is on %v with a session that is %v; want %v, %v", r.Instance(), r.Session(), i.ID, session)
	}
}

func TestG16_ASessionGoesToItsInstance(t *testing.T) {
	for name, again := range map[string]func(i *Instance) Ask{
		"by instance": func(i *Instance) Ask { return Ask{Affinity: ByInstance, Instance: i} },
		"by key":      func(*Instance) Ask { return Ask{Affinity: ByKey, Key: 42} },
	} {
		t.Run(name, func(t *testing.T) {
			s := withSessions(10)
			for k := range 3 {
				s.Add(fmt.Sprint(k), "", "", "", 10)
			}
			first := ask(t, s, again(nil), true)
			home := first.Instance()
			wantOn(t, first, home, SessionNew)
			first.Release(Answered)
			s.Add("later", "", "", "", 1000) // the least loaded one, by far
			for range 8 {
				wantOn(t, ask(t, s, again(home), true), home, SessionKept)
			}
		})
	}
}

func TestG16_SessionsWaitForTheirFullInstanceAndOthersPassThem(t *testing.T) {
	s := withSessions(10)
	a, b := s.Add("a", "", "", "", 1), s.Add("b", "", "", "", 1)
	session := Ask{Affinity: ByInstance, Instance: a}
	inA := ask(t, s, session, true)
	bound := ask(t, s, session, false)
	if !bound.Bound() {
		t.Error("it does not wait for its instance")
	}
	if d := s.Stats().Demand; d != 1 {
		t.Errorf("demand is %d: another instance would not help the one that waits", d)
	}
	other := ask(t, s, Ask{}, true)
	if other.Instance() != b {
		t.Fatal("the free slot was not given")
	}
	later := ask(t, s, Ask{}, false)
	other.Release(Answered)
	wantGranted(t, later, "the one that may use any slot")
	wantWaiting(t, bound, "the session")
	inA.Release(Answered)
	wantGranted(t, bound, "the session")
	wantOn(t, bound, a, SessionKept)
}

// Of those that may use the slot it goes to the oldest, bound or not.
func TestG2_AFreedSlotGoesToTheOldestThatMayUseIt(t *testing.T) {
	for _, boundFirst := range []bool{true, false} {
		s := withSessions(10)
		a, b := s.Add("a", "", "", "", 1), s.Add("b", "", "", "", 1)
		inA := ask(t, s, Ask{Affinity: ByInstance, Instance: a}, true)
		ask(t, s, Ask{Affinity: ByInstance, Instance: b}, true)
		ask(t, s, Ask{Affinity: ByInstance, Instance: b}, false) // may not use it
		asks := []Ask{{}, {Affinity: ByInstance, Instance: a}}
		if boundFirst {
			asks[0], asks[1] = asks[1], asks[0]
		}
		first, second := ask(t, s, asks[0], false), ask(t, s, asks[1], false)
		inA.Release(Answered)
		wantGranted(t, first, "the oldest")
		wantWaiting(t, second, "the younger one")
	}
}

func TestASessionMovesWhenItsInstanceIsGone(t *testing.T) {
	for name, end := range map[string]func(a *Instance){
		"removed": (*Instance).Remove,
		"ejected": (*Instance).Eject,
		"retired": func(a *Instance) { a.Retire(true) },
	} {
		t.Run(name, func(t *testing.T) {
			s := withSessions(10)
			a := s.Add("a", "", "", "", 1)
			ask(t, s, Ask{Affinity: ByKey, Key: 1}, true)
			waits := ask(t, s, Ask{Affinity: ByKey, Key: 1}, false)
			b := s.Add("b", "", "", "", 3)
			wantWaiting(t, waits, "the session")
			end(a)
			wantGranted(t, waits, "the session")
			wantOn(t, waits, b, SessionMoved)
			// From now on it is there.
			wantOn(t, ask(t, s, Ask{Affinity: ByKey, Key: 1}, true), b, SessionKept)
			wantOn(t, ask(t, s, Ask{Affinity: ByInstance, Instance: a}, true), b, SessionMoved)
		})
	}
}

func TestADrainingInstanceServesItsSessionsUntilItIsRetired(t *testing.T) {
	s := withSessions(10)
	a := s.Add("a", "", "", "", 1)
	session := Ask{Affinity: ByInstance, Instance: a}
	in := ask(t, s, session, true)
	a.Cordon()
	ask(t, s, Ask{}, false)
	waits := ask(t, s, session, false)
	if a.Retire(false) {
		t.Fatal("it was retired with a request inside")
	}
	in.Release(Answered)
	wantGranted(t, waits, "the session")
	waits.Release(Answered)
	if !a.Retire(false) {
		t.Fatal("it was not retired although it is empty")
	}
	ask(t, s, session, false)
	a.Cordon() // the platform could not stop it: it drains on
	ask(t, s, session, true)
}

// A cold service is asked by many requests of one session: they must not part.
func TestRequestsOfAKeyThatWaitTogetherGoToOneInstance(t *testing.T) {
	s := withSessions(10)
	var waits []*Reservation
	for range 4 {
		waits = append(waits, ask(t, s, Ask{Affinity: ByKey, Key: 7}, false))
	}
	other := ask(t, s, Ask{Affinity: ByKey, Key: 8}, false)
	a := s.Add("a", "", "", "", 2)
	b := s.Add("b", "", "", "", 2)
	for k, want := range []Session{SessionNew, SessionKept} {
		wantGranted(t, waits[k], "the session")
		wantOn(t, waits[k], a, want)
	}
	wantWaiting(t, waits[2], "the session")
	wantGranted(t, other, "the other session")
	wantOn(t, other, b, SessionNew)
	waits[0].Release(Answered)
	wantGranted(t, waits[2], "the session")
	wantOn(t, waits[2], a, SessionKept)
}

func TestWhatTheAnswerTellsOfASessionIsLearned(t *testing.T) {
	s := withSessions(10)
	a := s.Add("a", "", "", "", 10)
	r := ask(t, s, Ask{}, true)
	for range 3 {
		s.Add("other", "", "", "", 100)
	}
	r.Learn(99)
	r.Release(Answered)
	r.Learn(98) // too late
	wantOn(t, ask(t, s, Ask{Affinity: ByKey, Key: 99}, true), a, SessionKept)
	if n := s.Stats().Sessions; n != 1 {
		t.Errorf("%d sessions are remembered", n)
	}
}

// A first attempt that reached nothing leaves no session behind.
func TestANewSessionIsNotHeldByAnInstanceThatDidNotAnswer(t *testing.T) {
	s := withSessions(10)
	x, y := s.AddUnbound("x", "", "", "", 1), s.AddUnbound("y", "", "", "", 1)
	r := ask(t, s, Ask{Affinity: ByKey, Key: 5}, true)
	other := x
	if r.Instance() == x {
		other = y
	}
	if ok, err := r.Requeue(Suspected); !ok || err != nil {
		t.Fatalf("it waits for an instance on which it has no session: %v, %v", ok, err)
	}
	wantOn(t, r, other, SessionNew)
}

func TestSessionsAreForgottenAfterTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := withSessions(10)
		a := s.Add("a", "", "", "", 10)
		r := ask(t, s, Ask{Affinity: ByKey, Key: 1}, true)
		time.Sleep(time.Hour) // a long request
		r.Release(Answered)
		if got, want := a.SessionUntil(), time.Now().Add(10*time.Minute); !got.Equal(want) {
			t.Errorf("the session ends at %v; want %v", got, want)
		}
		time.Sleep(10*time.Minute - 1)
		if a.SessionUntil().IsZero() {
			t.Error("it ended too early")
		}
		time.Sleep(time.Nanosecond)
		if until := a.SessionUntil(); !until.IsZero() {
			t.Errorf("it goes on until %v", until)
		}
		wantOn(t, ask(t, s, Ask{Affinity: ByKey, Key: 1}, true), a, SessionNew)
		if n := s.Stats().Sessions; n != 1 {
			t.Errorf("%d sessions are remembered", n)
		}
	})
}

func TestTheEldestOfTooManySessionsIsForgotten(t *testing.T) {
	s := withSessions(10)
	a := s.Add("a", "", "", "", 10)
	use := func(key uint64) Session {
		r := ask(t, s, Ask{Affinity: ByKey, Key: key}, true)
		defer r.Release(Answered)
		if r.Instance() != a {
			t.Fatal("there is no other")
		}
		return r.Session()
	}
	for key := range uint64(SessionsMost) {
		use(key + 1)
	}
	if use(1) != SessionKept {
		t.Error("the first one was forgotten too early")
	}
	use(SessionsMost + 1)
	if n := s.Stats().Sessions; n != SessionsMost {
		t.Errorf("%d sessions are remembered; want %d", n, SessionsMost)
	}
	if use(1) != SessionKept || use(2) != SessionNew {
		t.Error("it was not the one that was not used for the longest time that was forgotten")
	}
}

func TestAnInstanceThatComesOrGoesMovesItsOwnShareOfTheKeysAlone(t *testing.T) {
	const n, keys = 10, 10_000
	s := withSessions(10)
	for k := range n {
		s.Add(fmt.Sprint("instance-", k), "", "", "", Unlimited)
	}
	where := func(key uint64) *Instance {
		r := ask(t, s, Ask{Affinity: ByHash, Key: hashOf(fmt.Sprint(key))}, true)
		defer r.Release(Answered)
		return r.Instance()
	}
	before := map[uint64]*Instance{}
	count := map[*Instance]int{}
	for key := range uint64(keys) {
		before[key] = where(key)
		count[before[key]]++
	}
	for i, c := range count {
		if c < keys/n*8/10 || c > keys/n*12/10 {
			t.Errorf("%s has %d of %d keys", i.ID, c, keys)
		}
	}
	late := s.Add("late", "", "", "", Unlimited)
	moved := 0
	for key, was := range before {
		if now := where(key); now != was {
			moved++
			if now != late {
				t.Fatalf("key %d went from %s to %s", key, was.ID, now.ID)
			}
		}
	}
	if moved < keys/(n+1)*8/10 || moved > keys/(n+1)*12/10 {
		t.Errorf("%d of %d keys moved", moved, keys)
	}
	late.Remove()
	for key, was := range before {
		if where(key) != was {
			t.Fatalf("key %d did not go back", key)
		}
	}
}

func TestASpilledRequestGoesToTheNextInTheOrderOfItsKey(t *testing.T) {
	s := withSessions(10)
	for k := range 3 {
		s.Add(fmt.Sprint(k), "", "", "", 1)
	}
	key := Ask{Affinity: ByHash, Key: 12345}
	first, second, third := ask(t, s, key, true), ask(t, s, key, true), ask(t, s, key, true)
	if first.Session() != SessionKept || second.Session() != SessionMoved || third.Session() != SessionMoved {
		t.Errorf("sessions: %v, %v, %v", first.Session(), second.Session(), third.Session())
	}
	next := second.Instance()
	first.Release(Answered)
	second.Release(Answered)
	ask(t, s, key, true)
	if got := ask(t, s, key, true); got.Instance() != next {
		t.Errorf("the second choice was %s, and is %s now", next.ID, got.Instance().ID)
	}
	if n := s.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions are remembered", n)
	}
}

func TestNothingIsAllocatedForASessionWhenASlotIsFree(t *testing.T) {
	s := withSessions(10)
	i := s.Add("x", "", "", "", 2)
	for _, a := range []Ask{{Affinity: ByInstance, Instance: i}, {Affinity: ByKey, Key: 1}, {Affinity: ByHash, Key: 1}, {Class: High, Share: 4}} {
		var r Reservation
		if got := testing.AllocsPerRun(1000, func() {
			if ok, err := s.Reserve(&r, a); !ok {
				t.Fatal(err)
			}
			r.Release(Answered)
		}); got != 0 {
			t.Errorf("%+v: %v allocations", a, got)
		}
	}
}

func BenchmarkSession(b *testing.B) {
	for name, a := range map[string]Ask{"instance": {Affinity: ByInstance}, "key": {Affinity: ByKey, Key: 1}, "hash": {Affinity: ByHash, Key: 1}} {
		b.Run(name+"/1000", func(b *testing.B) {
			s := withSessions(10)
			for k := range 1000 {
				a.Instance = s.Add(fmt.Sprint(k), "", "", "", 10)
			}
			var r Reservation
			b.ReportAllocs()
			for b.Loop() {
				if ok, _ := s.Reserve(&r, a); !ok {
					b.Fatal("no slot")
				}
				r.Release(Answered)
			}
		})
	}
	b.Run("new key/1000", func(b *testing.B) {
		s := withSessions(10)
		for k := range 1000 {
			s.Add(fmt.Sprint(k), "", "", "", 10)
		}
		var r Reservation
		key := uint64(0)
		for b.Loop() {
			key += 0x9e3779b97f4a7c15
			if ok, _ := s.Reserve(&r, Ask{Affinity: ByKey, Key: key}); !ok {
				b.Fatal("no slot")
			}
			r.Release(Answered)
		}
	})
}

func BenchmarkRendezvous(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := withSessions(10)
			for k := range n {
				s.Add(fmt.Sprint(k), "", "", "", 10)
			}
			key := uint64(0)
			for b.Loop() {
				key += 0x9e3779b97f4a7c15
				if _, free := s.nearest(key); free == nil {
					b.Fatal("no slot")
				}
			}
		})
	}
}

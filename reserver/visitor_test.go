package reserver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// mustInvite gives a new visitor a place.
func mustInvite(t testing.TB, s *Service, quiet bool) *Visitor {
	t.Helper()
	g := new(Visitor)
	if err := s.Visit(g, Ask{Quiet: quiet}); err != nil {
		t.Fatalf("not invited: %v", err)
	}
	return g
}

func wantPlace(t testing.TB, g *Visitor, who string) {
	t.Helper()
	select {
	case <-g.Turn():
		t.Fatalf("%s has no place any more: %v", who, g.Reason())
	default:
	}
}

func wantCalled(t testing.TB, g *Visitor, who string) {
	t.Helper()
	select {
	case <-g.Turn():
		if err := g.Reason(); err != nil {
			t.Fatalf("%s was sent away: %v", who, err)
		}
	default:
		t.Fatalf("%s was not called", who)
	}
}

func TestAGuestKeepsThePlaceOfItsRequestAndItsNextOneStandsBeforeEveryone(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	s.Add("x", "", "", "", 1)
	in := mustReserve(t, s)
	first, kept, later := mustWait(t, s, false), mustWait(t, s, false), mustWait(t, s, false)
	g := new(Visitor)
	if !kept.Keep(g) {
		t.Fatal("the place is not kept")
	}
	if st := s.Stats(); st.Waiting != 2 || st.Visitors != 1 || st.Demand != 4 || s.TakePeak() != 4 {
		t.Fatalf("%+v", st)
	}
	if g.Ahead() != 1 {
		t.Fatalf("%d ahead, want one", g.Ahead())
	}
	in.Release(Answered)
	wantGranted(t, first, "the first")
	wantPlace(t, g, "the visitor")
	first.Release(Answered)
	wantCalled(t, g, "the visitor")
	wantGranted(t, later, "the one behind it, for the visitor holds no slot,")

	last := mustWait(t, s, false)
	r := new(Reservation)
	if ok, err := g.Reserve(r, g.Ask); ok || err != nil {
		t.Fatal(ok, err)
	}
	later.Release(Answered)
	wantGranted(t, r, "the request of the visitor")
	wantWaiting(t, last, "the last")
	if st := s.Stats(); st.Visitors != 0 || st.Demand != 2 || s.TakePeak() != 4 {
		t.Fatalf("%+v", st)
	}
}

func TestAPlaceIsKeptOnlyForOneWhoWaits(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	w := mustWait(t, s, false)
	s.Add("x", "", "", "", 1)
	g := new(Visitor)
	if w.Keep(g) || s.Stats().Visitors != 0 {
		t.Fatal("a place was kept for a visitor that has a slot")
	}
	wantGranted(t, w, "the waiter")
	g.Leave() // as a defer does
}

func TestALongLineIsNotCountedToItsEnd(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	var last *Visitor
	for range AheadMost + 5 {
		last = mustInvite(t, s, false)
	}
	if n := last.Ahead(); n != AheadMost {
		t.Errorf("%d ahead, want %d: what is more is not looked at", n, AheadMost)
	}
}

func TestNoMoreGuestsAreCalledThanSlotsAreFree(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	var all []*Visitor
	for range 6 {
		all = append(all, mustInvite(t, s, false))
	}
	s.Add("x", "", "", "", 3)
	for k, g := range all {
		if k < 3 {
			wantCalled(t, g, fmt.Sprint("visitor ", k))
		} else {
			wantPlace(t, g, fmt.Sprint("visitor ", k))
		}
	}
	if all[4].Ahead() != 4 {
		t.Fatalf("%d ahead of the fifth, want four", all[4].Ahead())
	}
	// One does not come, another does.
	all[0].Leave()
	wantCalled(t, all[3], "the fourth, instead of the first,")
	r := new(Reservation)
	if ok, err := all[1].Reserve(r, all[1].Ask); !ok || err != nil {
		t.Fatal(ok, err)
	}
	wantPlace(t, all[4], "the fifth, with two on the way to two slots,")
	r.Release(Answered)
	wantCalled(t, all[4], "the fifth")
}

func TestVisitorsAreCalledForAllFreeSlotsWhileOtherInstancesDrain(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	old := s.Add("old", "", "", "", 3)
	for range 3 {
		mustReserve(t, s)
	}
	old.Cordon()
	all := []*Visitor{mustInvite(t, s, false), mustInvite(t, s, false), mustInvite(t, s, false)}
	s.Add("new", "", "", "", 3)
	for k, g := range all {
		wantCalled(t, g, fmt.Sprint("visitor ", k))
	}
}

func TestAGuestIsDemandUntilItLeaves(t *testing.T) {
	rang := 0
	s := New(Options{MaxWaiting: 10}, nil, hooks{demand: func() { rang++ }})
	quiet := new(Visitor)
	if err := s.Visit(quiet, Ask{Quiet: true}); err != ErrAsleep || rang != 0 {
		t.Fatalf("a quiet visitor of a sleeping service: %v, rang %d times", err, rang)
	}
	g := mustInvite(t, s, false)
	if rang != 1 || s.Stats().Demand != 1 || s.Stats().OldestVisitor != g.Since() {
		t.Fatalf("rang %d times, %+v", rang, s.Stats())
	}
	i := s.Add("x", "", "", "", 1)
	wantCalled(t, g, "the visitor")
	if got := s.CordonLeastLoaded(1, []*Instance{i}, s.Stats().IdleSince); got != nil {
		t.Fatal("put to sleep while the visitor is on the way")
	}
	g.Leave()
	g.Leave()
	if st := s.Stats(); st.Demand != 0 || st.Visitors != 0 {
		t.Fatalf("%+v", st)
	}
	// A quiet one stays only while an instance takes requests.
	in := mustReserve(t, s)
	quiet = mustInvite(t, s, true)
	if s.Stats().Demand != 1 {
		t.Fatal("a quiet visitor is demand")
	}
	i.Cordon()
	if <-quiet.Turn(); quiet.Reason() != ErrAsleep {
		t.Fatalf("the quiet visitor was told %v", quiet.Reason())
	}
	in.Release(Neutral)
}

func TestARefusalTellsEveryGuest(t *testing.T) {
	failing := errors.New("exit status 127")
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	all := []*Visitor{mustInvite(t, s, false), mustInvite(t, s, false)}
	s.Refuse(failing)
	for _, g := range all {
		if <-g.Turn(); g.Reason() != failing {
			t.Fatalf("told %v", g.Reason())
		}
	}
	if st := s.Stats(); st.Demand != 0 || st.Visitors != 0 {
		t.Fatalf("%+v", st)
	}
	if err := s.Visit(new(Visitor), Ask{}); err != failing || !s.TakeRefusedDemand() {
		t.Fatalf("invited while it is failing: %v", err)
	}
}

// Whatever is done in whatever order, the counters agree with what is there,
// and no slot is free while a request waits.
func TestGuestsAndRequestsAtRandom(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		s := New(Options{MaxWaiting: 5}, nil, hooks{})
		var instances []*Instance
		var waiting, inside []*Reservation
		var all []*Visitor
		for step := range 200 {
			switch rnd.IntN(9) {
			case 0, 1:
				r := new(Reservation)
				if ok, err := s.Reserve(r, Ask{}); ok {
					inside = append(inside, r)
				} else if err == nil {
					waiting = append(waiting, r)
				}
			case 2:
				if g := new(Visitor); s.Visit(g, Ask{}) == nil {
					all = append(all, g)
				}
			case 3:
				if len(waiting) > 0 {
					if g := new(Visitor); waiting[0].Keep(g) {
						all, waiting = append(all, g), waiting[1:]
					}
				}
			case 4:
				if len(all) > 0 {
					k := rnd.IntN(len(all))
					all[k].Leave()
					all = slices.Delete(all, k, k+1)
				}
			case 5:
				for k, g := range all {
					if g.state != visitorCalled {
						continue
					}
					r := new(Reservation)
					if ok, err := g.Reserve(r, g.Ask); ok {
						inside = append(inside, r)
					} else if err == nil {
						waiting = append(waiting, r)
					}
					all = slices.Delete(all, k, k+1)
					break
				}
			case 6, 7:
				if len(inside) > 0 {
					inside[0].Release(Answered)
					inside = inside[1:]
				}
			case 8:
				if len(instances) < 3 {
					instances = append(instances, s.Add(fmt.Sprint(step), "", "", "", 1+rnd.IntN(2)))
				}
			}
			waiting = slices.DeleteFunc(waiting, func(r *Reservation) bool {
				told, _ := answer(r)
				if told {
					inside = append(inside, r)
				}
				return told
			})
			called := 0
			for _, g := range all {
				if g.state == visitorCalled {
					called++
				}
			}
			st := s.Stats()
			if st.Demand != len(waiting)+len(inside)+len(all) || st.Visitors != len(all) || int(s.called) != called {
				t.Fatalf("seed %d, step %d: %+v, with %d waiting, %d inside, %d guests, %d called", seed, step, st, len(waiting), len(inside), len(all), called)
			}
			if free := st.Slots - st.InUse; free > 0 && (st.Waiting > 0 || int(s.called) < free && s.waiting[visitors] > 0) {
				t.Fatalf("seed %d, step %d: %d slots are free, %d wait, %d guests are not called", seed, step, free, st.Waiting, s.waiting[visitors])
			}
			for w := plainOf(s).first(visitors); w != nil && w.next != nil; w = w.next {
				if plainOf(s).before(w.next, w) || w.next.prev != w {
					t.Fatalf("seed %d, step %d: the guests are out of order", seed, step)
				}
			}
		}
	}
}

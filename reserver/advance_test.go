package reserver

import (
	"testing"
	"testing/synctest"
	"time"
)

// A wait that goes on at another service goes on with its age.
func TestOneThatHasWaitedElsewhereStandsWhereItsAgePutsIt(t *testing.T) {
	for _, ask := range []Ask{{}, {Class: High}} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Options{MaxWaiting: 10}, nil, hooks{})
			i := s.Add("x", "", "", "", 1)
			in := mustReserve(t, s)
			var all []*Reservation
			for range 3 {
				r := new(Reservation)
				if ok, err := s.Reserve(r, ask); ok || err != nil {
					t.Fatal(ok, err)
				}
				all = append(all, r)
				time.Sleep(time.Second)
			}
			v := new(Visitor)
			if err := s.Visit(v, ask); err != nil {
				t.Fatal(err)
			}
			v.Advance(2500 * time.Millisecond) // behind the first
			if n := v.Ahead(); n != 1 {
				t.Errorf("%d stand before the visitor, want 1", n)
			}
			v.Advance(0) // never further back
			if n := v.Ahead(); n != 1 {
				t.Errorf("%d stand before the visitor, want 1", n)
			}
			v.Leave()
			all[2].Advance(2500*time.Millisecond, false)
			in.Release(Answered)
			wantGranted(t, all[0], "the oldest")
			all[0].Release(Answered)
			wantGranted(t, all[2], "the one that has waited elsewhere")
			if st := s.Stats(); st.Waiting != 1 || st.InUse != 1 || st.Demand != 2 {
				t.Errorf("%+v", st)
			}
			all[2].Advance(time.Hour, true) // it has its slot
			all[2].Release(Answered)
			wantGranted(t, all[1], "the last")
			all[1].Release(Answered)
			i.Remove()
		})
	}
}

func TestOneThatWasCalledElsewhereStandsBeforeAllOthers(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	s.Add("x", "", "", "", 1)
	in := mustReserve(t, s)
	first, called := mustWait(t, s, false), mustWait(t, s, false)
	called.Advance(0, true)
	in.Release(Answered)
	wantGranted(t, called, "the one that was called")
	called.Release(Answered)
	wantGranted(t, first, "the other one")
	first.Release(Answered)
}

package reserver

import (
	"fmt"
	"testing"
	"time"
)

func TestNothingIsAllocatedWhenASlotIsFree(t *testing.T) {
	for _, b := range []Balance{LeastLoaded, Oldest, Random} {
		for _, n := range []int{1, 100} {
			s := New(Options{MaxWaiting: 10, Balance: b}, nil, hooks{demand: func() {}})
			s.SetFreed(func(*Instance) {})
			s.SetChanged(func() {})
			s.WatchFreed(true)
			var need Need
			for k := range n {
				s.Add(fmt.Sprint(k), "", "", "", 2)
			}
			var r Reservation
			if got := testing.AllocsPerRun(1000, func() {
				s.Watch(0)
				s.Need(&need)
				if ok, err := s.Reserve(&r, Ask{}); !ok {
					t.Fatal(err)
				}
				if ok, err := r.Requeue(Neutral); !ok {
					t.Fatal(err)
				}
				r.Release(Answered)
			}); got != 0 {
				t.Errorf("balance %d, %d instances: %v allocations", b, n, got)
			}
		}
	}
}

func TestTheSecondWaitOfAReservationAllocatesNothing(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	s.Add("x", "", "", "", 1)
	in, w := mustReserve(t, s), mustWait(t, s, false)
	if got := testing.AllocsPerRun(1000, func() {
		in.Release(Answered)
		wantGranted(t, w, "the waiter")
		in, w = w, in
		if ok, err := s.Reserve(w, Ask{}); ok || err != nil {
			t.Fatal(ok, err)
		}
	}); got > 1 { // the other one's channel, once in all runs
		t.Errorf("%v allocations", got)
	}
}

// Leaving the queue takes the same time from a long queue as from a short one.
// What is compared is the best of several tries, and the margin is wide: a
// walk along the queue would take a hundred times as long.
func TestG4_LeavingALongLineTakesNoLonger(t *testing.T) {
	perCancel := func(n int) time.Duration {
		s := New(Options{MaxWaiting: n}, nil, hooks{})
		queue := make([]Reservation, n)
		best := time.Hour
		for range 5 {
			for k := range queue {
				if ok, err := s.Reserve(&queue[k], Ask{}); ok || err != nil {
					t.Fatal(ok, err)
				}
			}
			began := time.Now()
			for k := range queue {
				queue[(k+n/2)%n].Cancel()
			}
			best = min(best, time.Since(began)/time.Duration(n))
		}
		return best
	}
	short, long := perCancel(100), perCancel(20000)
	if t.Logf("%v and %v", short, long); long > 10*short+500*time.Nanosecond {
		t.Errorf("one of 20000 takes %v to leave, one of 100 %v", long, short)
	}
}

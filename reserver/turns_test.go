package reserver

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// served gives one slot to one waiter after the other, and returns in which
// order they had it. After each, then is called.
func served(t testing.TB, in *Reservation, waiting []*Reservation, then func(n int)) (order []*Reservation) {
	t.Helper()
	for n := range len(waiting) {
		in.Release(Answered)
		in = nil
		for _, r := range waiting {
			if told, err := answer(r); told {
				if err != nil || in != nil {
					t.Fatalf("more than one was told, or: %v", err)
				}
				in = r
			}
		}
		if in == nil {
			t.Fatal("a slot is free, and no waiter got it")
		}
		order = append(order, in)
		if then != nil {
			then(n)
		}
	}
	return order
}

func TestG2_AHigherClassIsServedFirst(t *testing.T) {
	s := New(Options{MaxWaiting: 100}, nil, hooks{})
	s.Add("x", "", "", "", 1)
	in := mustReserve(t, s)
	var all []*Reservation
	for _, c := range []Class{Low, Normal, High, Low, High, Normal} {
		all = append(all, ask(t, s, Ask{Class: c}, false))
	}
	order := served(t, in, all, nil)
	if want := []*Reservation{all[2], all[4], all[1], all[5], all[0], all[3]}; !slices.Equal(order, want) {
		t.Error("the order is not by class and then by arrival")
	}
}

// Without rising a steady stream of a higher class would be served for ever.
func TestLowIsServedAfterItsTimeAtTheLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rise = 15 * time.Second
		s := New(Options{MaxWaiting: 100}, nil, hooks{})
		s.Add("x", "", "", "", 1)
		in := mustReserve(t, s)
		low := ask(t, s, Ask{Class: Low, RiseAfter: rise}, false)
		came := time.Now()
		for {
			high := ask(t, s, Ask{Class: High, RiseAfter: rise}, false)
			time.Sleep(time.Second)
			in.Release(Answered)
			if told, err := answer(low); told {
				if waited := time.Since(came); err != nil || waited < rise || waited > 2*rise+2*time.Second {
					t.Errorf("it was served after %v, %v; want twice %v at the latest", waited, err, rise)
				}
				return
			}
			if time.Since(came) > time.Minute {
				t.Fatal("it was not served")
			}
			wantGranted(t, high, "the higher class")
			in = high
		}
	})
}

// With one that has risen twice, all older high ones come first, and no younger
// one does.
func TestARisenWaiterStandsWhereItsArrivalPutsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{MaxWaiting: 100}, nil, hooks{})
		s.Add("x", "", "", "", 1)
		in := mustReserve(t, s)
		older := ask(t, s, Ask{Class: High}, false)
		time.Sleep(time.Second)
		low := ask(t, s, Ask{Class: Low, RiseAfter: time.Minute}, false)
		normal := ask(t, s, Ask{RiseAfter: time.Hour}, false)
		time.Sleep(time.Minute)
		if n, _ := s.Ahead(Ask{}); n != 3 {
			t.Errorf("%d are ahead", n)
		}
		time.Sleep(time.Minute)
		younger := ask(t, s, Ask{Class: High}, false)
		order := served(t, in, []*Reservation{older, low, normal, younger}, nil)
		if want := []*Reservation{older, low, younger, normal}; !slices.Equal(order, want) {
			t.Error("wrong order")
		}
	})
}

func TestABusyShareDoesNotKeepOthersWaiting(t *testing.T) {
	s := New(Options{MaxWaiting: 1000}, nil, hooks{})
	s.Add("x", "", "", "", 1)
	in := mustReserve(t, s)
	var all []*Reservation
	for range 100 {
		all = append(all, ask(t, s, Ask{Share: 1}, false))
	}
	quiet := ask(t, s, Ask{Share: 2}, false)
	all = append(all, quiet)
	if n := slices.Index(served(t, in, all, nil), quiet); n > 1 {
		t.Errorf("%d were served before it", n)
	}
}

func TestAShareHasItsOwnLimit(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	for range 2 {
		ask(t, s, Ask{Share: 1, ShareLimit: 2}, false)
	}
	if ok, err := s.Reserve(new(Reservation), Ask{Share: 1, ShareLimit: 2}); ok || err != ErrQueueFull {
		t.Errorf("a third one of the share: %v, %v", ok, err)
	}
	ask(t, s, Ask{Share: 2, ShareLimit: 2}, false)
}

// While k shares have waiters, none gets more than one in k of the grants, and
// one: at any moment, whatever comes and goes, and in the order of each share.
func TestSharesAreFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New(Options{MaxWaiting: 1000}, nil, hooks{})
		s.Add("x", "", "", "", 1)
		var in Reservation
		if ok, _ := s.Reserve(&in, Ask{}); !ok {
			t.Fatal("no slot")
		}
		holder := &in
		queues := map[uint64][]*Reservation{}
		shares := rapid.IntRange(2, 5).Draw(t, "shares")
		push := func(share uint64) {
			r := new(Reservation)
			if ok, err := s.Reserve(r, Ask{Share: share}); ok || err != nil {
				t.Fatal(ok, err)
			}
			queues[share] = append(queues[share], r)
		}
		for share := range uint64(shares) {
			push(share)
		}
		grants := map[uint64]int{}
		for n := 1; n <= 60; n++ {
			// Every share has a waiter, and some have many.
			for range rapid.IntRange(0, 3).Draw(t, "more") {
				push(uint64(rapid.IntRange(0, shares-1).Draw(t, "share")))
			}
			if k := uint64(rapid.IntRange(0, shares-1).Draw(t, "leaves")); len(queues[k]) > 1 {
				queues[k][0].Cancel()
				queues[k] = queues[k][1:]
			}
			holder.Release(Answered)
			holder = nil
			for share, q := range queues {
				for at, r := range q {
					if told, _ := answer(r); !told {
						continue
					}
					if at > 0 || holder != nil {
						t.Fatalf("share %d: number %d was served", share, at)
					}
					holder, queues[share] = r, q[1:]
					grants[share]++
				}
			}
			for share := range uint64(shares) {
				if len(queues[share]) == 0 {
					push(share)
				}
				if most := n/shares + 1; grants[share] > most {
					t.Fatalf("share %d of %d had %d of %d grants", share, shares, grants[share], n)
				}
			}
		}
	})
}

func BenchmarkTurns(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		for _, shares := range []int{1, 100} {
			b.Run(fmt.Sprintf("hand over/%d waiting/%d shares", n, shares), func(b *testing.B) {
				s := New(Options{MaxWaiting: n}, nil, hooks{})
				s.Add("x", "", "", "", 1)
				ring := make([]Reservation, n)
				for k := range ring {
					if _, err := s.Reserve(&ring[k], Ask{Share: uint64(k%shares + 1)}); err != nil {
						b.Fatal(err)
					}
				}
				at := 0
				b.ReportAllocs()
				for b.Loop() {
					r := &ring[at]
					r.Release(Answered)
					if _, err := s.Reserve(r, Ask{Share: uint64(at%shares + 1)}); err != nil {
						b.Fatal(err)
					}
					at = (at + 1) % len(ring)
					if told, _ := answer(&ring[at]); !told {
						b.Fatal("out of order")
					}
				}
			})
		}
	}
}

func TestWhatIsAheadOfARequestThatIsTheFirstOfItsClass(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	for range 3 {
		if ok, err := s.Reserve(new(Reservation), Ask{}); ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	for class, want := range map[Class]int{Low: 3, Normal: 3, High: 0} {
		if n, bound := s.Ahead(Ask{Class: class}); n != want || bound {
			t.Errorf("%d: %d ahead, bound: %v", class, n, bound)
		}
	}
}

package control

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/backendtest"
)

// newFakeBench is a bench with the fake backend of all tests.
func newFakeBench(t *testing.T, s Settings, f *backendtest.Fake, b *Budget) *bench {
	t.Helper()
	x := bareBench(t, s, nil, b)
	if err := x.SetBackend(f); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return x
}

// Each trait stands for itself: the others are not set.

func TestOwnedInstancesAreStoppedWithTheirService(t *testing.T) {
	for _, owned := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			f := &backendtest.Fake{Traits: scaler.Traits{Owned: owned}}
			b := newFakeBench(t, with(func(s *Settings) { s.Min = 1 }), f, nil)
			time.Sleep(time.Second)
			if n := len(f.IDs()); n != 1 {
				t.Fatalf("%d instances", n)
			}
			b.Retire(func() {})
			time.Sleep(time.Minute)
			want := 1
			if owned {
				want = 0
			}
			orders := f.Orders()
			if last := orders[len(orders)-1]; last.Instances != want {
				t.Errorf("owned %v: the last order is %+v", owned, last)
			}
		})
	}
}

func TestAStartHoldsItsPlaceOnlyWhereItIsWorkForTheMachine(t *testing.T) {
	for _, holds := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			budget := NewBudget(1)
			traits := scaler.Traits{HoldsPlace: holds, OrdersBlind: true}
			one, two := &backendtest.Fake{Traits: traits, StartTime: 2 * time.Second}, &backendtest.Fake{Traits: traits, StartTime: 2 * time.Second}
			first, second := newFakeBench(t, defaults(), one, budget), newFakeBench(t, defaults(), two, budget)
			r1 := first.waits()
			synctest.Wait()
			r2 := second.waits()
			time.Sleep(time.Second)
			if got, want := one.Started() == 1 && two.Started() == 1, !holds; got != want {
				t.Errorf("holds %v: after a second both have started: %v", holds, got)
			}
			first.granted(r1)
			second.granted(r2)
			r1.Release(reserver.Answered)
			r2.Release(reserver.Answered)
		})
	}
}

func TestAnOrderComesBeforeTheFirstReportOnlyWhereItMay(t *testing.T) {
	for _, blind := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			f := &backendtest.Fake{Traits: scaler.Traits{OrdersBlind: blind}, Silent: true}
			b := newFakeBench(t, defaults(), f, nil)
			r := b.waits()
			time.Sleep(time.Second)
			if n := len(f.Orders()); n > 0 != blind {
				t.Errorf("blind %v: %d orders before the first report", blind, n)
			}
			f.Do(func() {})
			b.granted(r)
			r.Release(reserver.Answered)
		})
	}
}

func TestACompletedInstanceIsNoFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := &backendtest.Fake{Traits: scaler.Traits{Owned: true, OrdersBlind: true}}
		b := newFakeBench(t, with(func(s *Settings) { s.Min = 1 }), f, nil)
		b.is(Awake)
		for k := range 5 {
			time.Sleep(2 * time.Second)
			synctest.Wait()
			f.Complete(f.IDs()[0])
			synctest.Wait()
			// No pause, and no failure: the next one is there at once.
			if got := f.Started(); got != k+2 {
				t.Fatalf("%d starts after %d have completed", got, k+1)
			}
			if st := b.Status(); st.State != Awake || st.Start.Failure != nil {
				t.Fatalf("%+v", st)
			}
		}
	})
}

// A job that is over at once is started again at most once a second, and the
// requests that wait are not refused for it.
func TestInstancesThatCompleteAtOnceAreNotStartedInARush(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := &backendtest.Fake{
			Traits:    scaler.Traits{Owned: true, OrdersBlind: true},
			StartTime: -1, Lifetime: time.Millisecond, Completes: true,
		}
		b := newFakeBench(t, defaults(), f, nil)
		r := b.waits()
		time.Sleep(10*time.Second + 500*time.Millisecond)
		if n := f.Started(); n < 9 || n > 11 {
			t.Errorf("%d starts in 10 seconds", n)
		}
		select {
		case err := <-r.Granted():
			t.Errorf("the request is told %v", err)
		default:
		}
		if st := b.Status(); st.State != Waking {
			t.Errorf("%+v", st)
		}
		if r.Cancel() {
			t.Error("the request had a slot")
		}
	})
}

func TestTheSlotsOfAnInstanceComeInTheReport(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := &backendtest.Fake{Traits: scaler.Traits{Owned: true, OrdersBlind: true}, Slots: 2}
		b := newFakeBench(t, with(func(s *Settings) { s.Concurrency = 4 }), f, nil)
		one, two := b.inside(), b.inside()
		three := b.waits()
		slots := func(want int) {
			t.Helper()
			synctest.Wait()
			if all := b.Instances(); len(all) != 1 || all[0].Slots != want {
				t.Fatalf("%d slots are wanted: %+v", want, all)
			}
		}
		slots(2)
		id := f.IDs()[0]
		f.Instance(id, func(i *scaler.Instance) { i.Slots = 3 })
		b.granted(three)
		slots(3)
		// Fewer take no request out.
		f.Instance(id, func(i *scaler.Instance) { i.Slots = 1 })
		slots(1)
		one.Release(reserver.Answered)
		two.Release(reserver.Answered)
		four := b.waits()
		three.Release(reserver.Answered)
		b.granted(four)
		// Settings do not change what the platform says; without its word they
		// do.
		b.Apply(with(func(s *Settings) { s.Concurrency = 7 }))
		slots(1)
		f.Instance(id, func(i *scaler.Instance) { i.Slots = 0 })
		slots(7)
		four.Release(reserver.Answered)
	})
}

// Policies count with the slots that there are: with those of the settings,
// requests would wait for ever beside a target that is too low.
func TestThePolicyCountsWithTheSlotsThatThereAre(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := &backendtest.Fake{Traits: scaler.Traits{Owned: true, OrdersBlind: true}, Slots: 1}
		b := newFakeBench(t, with(func(s *Settings) { s.Concurrency, s.Max = 4, 3 }), f, nil)
		var all []*reserver.Reservation
		for range 3 {
			r, _, err := b.ask()
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, r)
			time.Sleep(time.Second)
		}
		if n := len(f.IDs()); n != 3 {
			t.Errorf("%d instances with one slot each for 3 requests", n)
		}
		for _, r := range all {
			r.Release(reserver.Answered)
		}
	})
}

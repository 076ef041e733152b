package reserver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// caller is one goroutine that makes requests.
type caller struct {
	r           Reservation
	rnd         *rand.Rand
	interrupted atomic.Int64

	seated, waited, lateCancels int
}

// stay makes one request, as impatient and as unlucky as chance has it.
// inside counts, for each instance, the callers that are on it.
func (c *caller) stay(s *Service, inside *sync.Map) error {
	ok, err := s.Reserve(&c.r, Ask{Quiet: c.rnd.IntN(5) == 0})
	for tries := 0; ; tries++ {
		if !ok && err == nil {
			ok, err = c.wait()
		}
		if !ok {
			return err
		}
		c.seated++
		i := c.r.Instance()
		n, _ := inside.LoadOrStore(i, new(atomic.Int64))
		if got := n.(*atomic.Int64).Add(1); got > slotsOf(i) {
			return fmt.Errorf("%s has %d inside", i.ID, got)
		}
		if c.rnd.IntN(2) == 0 {
			runtime.Gosched()
		}
		n.(*atomic.Int64).Add(-1)
		outcome := []Outcome{Answered, Answered, Answered, Answered, Neutral, Failed, Refused}[c.rnd.IntN(7)]
		if c.rnd.IntN(4) > 0 || tries == 3 {
			c.r.Release(outcome)
			c.r.Release(outcome)
			return nil
		}
		ok, err = c.r.Requeue(outcome)
	}
}

// wait stays in the queue, or for a moment only.
func (c *caller) wait() (bool, error) {
	c.waited++
	if c.rnd.IntN(2) == 0 {
		select {
		case err := <-c.r.Granted():
			return err == nil, err
		case <-time.After(10 * time.Second):
			return false, errors.New("lost in the queue")
		}
	}
	runtime.Gosched()
	granted := c.r.Cancel()
	if granted {
		c.lateCancels++
	}
	return granted, nil
}

// slotsOf is said by the address, for it does not change with the instance.
func slotsOf(i *Instance) int64 {
	var n int64
	if _, err := fmt.Sscan(i.Address, &n); err != nil {
		panic(err)
	}
	return n
}

func TestG3_TheBooksAreEvenAfterAStorm(t *testing.T) {
	for _, b := range []Balance{LeastLoaded, Oldest, Random} {
		t.Run(fmt.Sprint(b), func(t *testing.T) {
			var limit Limit
			limit.Set(30)
			s := New(Options{MaxWaiting: 25, Balance: b}, &limit, hooks{
				// As the control loop does, which asks back from its hooks.
				ejected: func(i *Instance) { i.Pause(); i.Restore() },
				drained: func(i *Instance) { i.Remove() },
			})
			var callers, keeper sync.WaitGroup
			var inside sync.Map
			stop := make(chan struct{})
			var all []*Instance
			keeper.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(b), 1))
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					if live := s.Stats().Open; live < 4 {
						slots := rnd.IntN(3) + 1
						all = append(all, s.Add(fmt.Sprint(n), "", "", fmt.Sprint(slots), slots))
					}
					i := all[rnd.IntN(len(all))]
					switch rnd.IntN(12) {
					case 0:
						i.Cordon()
					case 1:
						i.Uncordon()
					case 2:
						i.Interrupt(errors.New("gone"))
						i.Remove()
					case 3:
						i.SetSlots(1)
					case 4:
						i.SetSlots(int(slotsOf(i)))
					case 5:
						s.CordonLeastLoaded(1, all, s.Stats().IdleSince)
					case 6:
						s.Refuse(errSuspended)
						s.Refuse(nil)
					case 7:
						s.Watch(rnd.IntN(20))
						s.TakePeak()
					default:
						runtime.Gosched()
					}
					if len(all) > 50 {
						for _, i := range all[:25] {
							i.Remove()
						}
						all = all[25:]
					}
				}
			})
			var seated, waited, lateCancels atomic.Int64
			for n := range 40 {
				callers.Go(func() {
					c := &caller{rnd: rand.New(rand.NewPCG(uint64(b), uint64(n+2)))}
					c.r.Interrupter = InterruptFunc(func(*Instance, error) { c.interrupted.Add(1) })
					for range 600 {
						switch err := c.stay(s, &inside); err {
						case nil, ErrQueueFull, ErrAsleep, errSuspended:
						default:
							t.Error(err)
						}
					}
					seated.Add(int64(c.seated))
					waited.Add(int64(c.waited))
					lateCancels.Add(int64(c.lateCancels))
				})
			}
			callers.Wait()
			close(stop)
			keeper.Wait()
			t.Logf("%d slots given, %d waits, %d cancelled when granted", seated.Load(), waited.Load(), lateCancels.Load())

			st := s.Stats()
			if st.Waiting != 0 || st.InUse != 0 || st.Demand != 0 || int(limit.used.Load()) != 0 {
				t.Errorf("the books are not even: %+v, %d in all queues", st, int(limit.used.Load()))
			}
			for _, i := range all {
				if i.Stats().InUse != 0 || i.holders.first != nil {
					t.Errorf("%s still counts %d", i.ID, i.Stats().InUse)
				}
				i.Remove()
			}
			if st := s.Stats(); st.Open != 0 || st.Slots != 0 || st.Unlimited || len(s.pool.items) != 0 {
				t.Errorf("slots without an instance: %+v", st)
			}
		})
	}
}

// A release that grants, and the waiter's cancellation, at the same moment:
// the slot ends up with the waiter or in the pool, never nowhere.
func TestG3_AGrantAndACancelNeverBothLoseTheSlot(t *testing.T) {
	s := New(Options{MaxWaiting: 10}, nil, hooks{})
	i := s.Add("x", "", "", "", 1)
	in, w := new(Reservation), new(Reservation)
	kept := 0
	for n := range 3000 {
		if ok, _ := s.Reserve(in, Ask{}); !ok {
			t.Fatalf("the slot was lost in round %d", n)
		}
		if ok, err := s.Reserve(w, Ask{}); ok || err != nil {
			t.Fatal(ok, err)
		}
		race(n, func() { in.Release(Answered) }, func() {
			if w.Cancel() {
				kept++
				w.Release(Answered)
			}
		})
		if st := s.Stats(); st.InUse != 0 || st.Waiting != 0 || st.Demand != 0 || i.Stats().InUse != 0 || len(w.granted) != 0 {
			t.Fatalf("round %d: %+v, %+v, %d answers left", n, st, i.Stats(), len(w.granted))
		}
	}
	t.Logf("the grant was first %d of 3000 times", kept)
}

func TestG3_ARefusalAndACancelBothEndTheWaitOnce(t *testing.T) {
	var limit Limit
	limit.Set(10)
	s := New(Options{MaxWaiting: 10}, &limit, hooks{})
	w := new(Reservation)
	for n := range 3000 {
		s.Refuse(nil)
		if ok, err := s.Reserve(w, Ask{}); ok || err != nil {
			t.Fatal(ok, err)
		}
		race(n, func() { s.Refuse(errSuspended) }, func() {
			if w.Cancel() {
				t.Error("granted without an instance")
			}
		})
		if st := s.Stats(); st.Waiting != 0 || st.Demand != 0 || int(limit.used.Load()) != 0 || len(w.granted) != 0 {
			t.Fatalf("round %d: %+v, %d", n, st, int(limit.used.Load()))
		}
	}
}

// race runs both at once, as nearly as can be: each begins when the other is
// there. The scheduler has its favourite, so they take turns.
func race(round int, both ...func()) {
	if round%2 == 1 {
		slices.Reverse(both)
	}
	var wg sync.WaitGroup
	var there atomic.Int32
	for _, f := range both {
		wg.Go(func() {
			for there.Add(1); there.Load() < 2; {
				runtime.Gosched()
			}
			f()
		})
	}
	wg.Wait()
}

func TestG11_TheLimitOverAllIsNeverExceededForAMoment(t *testing.T) {
	var limit Limit
	limit.Set(1)
	taker := func() {
		for range 50_000 {
			took := limit.take(false)
			if n := int(limit.used.Load()); n > 1 || took && n != 1 {
				t.Errorf("%d of 1 wait", n)
				return
			}
			if took {
				limit.give(1)
			}
		}
	}
	for n := range 20 {
		race(n, taker, taker)
	}
	if int(limit.used.Load()) != 0 {
		t.Errorf("%d wait at the end", int(limit.used.Load()))
	}
}

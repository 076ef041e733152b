package reserver

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestOldestWaitIsWhenTheOldestInTheLineCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{MaxWaiting: 10}, nil, hooks{})
		oldest := func(want time.Duration) {
			t.Helper()
			if got := time.Since(s.Stats().OldestWait); got != want {
				t.Errorf("the oldest waits for %v; want %v", got, want)
			}
		}
		i := s.Add("x", "", "", "", 1)
		in := mustReserve(t, s)
		if got := s.Stats().OldestWait; !got.IsZero() {
			t.Errorf("no request waits, but the oldest since %v", got)
		}

		a := mustWait(t, s, false)
		time.Sleep(time.Second)
		b := mustWait(t, s, false)
		time.Sleep(time.Second)
		oldest(2 * time.Second)

		// One tried again stands before them, and has not waited as long.
		if ok, err := in.Requeue(Refused); ok || err != nil {
			t.Fatal(ok, err)
		}
		time.Sleep(time.Second)
		oldest(3 * time.Second)
		a.Cancel()
		oldest(2 * time.Second)
		b.Cancel()
		oldest(time.Second)

		i.Restore()
		wantGranted(t, in, "the one tried again")
		if got := s.Stats().OldestWait; !got.IsZero() {
			t.Errorf("no request waits, but the oldest since %v", got)
		}
	})
}

func TestG6_IdleIsCountedFromTheEndOfTheLastRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{MaxWaiting: 1}, nil, hooks{})
		idle := func(want time.Duration, after string) {
			t.Helper()
			time.Sleep(time.Second)
			st := s.Stats()
			if got := time.Since(st.IdleSince); st.Demand != 0 || got != want+time.Second {
				t.Errorf("after %s: demand %d, idle for %v; want %v", after, st.Demand, got, want+time.Second)
			}
		}
		idle(0, "the beginning")

		i := s.Add("x", "", "", "", 2)
		idle(time.Second, "a new instance, which is no demand")

		a, b := mustReserve(t, s), mustReserve(t, s)
		time.Sleep(time.Minute)
		a.Release(Answered)
		time.Sleep(time.Hour)
		b.Release(Answered)
		idle(0, "the end of the last request")

		var q Reservation
		if ok, err := s.Reserve(&q, Ask{Quiet: true}); !ok {
			t.Fatal(err)
		}
		q.Release(Answered)
		idle(time.Second, "a quiet request")

		i.Cordon()
		w := mustWait(t, s, false)
		time.Sleep(time.Minute)
		w.Cancel()
		idle(0, "the last waiter has left")

		i.Uncordon()
		mustReserve(t, s)
		time.Sleep(time.Minute)
		i.Remove()
		idle(0, "the instance with the last request inside is gone")

		s.SetOptions(Options{})
		if _, err := s.Reserve(&q, Ask{}); err != ErrQueueFull {
			t.Fatal(err)
		}
		idle(0, "a request that could not wait")

		s.ResetIdle()
		idle(0, "a touch")
	})
}

package control

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/policies"
)

// counting is a policy that remembers how often it was asked, and what it saw
// last. It decides as queue does.
type counting struct {
	policies.Queue
	seen *scaler.Inputs
}

func (c counting) Target(in scaler.Inputs, memory scaler.Memory) (scaler.Advice, scaler.Memory) {
	*c.seen = in
	times, _ := memory.(int)
	a, _ := c.Queue.Target(in, nil)
	return a, times + 1
}

// remembering is counting under the name of another type.
type remembering struct{ counting }

func TestWhatAPolicyRemembersOutlivesSleepAndReloads(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var seen scaler.Inputs
		s := with(func(s *Settings) { s.IdleTimeout, s.Policy = 5*time.Second, counting{seen: &seen} })
		b := newBench(t, s, &platform{local: true}, nil)
		b.comesAndGoes()
		time.Sleep(time.Minute)
		waitIdle()
		b.is(Asleep)
		asked := b.recalled().memory.(int)
		if asked == 0 {
			t.Fatal("the policy was never asked")
		}
		s.Min = 1
		b.Apply(s)
		waitIdle()
		if now := b.recalled().memory.(int); now <= asked {
			t.Errorf("after a sleep and a reload it was asked %d times, and %d times before", now, asked)
		}
		s.Policy = remembering{counting{seen: &seen}}
		b.Apply(s)
		waitIdle()
		if now := b.recalled().memory.(int); now > 2 {
			t.Errorf("another policy reads the memory of the first one: %d", now)
		}
	})
}

func TestAPolicyIsToldWhatIsKnownOfTheService(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var seen scaler.Inputs
		s := with(func(s *Settings) {
			s.Max, s.Concurrency, s.IdleTimeout = 2, 2, time.Minute
			s.Policy = counting{policies.Queue{DownWindow: 10 * time.Minute}, &seen}
		})
		b := newBench(t, s, &platform{local: true, startTime: 3 * time.Second}, nil)
		began := time.Now()
		r := b.waits()
		time.Sleep(time.Second)
		b.Trigger()
		waitIdle()
		saw := b.saw(&seen)
		if saw.Waiting != 1 || !saw.OldestWait.Equal(began) || saw.Target != 1 || saw.Starting != 1 || saw.Ready != 0 || saw.Arrivals != 1 || time.Since(saw.StartingSince) > time.Second {
			t.Errorf("while it starts: %+v", saw)
		}
		time.Sleep(5 * time.Second)
		b.granted(r)
		b.Served(7 * time.Second)
		b.inside().Release(reserver.Answered)
		b.Trigger()
		waitIdle()
		saw = b.saw(&seen)
		if saw.Ready != 1 || saw.Starting != 0 || saw.StartTime != 3*time.Second || saw.ServiceTime != 7*time.Second || saw.Arrivals != 2 || saw.Demand != 1 {
			t.Errorf("while it serves: %+v", saw)
		}
		time.Sleep(time.Minute)
		r.Release(reserver.Answered)
		b.Trigger()
		waitIdle()
		saw = b.saw(&seen)
		last := saw.History[1]
		if last.Mean < 0.9 || last.Mean > 1.1 || last.Span == 0 || last.Demand < 1 {
			t.Errorf("one request inside, and the mean of %v is %v: %+v", last.Span, last.Mean, saw.History)
		}
		arrivals := 0
		for _, h := range saw.History {
			arrivals += h.Arrivals
		}
		if arrivals != 2 {
			t.Errorf("the history has %d arrivals of 2: %+v", arrivals, saw.History)
		}
	})
}

func TestTheHistoryOutlivesASleepAndKeepsNoInstances(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var seen scaler.Inputs
		s := with(func(s *Settings) {
			s.Max, s.Concurrency, s.IdleTimeout = 5, 1, 5*time.Second
			s.Policy = counting{policies.Queue{DownWindow: time.Hour}, &seen}
		})
		p := &platform{local: true}
		b := newBench(t, s, p, nil)
		var all []*reserver.Reservation
		for range 3 {
			all = append(all, b.waits())
			waitIdle()
		}
		time.Sleep(time.Second)
		for _, r := range all {
			b.granted(r)
			r.Release(reserver.Answered)
		}
		time.Sleep(time.Minute)
		waitIdle()
		b.is(Asleep)
		b.inside()
		waitIdle()
		highest := 0
		saw := b.saw(&seen)
		for _, h := range saw.History {
			highest = max(highest, h.Demand)
		}
		if highest != 3 {
			t.Errorf("the policy does not see what was asked before the sleep: %+v", saw.History)
		}
		if n := p.living(); n != 1 {
			t.Errorf("%d instances for one request, because of what was asked before the sleep", n)
		}
	})
}

// saw returns what a policy was told last, which it is told under the loop's lock.
func (b *bench) saw(in *scaler.Inputs) scaler.Inputs {
	b.mu.Lock()
	defer b.mu.Unlock()
	return *in
}

// dreaming is a policy that wants to be asked again at some time.
type dreaming struct {
	at    time.Time
	asked *[]time.Time
}

func (d dreaming) Target(in scaler.Inputs, _ scaler.Memory) (scaler.Advice, scaler.Memory) {
	*d.asked = append(*d.asked, in.Now)
	a := scaler.Advice{Reason: "dreams", Mark: 0}
	if in.Now.Before(d.at) {
		a.Recheck = d.at
	}
	return a, nil
}

func (dreaming) Window() time.Duration { return 0 }

func TestASleepingServiceWithATimeAheadHasNoGoroutine(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var asked []time.Time
		at := time.Now().Add(24 * time.Hour)
		b := newBench(t, with(func(s *Settings) { s.Policy = dreaming{at, &asked} }), &platform{local: true}, nil)
		b.Trigger()
		waitIdle()
		if b.active() {
			t.Error("it has a goroutine while it waits for tomorrow")
		}
		b.mu.Lock()
		before := len(asked)
		b.mu.Unlock()
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		if len(asked) != before+1 || !asked[len(asked)-1].Equal(at) {
			t.Errorf("asked at %v, not at %v", asked[before:], at)
		}
		b.Trigger()
		waitIdle()
	})
}

func TestTimersWakeEachLoopAtItsTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var timers Timers
		var loops [50]Loop
		began := time.Now()
		for k := range loops {
			loops[k].timers = &timers
			loops[k].run.poked = make(chan struct{}, 1) // Trigger tells it alone
			timers.set(&loops[k], began.Add(time.Hour))
		}
		for k := range loops {
			timers.set(&loops[k], began.Add(time.Duration((k*37)%50+1)*time.Second))
		}
		for k := range loops {
			if k%5 == 0 {
				timers.drop(&loops[k])
				timers.drop(&loops[k])
			}
		}
		time.Sleep(500 * time.Millisecond)
		for second := range 50 {
			time.Sleep(time.Second)
			synctest.Wait()
			for k := range loops {
				if due := k%5 != 0 && (k*37)%50 <= second; due != (len(loops[k].run.poked) == 1) {
					t.Fatalf("after %d s loop %d, which is due at %d s: woken %v", second+1, k, (k*37)%50+1, !due)
				}
			}
		}
		if len(timers.due) != 0 {
			t.Errorf("%d are left", len(timers.due))
		}
	})
}

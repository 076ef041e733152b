package control

import (
	"flag"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// client sends requests until its time is over.
type client struct {
	b       *bench
	rng     *rand.Rand
	granted *atomic.Int64
	refused *atomic.Int64
}

func (c client) run(until time.Time) {
	for time.Now().Before(until) {
		time.Sleep(c.some(2000))
		if c.rng.IntN(40) == 0 {
			time.Sleep(c.some(30_000))
		}
		c.request()
	}
}

func (c client) some(ms int) time.Duration { return time.Duration(c.rng.IntN(ms)) * time.Millisecond }

func (c client) request() {
	gone := make(chan struct{}, 8)
	r := &reserver.Reservation{Interrupter: reserver.InterruptFunc(func(*reserver.Instance, error) {
		select {
		case gone <- struct{}{}:
		default:
		}
	})}
	ok, err := c.b.res.Reserve(r, reserver.Ask{Quiet: c.rng.IntN(20) == 0})
	for {
		if err != nil {
			c.refused.Add(1)
			return
		}
		if !ok && !c.wait(r) {
			return
		}
		c.granted.Add(1)
		select {
		case <-time.After(c.some(1500)):
		case <-gone:
		}
		if c.rng.IntN(30) > 0 {
			r.Release([]reserver.Outcome{reserver.Answered, reserver.Answered, reserver.Neutral, reserver.Failed}[c.rng.IntN(4)])
			return
		}
		ok, err = r.Requeue(reserver.Refused)
	}
}

// wait returns whether r has got its slot.
func (c client) wait(r *reserver.Reservation) bool {
	select {
	case err := <-r.Granted():
		if err != nil {
			c.refused.Add(1)
		}
		return err == nil
	case <-time.After(c.some(60_000)):
		if r.Cancel() {
			r.Release(reserver.Neutral)
		}
		return false
	}
}

// misfortune happens to a platform and its service.
func misfortune(b *bench, rng *rand.Rand, foreign bool) {
	p := b.p
	some := func() string {
		ids := p.ids()
		if len(ids) == 0 {
			return ""
		}
		return ids[rng.IntN(len(ids))]
	}
	down := &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "down"}
	switch rng.IntN(14) {
	case 0, 1:
		p.end(some(), exit("killed"))
	case 2:
		p.do(func() { p.fail = down })
	case 3:
		p.do(func() { p.fail, p.trouble = down, down })
	case 4:
		p.do(func() { p.fail = &scaler.Failure{Reason: scaler.ReasonForbidden, ForGood: true, Short: "forbidden"} })
	case 5:
		p.do(func() { p.failStop = exit("conflict") })
	case 6, 7:
		p.do(func() { p.fail, p.failStop, p.trouble = nil, nil, nil })
	case 8:
		if foreign {
			p.foreign(rng.IntN(6))
		}
	case 9:
		id := some()
		p.phase(id, scaler.PhaseStarting)
		time.AfterFunc(time.Duration(rng.IntN(20))*time.Second, func() { p.phase(id, scaler.PhaseReady) })
	case 10:
		b.StopInstance(some())
	case 11:
		b.Suspend("chaos")
		time.AfterFunc(time.Duration(rng.IntN(5))*time.Second, b.Resume)
	case 12:
		if rng.IntN(2) == 0 {
			b.Sleep()
		} else {
			b.Wake()
		}
	case 13:
		s := b.settingsNow()
		s.Concurrency = 1 + rng.IntN(4)
		b.Apply(s)
	}
}

func (b *bench) settingsNow() Settings {
	b.mu.Lock()
	defer b.mu.Unlock()
	return *b.settings
}

var rounds = flag.Int("chaos", 1, "how often to go through chaos")

func TestNothingIsLostInChaos(t *testing.T) {
	for range *rounds {
		chaos(t, rand.Uint64())
	}
}

func chaos(t *testing.T, seed uint64) {
	t.Logf("seed %d", seed)
	bubble(t, func(t *testing.T) {
		s := with(func(s *Settings) {
			s.Max, s.Concurrency, s.StartTimeout, s.DrainTimeout, s.IdleTimeout = 4, 2, 20*time.Second, 5*time.Second, time.Minute
		})
		budget := NewBudget(3)
		var services []*bench
		var clients, fate sync.WaitGroup
		var granted, refused atomic.Int64
		until := time.Now().Add(2 * time.Minute)
		for k := range uint64(4) {
			rng := rand.New(rand.NewPCG(seed, k))
			p := &platform{
				local: k%2 == 0, startTime: time.Duration(rng.IntN(3000)) * time.Millisecond,
				stopTime: time.Duration(rng.IntN(1000)) * time.Millisecond,
			}
			if !p.local {
				p.lag = time.Duration(rng.IntN(1000)) * time.Millisecond
			}
			b := newBench(t, s, p, budget)
			b.env.Logger = quiet
			services = append(services, b)
			for c := range uint64(12) {
				rng := rand.New(rand.NewPCG(seed, 100*k+c+10))
				clients.Go(func() { client{b, rng, &granted, &refused}.run(until) })
			}
			fate.Go(func() {
				for time.Now().Before(until) {
					time.Sleep(time.Duration(rng.IntN(6000)) * time.Millisecond)
					misfortune(b, rng, k == 3)
				}
				b.p.do(func() { b.p.fail, b.p.failStop, b.p.trouble = nil, nil, nil })
				time.Sleep(10 * time.Second)
				b.Resume()
			})
		}
		clients.Wait() // or the bubble says that a request waits for ever
		fate.Wait()
		t.Logf("%d granted, %d refused", granted.Load(), refused.Load())
		if granted.Load() < 200 {
			t.Errorf("only %d granted", granted.Load())
		}
		time.Sleep(10 * time.Minute)
		waitIdle()
		for k, b := range services {
			st, rs := b.Status(), b.res.Stats()
			if rs.InUse != 0 || rs.Waiting != 0 || rs.Demand != 0 || rs.Open != 0 {
				t.Errorf("service %d: %+v", k, rs)
			}
			if st.Target != 0 || st.Starting+st.Ready+st.Ejected+st.Draining != 0 || len(b.p.ids()) != 0 {
				t.Errorf("service %d: %+v, %v", k, st, b.p.ids())
			}
			if b.active() {
				t.Errorf("service %d: a service that sleeps has a goroutine", k)
			}
			if most := b.p.peak(); k != 3 && most > s.Max {
				t.Errorf("service %d: %d instances at once", k, most)
			}
		}
		if n := budget.used(); n != 0 {
			t.Errorf("%d places of the budget are lost", n)
		}
		// And everybody is served as before.
		for _, b := range services {
			b.comesAndGoes()
		}
	})
}

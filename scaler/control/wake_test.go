package control

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/policies"
)

func TestWakesOnTheFirstRequestAndSleepsAfterIdleTimeout(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, defaults(), &platform{local: true, startTime: 2 * time.Second}, nil)
		b.is(Asleep)
		if b.active() {
			t.Fatal("a sleeping service has a goroutine")
		}
		r := b.waits()
		b.is(Waking)
		start := time.Now()
		b.granted(r)
		if d := time.Since(start); d != 2*time.Second {
			t.Fatalf("granted after %v", d)
		}
		b.is(Awake)
		if st := b.Status(); st.ColdStart != 2*time.Second || st.ColdStarts != 1 {
			t.Fatalf("%+v", st)
		}
		time.Sleep(time.Hour)
		b.is(Awake) // with a request inside
		r.Release(reserver.Answered)
		time.Sleep(5*time.Minute - time.Millisecond)
		b.is(Awake)
		time.Sleep(time.Millisecond)
		b.is(Asleep)
		b.runs(0)
		if b.active() {
			t.Fatal("a sleeping service has a goroutine")
		}
		want := []string{
			"target 0->1: 0 in use, 1 waiting", "asleep->waking", "r1-1 starting", "r1-1 ready", "cold 2s",
			"waking->awake", "r1-1 draining", "target 1->0: idle for 5m0s", "r1-1 stopping", "awake->asleep", "r1-1 ended",
		}
		if got := b.rec.events; !slices.Equal(sorted(got), sorted(want)) {
			t.Fatalf("%q", got)
		}
	})
}

func sorted(s []string) []string { s = slices.Clone(s); slices.Sort(s); return s }

func TestABurstOnASleepingServiceIsOneStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, defaults(), &platform{local: true, startTime: time.Second}, nil)
		for range 90 {
			b.waits()
		}
		time.Sleep(2 * time.Second)
		waitIdle()
		if n := b.p.started(); n != 1 {
			t.Fatalf("%d starts", n)
		}
		if s := b.res.Stats(); s.InUse != 90 || s.Waiting != 0 {
			t.Fatalf("%+v", s)
		}
	})
}

func TestAClientThatGoesAwayWasTheLastReasonToStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		// The start fails, and who waited for it leaves: nothing is tried again.
		b := newBench(t, defaults(), &platform{local: true, startTime: -1, lifetime: 100 * time.Millisecond}, nil)
		r := b.waits()
		time.Sleep(200 * time.Millisecond)
		r.Cancel()
		time.Sleep(time.Hour)
		b.is(Asleep)
		if b.p.started() != 1 {
			t.Fatalf("%d starts", b.p.started())
		}
	})
}

func TestGoesUpWithDemandAndDownByTheWindow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 5, 1 }), &platform{local: true}, nil)
		var in []*reserver.Reservation
		for range 3 {
			in = append(in, b.inside())
		}
		b.runs(3)
		in[0].Release(reserver.Answered)
		in[1].Release(reserver.Answered)
		time.Sleep(59 * time.Second)
		b.runs(3)
		// One part of the window may pass until the fall is noticed.
		time.Sleep(5 * time.Second)
		b.runs(1)
		if got := in[2].Instance().ID; !slices.Equal(b.p.ids(), []string{got}) {
			t.Fatalf("the busy instance %s was taken, %v stays", got, b.p.ids())
		}
		in[2].Release(reserver.Answered)
	})
}

func TestMinStaysWithoutDemand(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.Min, s.Max = 2, 3 }), &platform{local: true, startTime: time.Second}, nil)
		time.Sleep(time.Second)
		b.runs(2)
		b.is(Awake)
		if st := b.Status(); st.ColdStarts != 0 {
			t.Fatal("min was measured as a cold start: no request waited")
		}
		time.Sleep(time.Hour)
		b.runs(2)
		// One that ends is replaced without a request.
		b.p.end(b.p.ids()[0], exit("exit status 1"))
		time.Sleep(3 * time.Second)
		b.runs(2)
		if b.active() && b.Status().LastError == nil {
			t.Fatal("nothing is left to decide, and yet there is a goroutine")
		}
		time.Sleep(time.Minute)
		if b.active() {
			t.Fatal("nothing is left to decide, and yet there is a goroutine")
		}
		if e := b.Status().LastError; e != nil {
			t.Fatalf("a start has succeeded, and yet: %v", e)
		}
	})
}

func TestWithoutIdleTimeoutOneStaysAwake(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.IdleTimeout = 0 }), &platform{local: true}, nil)
		b.comesAndGoes()
		time.Sleep(1000 * time.Hour)
		b.is(Awake)
		if b.active() {
			t.Fatal("a service that never sleeps has a goroutine")
		}
	})
}

func TestUnlimitedConcurrencyNeedsOneInstance(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 9, 0 }), &platform{local: true, startTime: time.Second}, nil)
		for range 500 {
			b.waits()
		}
		time.Sleep(time.Second)
		b.runs(1)
		if s := b.res.Stats(); s.InUse != 500 {
			t.Fatalf("%+v", s)
		}
	})
}

func TestChangedConcurrencyTakesEffectOnWhatRunsAndWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := with(func(s *Settings) { s.Max, s.Concurrency = 2, 1 })
		b := newBench(t, s, &platform{local: true}, nil)
		b.inside()
		b.inside()
		r := b.waits()
		s.Concurrency = 2
		b.Apply(s)
		b.granted(r)
		s.Max, s.Concurrency = 5, 1
		b.Apply(s)
		b.runs(3) // three inside
		if st := b.Instances(); st[0].Slots != 1 {
			t.Fatalf("%+v", st)
		}
	})
}

// meddler is a policy beside which a request comes and goes.
type meddler struct {
	scaler.Policy
	mu     sync.Mutex
	meddle func()
}

func (m *meddler) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.meddle = f
}

func (m *meddler) Target(in scaler.Inputs, _ scaler.Memory) (scaler.Advice, scaler.Memory) {
	a, _ := m.Policy.Target(in, nil)
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.meddle; a.Idle && f != nil {
		m.meddle = nil
		f()
	}
	return a, nil
}

func TestARequestThatComesAndGoesVoidsTheDecisionToSleep(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := &meddler{Policy: policies.Queue{}}
		b := newBench(t, with(func(s *Settings) { s.Policy = m }), &platform{local: true}, nil)
		b.comesAndGoes()
		waitIdle()
		m.set(b.comesAndGoes)
		time.Sleep(6 * time.Minute)
		b.is(Awake)
		if n := b.rec.count("r1-1 draining"); n != 0 {
			t.Fatal("cordoned after a request had come")
		}
		time.Sleep(5 * time.Minute)
		b.is(Asleep)
	})
}

func TestARequestThatStaysVoidsTheDecisionToSleep(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := &meddler{Policy: policies.Queue{}}
		b := newBench(t, with(func(s *Settings) { s.Policy = m }), &platform{local: true}, nil)
		b.comesAndGoes()
		waitIdle()
		var r *reserver.Reservation
		m.set(func() { r = b.inside() })
		time.Sleep(time.Hour)
		b.is(Awake)
		m.set(nil)
		r.Release(reserver.Answered)
		time.Sleep(5*time.Minute + time.Second)
		b.is(Asleep)
	})
}

func TestARequestThatMayNotWaitWakesAllTheSame(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.IdleTimeout = time.Second }), &platform{local: true, startTime: 500 * time.Millisecond}, nil, maxWaiting(0))
		time.Sleep(time.Hour)
		if _, err := b.request(); err != reserver.ErrQueueFull {
			t.Fatal(err)
		}
		b.is(Waking)
		time.Sleep(900 * time.Millisecond)
		b.is(Awake)
		if st := b.Status(); st.ColdStart != 500*time.Millisecond {
			t.Fatalf("%+v", st)
		}
		time.Sleep(500 * time.Millisecond)
		b.is(Awake) // idle since it was ready
		time.Sleep(200 * time.Millisecond)
		b.is(Asleep)
	})
}

func TestWhoMayNotWaitIsFollowedByAStartAfterTheBackOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, fail: exit("no")}
		b := newBench(t, defaults(), p, nil, maxWaiting(0))
		_, _ = b.request()
		waitIdle()
		_, _ = b.request() // within the pause
		p.set(func() { p.fail = nil })
		time.Sleep(1200 * time.Millisecond)
		b.is(Awake)
	})
}

func TestWithMaxWaitingZeroMoreInstancesComeToo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 3, 1 }), &platform{local: true}, nil, maxWaiting(0))
		_, _ = b.request()
		waitIdle()
		b.inside()
		if _, err := b.request(); err == nil {
			t.Fatal("there was no slot")
		}
		b.runs(2)
	})
}

// stubborn is a policy whose mark contradicts its target.
type stubborn struct{ asked *int }

func (s stubborn) Target(scaler.Inputs, scaler.Memory) (scaler.Advice, scaler.Memory) {
	*s.asked++
	return scaler.Advice{Target: 1}, nil
}
func (s stubborn) Window() time.Duration { return 0 }

func TestAPolicyThatContradictsItselfIsNotAskedWithoutEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		asked := 0
		b := newBench(t, with(func(s *Settings) { s.Policy = stubborn{&asked} }), &platform{local: true}, nil)
		b.inside()
		b.inside()
		time.Sleep(time.Hour)
		if waitIdle(); asked > 50 {
			t.Fatalf("asked %d times", asked)
		}
	})
}

// A guest has no request that waits, and is demand all the same: the service
// starts for it, and does not sleep before it has come, however short the idle
// timeout.
func TestAVisitorWakesAndIsWaitedFor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		set := defaults()
		set.IdleTimeout = time.Second
		b := newBench(t, set, &platform{local: true, startTime: 5 * time.Second}, nil)
		var g reserver.Visitor
		if err := b.reserver.Visit(&g, reserver.Ask{}); err != nil {
			t.Fatal(err)
		}
		b.is(Waking)
		<-g.Turn()
		if err := g.Reason(); err != nil {
			t.Fatal(err)
		}
		if since, usual := b.ColdStart(); !since.IsZero() || usual != 5*time.Second {
			t.Fatalf("a start since %v, usually in %v", since, usual)
		}
		time.Sleep(time.Hour)
		b.is(Awake)
		g.Leave()
		time.Sleep(time.Second)
		b.is(Asleep)
		if d := b.Decisions()[0]; d.Reason != "0 in use, 1 waiting" || d.Inputs["visitors"] != 1 {
			t.Fatalf("%+v", d)
		}
	})
}

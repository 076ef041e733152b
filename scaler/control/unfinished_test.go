package control

import (
	"context"
	"errors"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

func TestAStartIsFinishedAlthoughItsRequestIsGone(t *testing.T) {
	everywhere(t, func(t *testing.T, local bool) {
		p := &platform{local: local, startTime: 6 * time.Second}
		b := newBench(t, with(func(s *Settings) { s.IdleTimeout = 3 * time.Second }), p, nil)
		for range 2 {
			r := b.waits()
			time.Sleep(time.Second)
			r.Cancel()
			time.Sleep(3 * time.Second)
		}
		b.is(Awake)
		if p.started() != 1 {
			t.Fatalf("%d starts\n%s", p.started(), b.story())
		}
		// Idle counts from readiness, which was 2 s ago.
		time.Sleep(1100 * time.Millisecond)
		b.is(Asleep)
	})
}

func TestAStartThatHangsWithoutARequestEndsWithItsTime(t *testing.T) {
	everywhere(t, func(t *testing.T, local bool) {
		p := &platform{local: local, startTime: -1}
		b := newBench(t, with(func(s *Settings) { s.IdleTimeout = 3 * time.Second }), p, nil)
		r := b.waits()
		time.Sleep(time.Second)
		r.Cancel()
		time.Sleep(118 * time.Second)
		b.runs(1)
		time.Sleep(time.Hour)
		b.runs(0)
		if p.started() != 1 {
			t.Fatalf("%d starts\n%s", p.started(), b.story())
		}
	})
}

func TestSleepAnswersAsleep(t *testing.T) {
	// The loop's goroutine runs when this one waits, and not before.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, startTime: time.Second, stopTime: 5 * time.Second}
		b := newBench(t, with(func(s *Settings) { s.Min = 1 }), p, nil)
		time.Sleep(2 * time.Second)
		r := b.inside()
		b.Sleep()
		// The loop may not have run since.
		b.mu.Lock()
		said, state, target := b.state, b.stateNow(), b.target
		b.mu.Unlock()
		if said != Asleep || state != Asleep {
			t.Fatalf("the answer is %s, and %s was said, with a target of %d", state, said, target)
		}
		b.is(Asleep)
		r.Release(reserver.Answered)
		time.Sleep(time.Hour)
		b.is(Asleep)
	})
}

func TestSleepThrowsNoStartAwayForWhichARequestWaits(t *testing.T) {
	everywhere(t, func(t *testing.T, local bool) {
		p := &platform{local: local, startTime: 5 * time.Second}
		b := newBench(t, defaults(), p, nil)
		r := b.waits()
		time.Sleep(4 * time.Second)
		b.Sleep()
		start := time.Now()
		b.granted(r)
		if took := time.Since(start); took != time.Second || p.started() != 1 {
			t.Fatalf("after %v, with %d starts\n%s", took, p.started(), b.story())
		}
		r.Release(reserver.Answered)
	})
}

func TestADeadListenerIsReplacedInSeconds(t *testing.T) {
	for name, x := range map[string]struct {
		most int
		after,
		within time.Duration
	}{
		"in its place": {1, time.Minute, 8 * time.Second}, "beside it": {3, time.Minute, 8 * time.Second},
		"shortly after it was ready": {1, time.Second, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				// Its socket is not there: every probe is refused.
				p := &platform{local: true}
				b := newBench(t, with(func(s *Settings) { s.Max = x.most }), p, nil)
				r := b.inside()
				time.Sleep(x.after)
				dead := r.Instance().ID
				r.Release(reserver.Refused)
				w := b.waits()
				start := time.Now()
				b.granted(w)
				if took := time.Since(start); took > x.within || w.Instance().ID == dead {
					t.Fatalf("after %v on %s\n%s", took, w.Instance().ID, b.story())
				}
				if counted := b.rec.count("failed") > 0; counted != (x.after < ProvenAfter) {
					t.Errorf("counted as a failed start: %v", counted)
				}
				w.Release(reserver.Answered)
				b.runs(1)
			})
		})
	}
}

func TestARemoteInstanceWithoutAnAnswerMayBeBehindANetworkThatIsDown(t *testing.T) {
	unreachable := &net.OpError{Op: "dial", Err: errors.New("no route to host")}
	bubble(t, func(t *testing.T) {
		b := newBench(t, defaults(), &platform{}, nil)
		r := b.inside()
		r.Release(reserver.Refused)
		waitIdle()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, i := range b.current().instances {
			i.lastProbe = unreachable
			if i.unreachable() {
				t.Error("it would be replaced")
			}
			i.revision.traits.SameMachine = true
			if !i.unreachable() {
				t.Error("a local one would not be replaced")
			}
			i.revision.traits.SameMachine = false
			i.stopProbe()
		}
	})
}

// slowOpener is a platform whose Open waits, and tells that it does.
type slowOpener struct {
	*platform
	opening, proceed chan struct{}
}

func (p slowOpener) Open(env scaler.Env) (scaler.Scaler, error) {
	close(p.opening)
	<-p.proceed
	_, err := p.platform.Open(env)
	return p, err
}

func TestARestartDoesNotBringTheOldDefinitionBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, defaults(), &platform{local: true}, nil)
		b.comesAndGoes()
		slow := slowOpener{&platform{local: true}, make(chan struct{}), make(chan struct{})}
		b.mu.Lock()
		b.current().backend = slow
		b.mu.Unlock()
		go func() { _ = b.Restart() }()
		<-slow.opening
		next := &platform{local: true}
		adopted := make(chan error, 1)
		go func() { adopted <- b.SetBackend(next) }()
		for range 1000 {
			// A mutex is nothing that the time of the bubble waits for.
			runtime.Gosched()
		}
		close(slow.proceed)
		if err := <-adopted; err != nil {
			t.Fatal(err)
		}
		waitIdle()
		b.mu.Lock()
		cur := b.current().backend
		b.mu.Unlock()
		if cur != scaler.Backend(next) {
			t.Fatal("the old definition is in force")
		}
	})
}

func TestARevisionThatIsBeingClosedIsNotTakenUpAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old := &closesSlowly{platform: &platform{local: true}, gate: make(chan struct{})}
		b := bareBench(t, defaults(), old.platform, nil)
		if err := b.SetBackend(old); err != nil {
			t.Fatal(err)
		}
		if err := b.SetBackend(&platform{local: true}); err != nil {
			t.Fatal(err)
		}
		waitIdle() // the first has nothing, and is being closed
		if err := b.SetBackend(old); err != nil {
			t.Fatal(err)
		}
		close(old.gate)
		waitIdle()
		b.comesAndGoes()
		if len(old.ids()) != 1 {
			t.Fatalf("it runs elsewhere\n%s", b.story())
		}
	})
}

// closesSlowly is a platform whose Close takes its time.
type closesSlowly struct {
	*platform
	gate chan struct{}
}

func (p *closesSlowly) Open(env scaler.Env) (scaler.Scaler, error) {
	_, err := p.platform.Open(env)
	return p, err
}

func (p *closesSlowly) Close(ctx context.Context, d time.Duration) error {
	<-p.gate
	return p.platform.Close(ctx, d)
}

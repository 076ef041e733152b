package control

import (
	"errors"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// refusedWith fails the test unless err is a refusal of this kind.
func refusedWith(t *testing.T, err error, kind RefusalKind, short string) *Refusal {
	t.Helper()
	var r *Refusal
	if !errors.As(err, &r) || r.Kind != kind || r.Short != short {
		t.Fatalf("want a refusal %d %q, got %#v", kind, short, err)
	}
	return r
}

func TestThreeFailedStartsTellEveryWaiterTheReasonAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, defaults(), &platform{local: true, startTime: -1, lifetime: 100 * time.Millisecond}, nil)
		start := time.Now()
		var all []*reserver.Reservation
		for range 50 {
			all = append(all, b.waits())
		}
		for _, r := range all {
			refusedWith(t, b.answer(r), RefusedFailing, "exit status 1")
		}
		// 100 ms, 1 s of pause, 100 ms, 2 s of pause, 100 ms.
		if d := time.Since(start); d < 2900*time.Millisecond || d > 3700*time.Millisecond {
			t.Fatalf("told after %v", d)
		}
		b.is(Failing)
		if b.p.started() != 3 {
			t.Fatalf("%d starts", b.p.started())
		}
		_, err := b.request()
		r := refusedWith(t, err, RefusedFailing, "exit status 1")
		if d := time.Until(r.Until); d < 3*time.Second || d > 5*time.Second {
			t.Fatalf("the third pause ends in %v", d)
		}
	})
}

func TestAFailureForGoodFailsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "no such command"}
		b := newBench(t, defaults(), &platform{local: true, fail: f}, nil)
		start := time.Now()
		refusedWith(t, b.answer(b.waits()), RefusedFailing, "no such command")
		if time.Since(start) != 0 {
			t.Fatal("not at once")
		}
		b.is(Failing)
	})
}

func TestStartsThatFailTogetherAreOneFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := &scaler.Failure{Reason: scaler.ReasonImage, ForGood: true, Short: "no image"}
		p := &platform{startTime: -1}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 5, 1 }), p, nil)
		for range 5 {
			b.waits()
		}
		b.runs(5)
		blame := func(id string, f *scaler.Failure) { p.do(func() { p.instance(id).Failure = f }) }
		blame("r1-1", exit("exit status 1"))
		blame("r1-2", f)
		blame("r1-3", f)
		_, err := b.request()
		r := refusedWith(t, err, RefusedFailing, "no image")
		if d := time.Until(r.Until); d > 1200*time.Millisecond {
			t.Fatalf("three at once made a pause of %v", d)
		}
		time.Sleep(500 * time.Millisecond)
		blame("r1-4", f)
		_, err = b.request()
		if again := refusedWith(t, err, RefusedFailing, "no image"); !again.Until.Equal(r.Until) {
			t.Fatal("one more of them made the pause longer")
		}
		if n := b.rec.count("failed together "); n != 2 {
			t.Fatalf("%d are told as one of several\n%s", n, b.story())
		}
	})
}

func TestWhileFailingOneStartPerPauseIsTriedIfSomebodyAsked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 5, 1 }),
			&platform{local: true, startTime: -1, lifetime: 100 * time.Millisecond}, nil)
		for range 3 {
			_ = b.answer(b.waits())
			time.Sleep(time.Minute + 10*time.Second)
		}
		before := b.p.started()
		time.Sleep(time.Hour)
		if b.p.started() != before {
			t.Fatalf("%d starts without a request", b.p.started()-before)
		}
		if b.active() {
			t.Fatal("a failing service without a request has a goroutine")
		}
		for range 3 {
			before := b.p.started()
			_ = b.answer(b.waits()) // this one is tried, and fails
			for range 5 {
				if _, err := b.request(); err == nil {
					t.Fatal("not refused")
				}
			}
			time.Sleep(67 * time.Second) // the pause is over, and was asked in
			if n := b.p.started() - before; n != 2 {
				t.Fatalf("%d starts", n)
			}
			time.Sleep(70 * time.Second)
		}
	})
}

func TestARefusedRequestIsFollowedByAStartThatLasts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, startTime: 2 * time.Second, fail: exit("no")}
		b := newBench(t, with(func(s *Settings) { s.IdleTimeout = time.Second }), p, nil)
		_ = b.answer(b.waits())
		time.Sleep(3 * time.Second) // longer than idle_timeout
		_, err := b.request()
		refusedWith(t, err, RefusedFailing, "no")
		p.set(func() { p.fail = nil })
		b.is(Failing)
		time.Sleep(1500 * time.Millisecond)
		waitIdle()
		if p.started() != 1 {
			t.Fatalf("%d starts\n%s", p.started(), b.story())
		}
		b.granted(b.waits())
		b.is(Awake)
	})
}

func TestAnInstanceThatDiesEarlyIsAFailedStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, defaults(), &platform{local: true, startTime: time.Second, lifetime: 6 * time.Second}, nil)
		for range 3 {
			b.inside()
			time.Sleep(7 * time.Second)
		}
		b.is(Failing)
		if b.Status().LastError.Short != "exit status 1 shortly after it was ready" {
			t.Fatal(b.Status().LastError)
		}
	})
}

func TestAnInstanceThatDiesLateIsReplacedAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, defaults(), &platform{local: true, startTime: time.Second, lifetime: 12 * time.Second}, nil)
		b.granted(b.waits())
		for range 10 {
			time.Sleep(11 * time.Second)
			waitIdle()
			r := b.waits()
			start := time.Now()
			b.granted(r)
			if time.Since(start) != time.Second {
				t.Fatal("the start waited")
			}
		}
	})
}

func TestTenSecondsOfReadinessProveAStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, fail: exit("no")}
		b := newBench(t, defaults(), p, nil)
		r := b.waits()
		time.Sleep(1500 * time.Millisecond) // two failures
		p.set(func() { p.fail = nil })
		b.granted(r)
		time.Sleep(9 * time.Second)
		if b.Status().LastError == nil {
			t.Fatal("forgotten too early")
		}
		time.Sleep(2 * time.Second)
		if waitIdle(); b.Status().LastError != nil {
			t.Fatal("not forgotten")
		}
		// The next failure is the first again.
		p.end(p.ids()[0], exit("late"))
		waitIdle()
		p.set(func() { p.fail = exit("no") })
		start := time.Now()
		r = b.waits()
		waitIdle()
		p.set(func() { p.fail = nil })
		b.granted(r)
		if d := time.Since(start); d > 1200*time.Millisecond {
			t.Fatalf("the pause was %v", d)
		}
	})
}

func TestAnOldInstanceProvesNothingAboutStartsNow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 2, 1 }), p, nil)
		b.inside()
		time.Sleep(time.Minute)
		p.set(func() { p.fail = &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "gone"} })
		b.waits()
		time.Sleep(10 * time.Minute)
		// 1 + 2 + 4 + ... + 60 + 60 s: not one every second.
		if n := b.rec.count("failed"); n < 8 || n > 20 {
			t.Fatalf("%d starts in 10 minutes", n)
		}
		b.is(Awake)
		if b.Status().LastError == nil {
			t.Fatal("the failure is not shown")
		}
		// And nothing breaks when the old one goes while that stands.
		p.end(p.ids()[0], exit("bye"))
		b.is(Failing)
	})
}

func TestMinIsTriedAgainWhileFailing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, fail: exit("no")}
		b := newBench(t, with(func(s *Settings) { s.Min = 1 }), p, nil)
		time.Sleep(10 * time.Minute)
		b.is(Failing)
		if n := len(p.ordered()); n < 8 || n > 20 {
			t.Fatalf("%d tries", n)
		}
		p.set(func() { p.fail = nil })
		time.Sleep(70 * time.Second)
		b.is(Awake)
	})
}

func TestAStartThatTakesTooLongIsGivenUpAndReplaced(t *testing.T) {
	for name, p := range map[string]*platform{
		"never ready": {local: true, startTime: -1},
		"no address":  {local: true, startTime: time.Second, noAddress: true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := newBench(t, defaults(), p, nil)
				b.waits()
				time.Sleep(2*time.Minute - time.Millisecond)
				b.runs(1)
				if p.started() != 1 {
					t.Fatal("given up too early")
				}
				time.Sleep(1200 * time.Millisecond)
				if waitIdle(); p.started() != 2 || b.rec.count("failed not ready within 2m0s") != 1 {
					t.Fatalf("%d starts\n%s", p.started(), b.story())
				}
				b.runs(1)
			})
		})
	}
}

func TestAnAcceptedStartThatNeverAppearsIsAFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, defaults(), &platform{lag: 24 * time.Hour}, nil)
		b.waits()
		time.Sleep(2*time.Minute + time.Millisecond)
		if waitIdle(); b.rec.count("failed no instance appeared within 2m0s") != 1 {
			t.Fatal(b.story())
		}
		if n := len(b.p.ordered()); n != 1 {
			t.Fatalf("%d orders for one instance", n)
		}
	})
}

func TestWhatLastsIsToldForAsLongAsItLasts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{startTime: -1, suffers: &scaler.Failure{Reason: scaler.ReasonImage, ForGood: true, Short: "no image"}}
		b := newBench(t, defaults(), p, nil)
		start := time.Now()
		refusedWith(t, b.answer(b.waits()), RefusedFailing, "no image")
		for time.Since(start) < 4*time.Minute {
			time.Sleep(777 * time.Millisecond)
			waitIdle()
			_, err := b.request()
			if len(p.ids()) == 1 && p.started() == 1 {
				refusedWith(t, err, RefusedFailing, "no image")
			}
		}
		// When the platform gets over it, so does the service.
		p.do(func() {
			p.suffers, p.startTime = nil, 0
			for _, id := range p.all() {
				i := p.instance(id)
				i.Failure, i.Phase = nil, scaler.PhaseReady
			}
		})
		// There may be none at the moment, in the pause before the next start.
		for end := time.Now().Add(2 * time.Minute); b.Status().State != Awake && time.Now().Before(end); waitIdle() {
			_, _ = b.request()
			time.Sleep(777 * time.Millisecond)
		}
		b.is(Awake)
	})
}

func TestAnUnreachablePlatformIsToldAsSuchAndCaughtUpWith(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, defaults(), p, nil)
		down := &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "connection refused"}
		p.do(func() { p.fail, p.trouble = down, down })
		refusedWith(t, b.answer(b.waits()), RefusedPlatform, "connection refused")
		if st := b.Status(); st.Trouble == nil || st.Trouble.Reason != scaler.ReasonPlatform {
			t.Fatal(st.Trouble, b.story())
		}
		time.Sleep(2 * time.Minute)
		_ = b.answer(b.waits())
		_, err := b.request()
		refusedWith(t, err, RefusedPlatform, "connection refused")
		// The pause is long by now. It ends when the platform is back.
		p.do(func() { p.fail, p.trouble = nil, nil })
		b.is(Awake)
		if st := b.Status(); st.Trouble != nil || st.LastError != nil {
			t.Fatal(b.story(), st.Trouble, st.LastError)
		}
	})
}

func TestAnUnreachablePlatformDoesNotTouchWhatIsReady(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 3, 1 }), p, nil)
		r := b.inside()
		time.Sleep(time.Minute)
		down := &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "connection refused"}
		p.do(func() { p.fail, p.trouble = down, down })
		if waitIdle(); b.rec.count("failed") != 0 {
			t.Fatal("an outage was counted as a failed start while nothing was missing")
		}
		w := b.waits() // more than is there
		time.Sleep(10 * time.Minute)
		b.is(Awake)
		r.Release(reserver.Answered)
		b.granted(w)
		w.Release(reserver.Answered)
		for range 100 {
			b.comesAndGoes()
		}
	})
}

func TestAPlatformThatCannotStopDoesNotTakeAwayWhatIsReady(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{failStop: &scaler.Failure{Reason: scaler.ReasonForbidden, Short: "forbidden"}}
		b := newBench(t, defaults(), p, nil)
		b.comesAndGoes()
		time.Sleep(6 * time.Minute)
		b.is(Asleep)
		b.runs(1)
		b.comesAndGoes() // by the one that could not be stopped
		b.is(Awake)
		if p.started() != 1 {
			t.Fatalf("%d starts", p.started())
		}
		time.Sleep(10 * time.Minute)
		if n := len(p.ordered()); n > 25 {
			t.Fatalf("%d orders", n)
		}
		p.set(func() { p.failStop = nil })
		time.Sleep(70 * time.Second)
		b.is(Asleep)
		b.runs(0)
		if e := b.Status().LastError; e != nil {
			t.Fatalf("it has succeeded, and yet: %v", e)
		}
	})
}

func TestStopsThatFailDoNotHoldUpStarts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{failStop: &scaler.Failure{Reason: scaler.ReasonConflict, Short: "conflict"}}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 3, 1 }), p, nil)
		first := b.inside()
		first.Release(reserver.Answered)
		for range 4 {
			b.StopInstance(p.ids()[0])
			time.Sleep(10 * time.Second)
		}
		start := time.Now()
		for range 2 {
			b.inside()
		}
		if d := time.Since(start); d != 0 {
			t.Fatalf("waited %v for a stop", d)
		}
	})
}

func TestABackendThatCannotBeOpenedIsToldAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, openErr: errors.New("no certificate")}
		b := bareBench(t, defaults(), p, nil)
		r := b.waits()
		waitIdle()
		if err := b.SetBackend(p); err == nil {
			t.Fatal("opened")
		}
		if err := b.answer(r); err == nil {
			t.Fatal("granted")
		}
		time.Sleep(time.Hour)
		if _, err := b.request(); err == nil {
			t.Fatal("waits for nothing")
		}
		p.openErr = nil
		if err := b.SetBackend(p); err != nil {
			t.Fatal(err)
		}
		b.granted(b.waits())
	})
}

func TestThePauseGrowsToAMinute(t *testing.T) {
	for n, want := range []time.Duration{1: 1, 2: 2, 3: 4, 4: 8, 5: 16, 6: 32, 7: 60, 8: 60, 1000: 60} {
		if want == 0 {
			continue
		}
		for range 20 {
			if d := backoff(n); d < want*900*time.Millisecond || d > want*1100*time.Millisecond {
				t.Fatalf("after %d failures %v", n, d)
			}
		}
	}
}

func TestAStopThatSucceedsAtLastDoesNotHideWhyStartsFail(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 2, 1 }), p, nil)
		b.comesAndGoes()
		time.Sleep(time.Minute)
		p.do(func() {
			p.fail = &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "no such command"}
			p.failStop = exit("conflict")
		})
		r := b.inside()
		w := b.waits() // its start fails for good
		waitIdle()
		p.do(func() { p.fail = nil })
		b.StopInstance("r1-1")
		r.Release(reserver.Answered)
		waitIdle()
		if b.Status().LastError == nil {
			t.Fatal("no error is shown")
		}
		p.do(func() {
			p.failStop = nil
			p.fail = &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "no such command"}
		})
		time.Sleep(time.Minute)
		w.Cancel()
		b.is(Failing)
	})
}

package control

import (
	"testing"
	"time"
)

func TestAServiceFailsAfterAsManyStartsAsStartAttemptsSays(t *testing.T) {
	for _, x := range []struct {
		attempts, starts int
		from, to         time.Duration
	}{
		{1, 1, 100 * time.Millisecond, 100 * time.Millisecond},
		{0, 3, 2900 * time.Millisecond, 3700 * time.Millisecond}, // the default
		{5, 5, 13 * time.Second, 17500 * time.Millisecond},       // pauses of 1, 2, 4 and 8 s
	} {
		bubble(t, func(t *testing.T) {
			p := &platform{local: true, startTime: -1, lifetime: 100 * time.Millisecond}
			b := newBench(t, with(func(s *Settings) { s.StartAttempts = x.attempts }), p, nil)
			start := time.Now()
			refusedWith(t, b.answer(b.waits()), RefusedFailing, "exit status 1")
			if d := time.Since(start); d < x.from || d > x.to || p.started() != x.starts {
				t.Fatalf("start_attempts %d: told after %v and %d starts", x.attempts, d, p.started())
			}
			b.is(Failing)
		})
	}
}

func TestAChangedNumberOfStartAttemptsHoldsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, startTime: -1, lifetime: 100 * time.Millisecond}
		b := newBench(t, with(func(s *Settings) { s.StartAttempts = 10 }), p, nil)
		r := b.waits()
		time.Sleep(500 * time.Millisecond)
		b.is(Waking)
		b.Apply(with(func(s *Settings) { s.StartAttempts = 1 }))
		refusedWith(t, b.answer(r), RefusedFailing, "exit status 1")
		b.is(Failing)
	})
}

func TestTheStatusCountsFailedStartsAndKeepsTheReasonWhileTheNextRuns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, startTime: -1, lifetime: 300 * time.Millisecond}
		b := newBench(t, defaults(), p, nil)
		b.waits()
		waitIdle()
		if st := b.Status().Start; st.Failed != 0 || st.Attempts != 3 || st.Since.IsZero() || st.Failure != nil {
			t.Fatalf("in the first start: %+v", st)
		}
		time.Sleep(400 * time.Millisecond)
		waitIdle()
		st := b.Status().Start
		if st.Failed != 1 || !st.Since.IsZero() || st.Failure == nil || st.Failure.Short != "exit status 1" || !st.Next.After(time.Now()) {
			t.Fatalf("after the first: %+v", st)
		}
		time.Sleep(time.Until(st.Next) + 100*time.Millisecond)
		waitIdle()
		if st := b.Status().Start; st.Failed != 1 || st.Since.IsZero() || st.Failure == nil || !st.Next.IsZero() {
			t.Fatalf("in the second: %+v", st)
		}
		p.set(func() { p.lifetime = 0; p.startTime = time.Second })
		time.Sleep(time.Minute)
		waitIdle()
		b.is(Awake)
		if st := b.Status().Start; st.Failed != 0 || st.Failure != nil || !st.Since.IsZero() {
			t.Fatalf("awake: %+v", st)
		}
	})
}

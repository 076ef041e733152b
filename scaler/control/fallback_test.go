package control

import (
	"errors"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// failing returns a platform on which no start succeeds.
func failingPlatform(local, forGood bool) *platform {
	return &platform{local: local, fail: &scaler.Failure{Reason: scaler.ReasonExec, ForGood: forGood, Short: "no such command"}}
}

// replace puts next in the place of old, with old as the fallback. It returns
// what was said when the fallback was taken.
func (b *bench) replace(old, next *platform, window time.Duration) *[]*scaler.Failure {
	b.t.Helper()
	taken := new([]*scaler.Failure)
	b.SetFallback(Fallback{Backend: next, For: window, Take: func(f *scaler.Failure) {
		*taken = append(*taken, f)
		b.SetFallback(Fallback{})
		b.Trigger()
		time.Sleep(time.Second) // until it is stored, say: requests go on waiting
		if err := b.SetBackend(old); err != nil {
			b.t.Error(err)
		}
	}})
	if err := b.SetBackendAnyway(next); err != nil {
		b.t.Fatal(err)
	}
	return taken
}

func TestARequestThatWaitsForANewBackendThatFailsGetsTheOldOne(t *testing.T) {
	for name, forGood := range map[string]bool{"for good": true, "three times": false} {
		t.Run(name, func(t *testing.T) {
			everywhere(t, func(t *testing.T, local bool) {
				old := &platform{local: local}
				b := newBench(t, overlapping(), old, nil)
				taken := b.replace(old, failingPlatform(local, forGood), 5*time.Minute)
				r := b.waits()
				b.granted(r)
				if len(*taken) != 1 || (*taken)[0].Short != "no such command" {
					t.Fatalf("taken: %v", *taken)
				}
				b.is(Awake)
				r.Release(reserver.Answered)
			})
		})
	}
}

func TestABackendThatCannotBeOpenedGivesWayAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old := &platform{local: true}
		b := newBench(t, overlapping(), old, nil)
		taken := b.replace(old, &platform{local: true, openErr: errors.New("no connection")}, 5*time.Minute)
		waitIdle()
		if len(*taken) != 1 {
			t.Fatalf("taken: %v", *taken)
		}
		b.comesAndGoes()
	})
}

func TestWhatServesStaysWhenTheNewBackendFails(t *testing.T) {
	everywhere(t, func(t *testing.T, local bool) {
		old := &platform{local: local}
		b := newBench(t, overlapping(), old, nil)
		r := b.inside()
		first := r.Instance().ID
		taken := b.replace(old, failingPlatform(local, false), 5*time.Minute)
		time.Sleep(time.Minute)
		if waitIdle(); len(*taken) != 1 {
			t.Fatalf("taken: %v\n%s", *taken, b.story())
		}
		r.Release(reserver.Answered)
		if r = b.inside(); r.Instance().ID != first {
			t.Fatalf("on %s, not on %s", r.Instance().ID, first)
		}
		r.Release(reserver.Answered)
	})
}

// Without a request that waits, a backend that fails is found out all the same where
// it starts beside the one of before.
func TestABackendThatStartsBesideTheOldOneFailsWithoutARequest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old := &platform{local: true}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Beside = 1, true }), old, nil)
		r := b.inside()
		first := r.Instance().ID
		r.Release(reserver.Answered)
		taken := b.replace(old, failingPlatform(true, false), 5*time.Minute)
		for range 60 {
			time.Sleep(time.Second)
			if r := b.inside(); r.Instance().ID != first {
				t.Fatalf("on %s, not on %s", r.Instance().ID, first)
			} else {
				r.Release(reserver.Answered)
			}
		}
		if waitIdle(); len(*taken) != 1 {
			t.Fatalf("taken: %v\n%s", *taken, b.story())
		}
	})
}

func TestAFallbackIsAtHandForItsTimeOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old, next := &platform{local: true}, &platform{local: true}
		b := newBench(t, overlapping(), old, nil)
		taken := b.replace(old, next, 5*time.Minute)
		time.Sleep(time.Hour) // nothing was started: the time has not begun
		b.comesAndGoes()
		time.Sleep(20 * time.Minute)
		b.is(Asleep)
		next.set(func() {
			next.fail = &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "no such command"}
		})
		if err := b.answer(b.waits()); err == nil {
			t.Fatal("granted")
		}
		if len(*taken) != 0 {
			t.Fatalf("taken: %v", *taken)
		}
		b.is(Failing)
	})
}

func TestWithoutAFallbackThatHelpsTheServiceIsFailing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old := &platform{local: true}
		b := newBench(t, overlapping(), old, nil)
		next := failingPlatform(true, true)
		b.SetFallback(Fallback{Backend: next, For: time.Minute, Take: func(*scaler.Failure) {}})
		if err := b.SetBackend(next); err != nil {
			t.Fatal(err)
		}
		if err := b.answer(b.waits()); err == nil {
			t.Fatal("granted")
		}
		b.is(Failing)
	})
}

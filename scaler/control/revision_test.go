package control

import (
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// everywhere runs a test with local and with remote platforms.
func everywhere(t *testing.T, f func(t *testing.T, local bool)) {
	t.Helper()
	for name, local := range map[string]bool{"local": true, "remote": false} {
		t.Run(name, func(t *testing.T) { bubble(t, func(t *testing.T) { f(t, local) }) })
	}
}

func TestTheOldRevisionServesUntilTheNewOneIsReady(t *testing.T) {
	everywhere(t, func(t *testing.T, local bool) {
		old := &platform{local: local}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 2, 1 }), old, nil)
		x, y := b.inside(), b.inside()
		next := &platform{local: local, startTime: 5 * time.Second}
		if err := b.SetBackend(next); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Second)
		b.runs(2)
		y.Release(reserver.Answered)
		if z := b.inside(); !strings.HasPrefix(z.Instance().ID, "r1-") {
			t.Fatal(z.Instance().ID)
		} else {
			y = z
		}
		time.Sleep(time.Second)
		waitIdle()
		// Both are ready: the old ones drain, and no request is cut off.
		b.runs(2)
		if z := b.waitsOrInside(); !strings.HasPrefix(z.Instance().ID, "r2-") {
			t.Fatal("the old revision still gets requests")
		}
		x.Release(reserver.Answered)
		b.runs(1)
		y.Release(reserver.Answered)
		b.runs(0)
		time.Sleep(time.Second)
		if waitIdle(); old.isClosed() != 1 || next.isClosed() != 0 {
			t.Fatalf("closed %d, %d", old.isClosed(), next.isClosed())
		}
	})
}

// waitsOrInside is a request that gets its slot now or later.
func (b *bench) waitsOrInside() *reserver.Reservation { b.t.Helper(); return b.inside() }

func TestANewRevisionThatFailsKeepsTheOld(t *testing.T) {
	everywhere(t, func(t *testing.T, local bool) {
		old := &platform{local: local}
		b := newBench(t, overlapping(), old, nil)
		r := b.inside()
		f := &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "no such command"}
		next := &platform{local: local, fail: f}
		if err := b.SetBackend(next); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		b.is(Awake)
		if got := b.Status().LastError; got == nil || got.Short != f.Short {
			t.Fatalf("last error %v", got)
		}
		r.Release(reserver.Answered)
		b.comesAndGoes()
		next.set(func() { next.fail = nil })
		time.Sleep(70 * time.Second)
		b.runs(0)
		b.comesAndGoes()
		time.Sleep(6 * time.Minute)
		b.is(Asleep)
	})
}

func TestWhatHappensToAnOldRevisionIsNotHeldAgainstTheNew(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old := &platform{local: true, startTime: -1}
		b := newBench(t, overlapping(), old, nil)
		r := b.waits()
		waitIdle()
		next := &platform{local: true, startTime: 2 * time.Second}
		if err := b.SetBackend(next); err != nil {
			t.Fatal(err)
		}
		waitIdle()
		old.end(old.ids()[0], &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "bad"})
		start := time.Now()
		b.granted(r)
		if time.Since(start) != 2*time.Second || b.rec.count("failed") != 0 {
			t.Fatal(b.story())
		}
	})
}

func TestSeveralOldRevisionsDoNotServeTwice(t *testing.T) {
	bubble(t, func(t *testing.T) {
		first, second := &platform{local: true}, &platform{local: true, startTime: time.Second}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 2, 1 }), first, nil)
		b.inside()
		b.inside()
		if err := b.SetBackend(second); err != nil {
			t.Fatal(err)
		}
		waitIdle()
		third := &platform{local: true, startTime: -1}
		if err := b.SetBackend(third); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		waitIdle()
		// The second serves for the third; the first only ends what it has.
		if s := b.res.Stats(); s.Open != 2 {
			t.Fatalf("%d take requests\n%s", s.Open, b.story())
		}
		time.Sleep(30 * time.Second)
		b.runs(0)
	})
}

func TestARestartReplacesAllWhileTheyServe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, startTime: time.Second}
		b := newBench(t, with(func(s *Settings) { s.Min, s.Max, s.Overlap = 1, 1, OverlapOn }), p, nil)
		time.Sleep(time.Minute)
		backend := b.current().backend.(*platform)
		again := &platform{local: true, startTime: time.Second}
		b.mu.Lock()
		b.current().backend = again // a restart opens it anew
		b.mu.Unlock()
		if err := b.Restart(); err != nil {
			t.Fatal(err)
		}
		for range 200 {
			b.comesAndGoes()
			time.Sleep(10 * time.Millisecond)
		}
		if len(backend.ids()) != 0 || len(again.ids()) != 1 || backend.isClosed() != 1 {
			t.Fatal(b.story())
		}
	})
}

func TestAPlatformThatWentWithItsRevisionIsNotMissed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old := &platform{trouble: &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "down"}}
		b := newBench(t, defaults(), old, nil)
		if st := b.Status(); st.Trouble == nil || st.Trouble.Reason != scaler.ReasonPlatform {
			t.Fatal(st.Trouble, b.story())
		}
		if err := b.SetBackend(&platform{silent: true}); err != nil {
			t.Fatal(err)
		}
		if waitIdle(); b.Status().Trouble != nil {
			t.Fatal(b.Status().Trouble, b.story())
		}
	})
}

func TestMaxHoldsForWhatDrainsAsWell(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, defaults(), p, nil)
		r := b.inside()
		b.StopInstance(p.ids()[0])
		w := b.waits()
		time.Sleep(10 * time.Second)
		r.Release(reserver.Answered)
		b.granted(w)
		if p.peak() != 1 {
			t.Fatalf("%d at once with max 1", p.peak())
		}
	})
}

// talkative is a platform that reports while it is asked for its traits, as
// one does that guards both by the same lock.
type talkative struct{ *platform }

func (p talkative) Open(env scaler.Env) (scaler.Scaler, error) {
	_, err := p.platform.Open(env)
	return p, err
}

func (p talkative) Traits() scaler.Traits {
	reported := make(chan struct{})
	go func() {
		p.do(func() {})
		close(reported)
	}()
	<-reported
	return scaler.Traits{Owned: true, HoldsPlace: true, OrdersBlind: true, SameMachine: true}
}

func TestAPlatformMayReportWhileItIsAskedForItsTraits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := bareBench(t, defaults(), p, nil)
		if err := b.SetBackend(talkative{p}); err != nil {
			t.Fatal(err)
		}
		b.comesAndGoes()
	})
}

func TestReloadsAndRestartsInARowDoNotPileUpStarts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old := &platform{local: true, startTime: time.Minute}
		b := newBench(t, overlapping(), old, nil)
		x := b.waits()
		waitIdle()
		var later []*platform
		for range 5 {
			p := &platform{local: true, startTime: time.Minute}
			later = append(later, p)
			time.Sleep(time.Second)
			if err := b.SetBackend(p); err != nil {
				t.Fatal(err)
			}
			waitIdle()
		}
		// The first is nearest to being ready, the last is what is wanted, and
		// the one before it may work if the last does not.
		for k, p := range later {
			if n, late := len(p.ids()), k >= len(later)-2; n > 0 != late {
				t.Errorf("revision %d has %d instances", k+2, n)
			}
		}
		b.runs(1)
		b.granted(x)
		if id := x.Instance().ID; !strings.HasPrefix(id, "r1-") {
			t.Errorf("the first one to be ready is %s", id)
		}
		x.Release(reserver.Answered)
	})
}

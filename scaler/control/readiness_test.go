package control

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// eject makes an instance that takes no connections.
func (b *bench) eject(r *reserver.Reservation) {
	r.Release(reserver.Refused)
	waitIdle()
}

func TestAnEjectedInstanceIsProbedWithGrowingPausesAndReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := with(func(s *Settings) { s.Check = Check{Kind: CheckTCP, Interval: time.Second} })
		p := &platform{local: true, startTime: -1}
		b := newBench(t, s, p, nil)
		// Nothing listens at the address: the probe never passes, so the
		// instance is put to use by hand.
		r := b.waits()
		waitIdle()
		b.mu.Lock()
		i := b.current().instances["r1-1"]
		b.ready(i, time.Now())
		i.stopProbe()
		b.mu.Unlock()
		b.granted(r)
		b.eject(r)
		if st := b.Status(); st.Ejected != 1 || st.State != Waking {
			t.Fatalf("%+v", st)
		}
		w := b.waits()
		time.Sleep(adoptTimeout)
		b.runs(1)
		if p.started() != 1 {
			t.Fatal("it counts as starting: no other was to be started")
		}
		time.Sleep(3 * time.Second)
		if waitIdle(); p.started() != 2 {
			t.Fatalf("not replaced\n%s", b.story())
		}
		w.Cancel()
	})
}

func TestThePlatformsWordDoesNotRestoreAnEjectedInstance(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, defaults(), p, nil)
		b.eject(b.inside())
		for range 20 {
			time.Sleep(time.Second)
			p.do(func() {}) // says that it is ready
		}
		waitIdle()
		if s := b.res.Stats(); s.Open != 0 {
			t.Fatal("restored while it refuses connections")
		}
		// It is replaced after start_timeout, however often it is called ready.
		for range 110 {
			time.Sleep(time.Second)
			p.do(func() {})
		}
		if b.rec.count("failed not ready within 2m0s") != 1 {
			t.Fatal(b.story())
		}
	})
}

func TestWithdrawnReadinessTakesNoNewRequest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, defaults(), p, nil)
		r := b.inside()
		id := p.ids()[0]
		p.phase(id, scaler.PhaseStarting)
		if st := b.Status(); st.Ejected != 1 || st.Ready != 0 {
			t.Fatalf("%+v", st)
		}
		w := b.waits()
		time.Sleep(time.Minute)
		p.phase(id, scaler.PhaseReady)
		b.granted(w)
		if w.Instance().ID != id || p.started() != 1 {
			t.Fatal("replaced too early")
		}
		p.phase(id, scaler.PhaseStarting)
		w2 := b.waits()
		time.Sleep(2*time.Minute + time.Millisecond)
		r.Release(reserver.Answered)
		w.Release(reserver.Answered)
		time.Sleep(2 * time.Second)
		b.granted(w2)
		if w2.Instance().ID == id {
			t.Fatal("not replaced")
		}
	})
}

func TestAWithdrawnInstanceCanGoToSleep(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, with(func(s *Settings) { s.IdleTimeout = time.Minute }), p, nil)
		b.comesAndGoes()
		time.Sleep(30 * time.Second)
		p.phase(p.ids()[0], scaler.PhaseStarting)
		time.Sleep(30 * time.Second)
		b.is(Asleep)
		b.runs(0)
	})
}

func TestASuspendedServiceStopsWithdrawnInstancesToo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, defaults(), p, nil)
		b.comesAndGoes()
		p.phase(p.ids()[0], scaler.PhaseStarting)
		b.Suspend("maintenance")
		b.runs(0)
	})
}

func TestWithdrawnAndEjectedInstancesAreNotForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, defaults(), p, nil)
		r := b.inside()
		id := p.ids()[0]
		p.phase(id, scaler.PhaseStarting)
		b.eject(r)
		p.phase(id, scaler.PhaseReady)
		b.mu.Lock()
		probing := b.current().instances[id].probe != nil
		b.mu.Unlock()
		if s := b.res.Stats(); s.Open != 0 || !probing {
			t.Fatalf("open %d, probed %v", s.Open, probing)
		}
		// The probe passes: it serves again.
		b.mu.Lock()
		b.probed(b.current().instances[id], time.Now())
		b.mu.Unlock()
		b.comesAndGoes()
	})
}

func TestAChangeToReadyPlatformTakesWhatThePlatformHasSaid(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := with(func(s *Settings) { s.Check = Check{Kind: CheckHTTP, Interval: 10 * time.Second} })
		p := &platform{}
		b := newBench(t, s, p, nil)
		r := b.waits()
		time.Sleep(3 * time.Second)
		b.Apply(defaults())
		start := time.Now()
		b.granted(r)
		if time.Since(start) != 0 {
			t.Fatal("not at once")
		}
	})
}

func TestAChangeToAProbeProbesWhatWasWithdrawn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, defaults(), p, nil)
		b.comesAndGoes()
		p.phase(p.ids()[0], scaler.PhaseStarting)
		b.Apply(with(func(s *Settings) { s.Check = Check{Kind: CheckTCP, Interval: time.Second} }))
		b.mu.Lock()
		i := b.current().instances[p.ids()[0]]
		probing := i.probe != nil
		if probing {
			b.probed(i, time.Now())
		}
		b.mu.Unlock()
		if !probing {
			t.Fatal("it is not probed")
		}
		b.comesAndGoes()
	})
}

func TestAnInstanceIsProbedOnceItsAddressIsKnown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{noAddress: true}
		b := newBench(t, defaults(), p, nil)
		r := b.waits()
		time.Sleep(time.Minute)
		b.is(Waking)
		p.do(func() {
			i := p.instance("r1-1")
			i.Network, i.Address = "unix", "/run/x"
		})
		b.granted(r)
		if r.Instance().Address != "/run/x" {
			t.Fatal(r.Instance().Address)
		}
	})
}

package control

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/test/harness"
)

// A busy instance is a real server, so its tests are in real time: the pauses are
// those of the loop, and what is waited for is seen, not slept for.

// instanceSays serves /busy with the status that it is told, at a socket, and
// counts how often it was asked.
func instanceSays(t *testing.T, status *atomic.Int32) (address string, asked *atomic.Int32) {
	t.Helper()
	address, asked = filepath.Join(t.TempDir(), "s"), new(atomic.Int32)
	ln, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/busy" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		asked.Add(1)
		w.WriteHeader(int(status.Load()))
	})}
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(ln) })
	t.Cleanup(func() { s.Close(); served.Wait() })
	return address, asked
}

// liveBench is a bench in real time.
func liveBench(t *testing.T, s Settings, p *platform) *bench {
	t.Helper()
	b := bareBench(t, s, p, nil)
	if err := b.SetBackend(p); err != nil {
		t.Fatal(err)
	}
	return b
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, is, "%s", what)
}

func TestABusyInstanceIsNotStoppedUntilItIsFree(t *testing.T) {
	var status atomic.Int32
	status.Store(204)
	address, asked := instanceSays(t, &status)
	p := &platform{local: true, address: address}
	b := liveBench(t, with(func(s *Settings) { s.Busy.Path, s.IdleTimeout = "/busy", 10*time.Millisecond }), p)
	r := b.waits()
	b.granted(r)
	r.Release(reserver.Answered)
	until(t, "it was asked twice", func() bool { return asked.Load() >= 2 })
	if len(p.ids()) != 1 {
		t.Fatal("it was stopped although it is busy")
	}
	if all := b.Instances(); len(all) != 1 || all[0].Busy != "GET /busy says that it is busy" {
		t.Errorf("%+v", all)
	}
	status.Store(404)
	until(t, "it is stopped", func() bool { return len(p.ids()) == 0 })
}

func TestAnInstanceThatDoesNotSayIsAskedThreeTimes(t *testing.T) {
	p := &platform{local: true} // nothing listens
	b := liveBench(t, with(func(s *Settings) { s.Busy.Path, s.IdleTimeout = "/busy", 10*time.Millisecond }), p)
	r := b.waits()
	b.granted(r)
	r.Release(reserver.Answered)
	start := time.Now()
	until(t, "it is stopped", func() bool { return len(p.ids()) == 0 })
	if took := time.Since(start); took < busyPauseMin+2*busyPauseMin {
		t.Errorf("it was stopped after %v", took)
	}
}

// metered is a platform that tells how much its instances work.
type metered struct {
	*platform
	mu   sync.Mutex
	used time.Duration
	each time.Duration // more with every look
}

func (m *metered) Open(env scaler.Env) (scaler.Scaler, error) {
	_, err := m.platform.Open(env)
	return m, err
}

func (m *metered) CPUTime(context.Context, string) (time.Duration, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used += m.each
	return m.used, nil
}

func TestAnInstanceThatUsesTheProcessorIsNotStopped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := &metered{platform: &platform{local: true}, each: 300 * time.Millisecond}
		b := bareBench(t, with(func(s *Settings) { s.Busy.CPU, s.IdleTimeout = 25, time.Minute }), m.platform, nil)
		if err := b.SetBackend(m); err != nil {
			t.Fatal(err)
		}
		r := b.waits()
		b.granted(r)
		r.Release(reserver.Answered)
		time.Sleep(10*time.Minute + busySpan/2)
		b.runs(1)
		rests := false
		for range 60 {
			time.Sleep(time.Second)
			rests = rests || !b.active()
		}
		if !rests {
			t.Error("the loop decides all the time, and not when it asks again")
		}
		if all := b.Instances(); all[0].Busy != "it uses 30 % of a processor" {
			t.Errorf("%+v", all)
		}
		m.mu.Lock()
		m.each = 200 * time.Millisecond
		m.mu.Unlock()
		time.Sleep(2 * busyPauseMax)
		b.runs(0)
	})
}

// What was free before a request may be busy after it.
func TestAnInstanceIsAskedAgainAfterARequest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := &metered{platform: &platform{local: true}}
		b := bareBench(t, with(func(s *Settings) { s.Busy.CPU, s.IdleTimeout = 25, 5*time.Second }), m.platform, nil)
		if err := b.SetBackend(m); err != nil {
			t.Fatal(err)
		}
		r := b.waits()
		b.granted(r)
		r.Release(reserver.Answered)
		time.Sleep(5*time.Second + busySpan/2) // it is being asked
		b.inside().Release(reserver.Answered)
		m.mu.Lock()
		m.each = time.Second
		m.mu.Unlock()
		time.Sleep(time.Minute)
		b.runs(1)
	})
}

package control

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// These tests use real sockets and the time of the machine.

func TestProbesBeginEagerlyAndBecomePatient(t *testing.T) {
	ms := time.Millisecond
	var pause time.Duration
	for _, c := range []struct{ elapsed, want time.Duration }{
		{0, ms},
		{16 * ms, ms},
		{32 * ms, 2 * ms},
		{80 * ms, 5 * ms},
		{160 * ms, 5 * ms},
		{10*time.Second - 1, 5 * ms},
	} {
		if pause = (Check{}).pauseAfter(pause, c.elapsed, false); pause != c.want {
			t.Fatalf("%v after %v, want %v", pause, c.elapsed, c.want)
		}
	}
	for _, want := range []time.Duration{10 * ms, 20 * ms, 40 * ms, 50 * ms, 50 * ms} {
		if pause = (Check{}).pauseAfter(pause, 10*time.Second, false); pause != want {
			t.Fatalf("%v after 10 s, want %v", pause, want)
		}
	}
	for _, c := range []struct{ elapsed, want time.Duration }{{32 * ms, 2 * ms}, {1600 * ms, 100 * ms}, {4 * time.Second, 250 * ms}, {time.Minute, 250 * ms}} {
		if pause = (Check{}).pauseAfter(pause, c.elapsed, true); pause != c.want {
			t.Fatalf("%v after answers for %v, want %v", pause, c.elapsed, c.want)
		}
	}
	for _, interval := range []time.Duration{100 * time.Microsecond, 3 * ms, time.Second} {
		pause = 0
		for range 12 {
			pause = Check{Interval: interval}.pauseAfter(pause, time.Minute, true)
		}
		if pause != interval {
			t.Fatalf("%v instead of the interval %v", pause, interval)
		}
	}
}

func probeOnce(t *testing.T, c Check, network, address string) error {
	t.Helper()
	return c.probe(t.Context(), network, address, nil)
}

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func TestATCPProbePassesWhenSomebodyListens(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	if err := probeOnce(t, Check{}, "tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	if err := probeOnce(t, Check{}, "unix", path); err == nil {
		t.Fatal("there is no socket")
	}
	listen(t, "unix", path)
	if err := probeOnce(t, Check{}, "unix", path); err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := probeOnce(t, Check{}, "tcp", ln.Addr().String()); err == nil {
		t.Fatal("a closed listener passes the probe")
	}
}

func TestAnHTTPProbeAsksAsConfigured(t *testing.T) {
	var seen atomic.Pointer[http.Request]
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r)
		if r.URL.Path != "/healthz" || r.URL.RawQuery != "deep=1" || r.Host != "app.example" || r.Header.Get("X-Probe") != "usher" {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	header := http.Header{"x-probe": {"usher"}, "user-agent": {"me"}}
	for _, path := range []string{"/healthz?deep=1", "healthz?deep=1"} {
		c := Check{Kind: CheckHTTP, Path: path, Host: "app.example", Header: header}
		plain := httptest.NewServer(h)
		if err := probeOnce(t, c, "tcp", plain.Listener.Addr().String()); err != nil {
			t.Error(err, seen.Load().URL, seen.Load().Host, seen.Load().Header)
		}
		if ua := seen.Load().Header["User-Agent"]; len(ua) != 1 || ua[0] != "me" {
			t.Error(ua)
		}
		plain.Close()

		secret := httptest.NewTLSServer(h)
		c.Scheme = "https"
		if err := probeOnce(t, c, "tcp", secret.Listener.Addr().String()); err != nil {
			t.Error(err)
		}
		secret.Close()
	}
	sock := &http.Server{Handler: h, ReadHeaderTimeout: time.Second}
	defer sock.Close()
	ln := listen(t, "unix", filepath.Join(t.TempDir(), "s"))
	go func() { _ = sock.Serve(ln) }()
	if err := probeOnce(t, Check{Kind: CheckHTTP}, "unix", ln.Addr().String()); err == nil {
		t.Error("418 counts as ready")
	}
	if r := seen.Load(); r.Host != "localhost" || r.URL.Path != "/" || r.Header.Get("User-Agent") != "Usher-Probe" {
		t.Error(r.Host, r.URL, r.Header)
	}
}

func TestTheStatusDecides(t *testing.T) {
	for _, c := range []struct {
		want, got int
		ready     bool
	}{
		{0, 200, true},
		{0, 204, true},
		{0, 302, true},
		{0, 404, false},
		{0, 503, false},
		{2, 299, true},
		{2, 302, false},
		{4, 404, true},
		{401, 401, true},
		{401, 200, false},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(c.got)
		}))
		err := probeOnce(t, Check{Kind: CheckHTTP, Status: c.want}, "tcp", srv.Listener.Addr().String())
		if (err == nil) != c.ready {
			t.Errorf("status %d, wanted %d: %v", c.got, c.want, err)
		}
		srv.Close()
	}
}

func TestAProbeEndsWithItsTimeout(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0") // accepts by backlog, answers nothing
	start := time.Now()
	err := probeOnce(t, Check{Kind: CheckHTTP, Timeout: 20 * time.Millisecond}, "tcp", ln.Addr().String())
	if err == nil || time.Since(start) > 2*time.Second {
		t.Fatalf("%v after %v", err, time.Since(start))
	}
	if d := (Check{}).timeout(); d != time.Second {
		t.Fatal(d)
	}
	if d := (Check{Kind: CheckHTTP}).timeout(); d != 5*time.Second {
		t.Fatal(d)
	}
}

func TestAConfirmerIsAskedWhileTheConnectionIsOpen(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	accepted := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	asked := 0
	err := Check{}.probe(t.Context(), "tcp", ln.Addr().String(), func(context.Context) error {
		asked++
		if asked == 1 {
			c := <-accepted
			defer c.Close()
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			var ne net.Error
			if _, err := c.Read(make([]byte, 1)); !errors.As(err, &ne) || !ne.Timeout() {
				t.Errorf("the probe's connection is closed: %v", err)
			}
		}
		if asked < 4 {
			return scaler.ErrNotYet
		}
		return nil
	})
	if err != nil || asked != 4 {
		t.Fatalf("%v, asked %d times", err, asked)
	}
	wrong := errors.New("another process")
	if err := (Check{}).probe(t.Context(), "tcp", ln.Addr().String(), func(context.Context) error { return wrong }); err != wrong {
		t.Fatal(err)
	}
	never := func(context.Context) error { return scaler.ErrNotYet }
	err = Check{Timeout: 20 * time.Millisecond}.probe(t.Context(), "tcp", ln.Addr().String(), never)
	if err == nil || !strings.Contains(err.Error(), "not accepted in time") {
		t.Fatal(err)
	}
}

func TestProbingLastsUntilItPassesOrIsNotWantedAnyMore(t *testing.T) {
	var hits atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if hits.Add(1) < 4 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer srv.Close()
	told := 0
	err := Check{Kind: CheckHTTP}.untilReady(t.Context(), "tcp", srv.Listener.Addr().String(), nil, func(err error) {
		if told++; !strings.Contains(err.Error(), "503") {
			t.Error(err)
		}
	})
	if err != nil || told != 3 || hits.Load() != 4 {
		t.Fatalf("%v, told %d, %d probes", err, told, hits.Load())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := (Check{}).untilReady(ctx, "unix", filepath.Join(t.TempDir(), "none"), nil, func(error) {}); err == nil {
		t.Fatal("ready")
	}
}

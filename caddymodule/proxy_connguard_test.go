package caddymodule

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler/control"
	"github.com/caddy-usher/usher/test/addr"
)

// host is a process that listens and answers with its name.
type host struct {
	address string
	seen    atomic.Int64
	server  *httptest.Server
}

// kinds are the ways to talk to a host: what its server does, and the
// transport for it.
var kinds = map[string]struct {
	set       func(*httptest.Server)
	transport string
}{
	"HTTP/1.1":               {(*httptest.Server).Start, ""},
	"HTTP/1.1 with timeouts": {(*httptest.Server).Start, "transport http {\nread_timeout 1m\n}"},
	"TLS":                    {(*httptest.Server).StartTLS, "transport http {\ntls_insecure_skip_verify\nversions 1.1\n}"},
	"HTTP/2": {func(s *httptest.Server) {
		s.EnableHTTP2 = true
		s.StartTLS()
	}, "transport http {\ntls_insecure_skip_verify\n}"},
	"h2c": {func(s *httptest.Server) {
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
	}, "transport http {\nversions h2c 2\n}"},
}

// newHost starts a process that listens at the address, or anywhere.
func newHost(t *testing.T, name, address, kind string) *host {
	t.Helper()
	if address == "" {
		address = addr.Free(t).String()
	}
	var ln net.Listener
	eventually(t, "the address", func() (ok bool) {
		var err error
		ln, err = net.Listen("tcp", address)
		return err == nil
	})
	h := &host{address: ln.Addr().String()}
	h.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.seen.Add(1)
		body, _ := io.ReadAll(r.Body)
		_, _ = io.WriteString(w, name+" got "+string(body))
	}))
	h.server.Listener.Close()
	h.server.Listener = ln
	kinds[kind].set(h.server)
	t.Cleanup(h.end)
	return h
}

// end is the end of the process: of what it listens on, and of all that it
// has accepted.
func (h *host) end() {
	h.server.CloseClientConnections()
	h.server.Close()
}

// guardedInstance returns the guard of the only instance.
func guardedInstance(t *testing.T, f *fleet) *connGuard {
	t.Helper()
	var r reserver.Reservation
	if ok, err := serving(t, f.name).Reserver.Reserve(&r, reserver.Ask{}); !ok {
		t.Fatal(err)
	}
	defer r.Release(reserver.Neutral)
	return guardOf(r.Instance())
}

// disconnected waits until the transport knows that all connections have ended.
func disconnected(t *testing.T, x *connGuard) {
	t.Helper()
	eventually(t, "the end of the connections", func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, l := range x.conns {
			if l.raw.Control(func(uintptr) {}) == nil {
				return false
			}
		}
		return len(x.conns) > 0
	})
}

func TestAnotherProcessAtThePortOfAnInstanceIsSentNothing(t *testing.T) {
	t.Parallel()
	for kind, k := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f, up := byHand(t, "1 1", k.transport)
			gone := make(chan string, 1)
			f.vouch = func(id string) error {
				select {
				case gone <- id:
				default:
				}
				return errors.New("it runs no more")
			}
			c := up()
			f.ordered(1)
			right := newHost(t, "right", "", kind)
			f.at("tcp", right.address, none)
			f.ready(1)
			for range 3 {
				if r := c.do("POST", "/", "a body"); r.status != 200 || r.body != "right got a body" {
					t.Fatalf("%+v", r)
				}
			}
			x := guardedInstance(t, f)
			right.end()
			wrong := newHost(t, "wrong", right.address, kind)
			disconnected(t, x)
			wait := []func() reply{c.begin("POST", "/", "another"), c.begin("GET", "/", ""), c.begin("PUT", "/", strings.Repeat("x", 100_000))}
			id := <-gone
			next := newHost(t, "next", "", kind)
			f.die(id)
			f.at("tcp", next.address, none)
			for k, w := range wait {
				if r := w(); r.status != 200 || !strings.HasPrefix(r.body, "next got") || k == 0 && !strings.HasSuffix(r.body, "another") || k == 2 && len(r.body) < 100_000 {
					t.Errorf("request %d: %d, %.60q, %v", k, r.status, r.body, r.err)
				}
			}
			if n := wrong.seen.Load(); n > 0 {
				t.Errorf("the wrong one has seen %d requests", n)
			}
			if st := serving(t, f.name).Reserver.Stats(); st.InUse != 0 || st.Waiting != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestAnInstanceThatClosesItsConnectionsServesOnWhenVouchedFor(t *testing.T) {
	t.Parallel()
	for kind, k := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f, up := byHand(t, "1 1", "max_waiting 0", k.transport)
			var asked atomic.Int64
			f.vouch = func(string) error { asked.Add(1); return nil }
			c := up()
			c.get("/") // wakes it, and may not wait
			f.ordered(1)
			right := newHost(t, "right", "", kind)
			id := f.at("tcp", right.address, none)
			f.ready(1)
			for range 3 {
				if r := c.do("POST", "/", "one"); r.status != 200 {
					t.Fatalf("%+v", r)
				}
				x := guardedInstance(t, f)
				right.server.CloseClientConnections()
				disconnected(t, x)
				if r := c.do("POST", "/", "another"); r.status != 200 || r.body != "right got another" {
					t.Fatalf("%+v", r)
				}
			}
			if asked.Load() == 0 {
				t.Error("the platform was not asked")
			}
			for _, i := range serving(t, f.name).Loop.Instances() {
				if i.ID != id || i.State != control.InstanceReady {
					t.Errorf("%+v", i)
				}
			}
		})
	}
}

func TestWhoeverGetsThePortOfAFastCGIServerIsSentNothing(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "1 1", "transport fastcgi", "wait_timeout 200ms")
	var gone atomic.Bool
	f.vouch = func(string) error {
		if gone.Load() {
			return errors.New("it runs no more")
		}
		return nil
	}
	c := up()
	f.ordered(1)
	var seen atomic.Int64
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		_ = fcgi.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			seen.Add(1)
			_, _ = io.WriteString(w, "right")
		}))
	}()
	f.at("tcp", ln.Addr().String(), none)
	f.ready(1)
	for range 2 {
		if r := c.get("/"); r.status != 200 || r.body != "right" {
			t.Fatalf("%+v", r)
		}
		time.Sleep(verifyLease + 10*time.Millisecond)
	}
	// From here on another process may answer.
	gone.Store(true)
	if r := c.get("/"); r.status != 503 || seen.Load() != 2 {
		t.Errorf("%+v, seen %d times", r, seen.Load())
	}
}

// pair is a connection and its other end.
func pair(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if ours, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if theirs, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// counter counts how often an instance is questioned.
type counter struct {
	reserver.Hooks
	asked *int
}

func (c counter) Abandoned()                         {}
func (c counter) VerifyRequested(*reserver.Instance) { *c.asked++ }

// stranger returns the guard of an instance that has just been added, and what
// the transport says of a new connection to it.
func stranger(t *testing.T) (x *connGuard, asked *int, connect func() (admitted bool, theirs net.Conn)) {
	t.Helper()
	asked = new(int)
	s := reserver.New(reserver.Options{}, nil, counter{asked: asked})
	x = guardOf(s.AddUnbound("x", "", "tcp", "127.0.0.1:80", 10))
	return x, asked, func() (bool, net.Conn) {
		ours, theirs := pair(t)
		x.dialed()
		return x.admits(httptrace.GotConnInfo{Conn: ours}), theirs
	}
}

func TestANewConnectionIsGoodWhileAnotherOneLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, asked, connect := stranger(t)
		ok, first := connect()
		time.Sleep(time.Hour)
		second, _ := connect()
		if !ok || !second || *asked != 0 {
			t.Fatalf("%v, %v, asked %d times", ok, second, *asked)
		}
		// The first one ends with something unread on it.
		_, _ = io.WriteString(first, "HTTP/1.1 408 ")
		first.Close()
		if ok, _ := connect(); !ok {
			t.Fatal("the second one lives")
		}
		if x.doubted.Load() {
			t.Fatal("doubted")
		}
	})
}

func TestWithoutAnotherConnectionAWordCountsForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, asked, connect := stranger(t)
		closes := func(times int) bool {
			for range times {
				ok, theirs := connect()
				theirs.Close()
				time.Sleep(time.Millisecond)
				if !ok {
					return false
				}
			}
			return true
		}
		if !closes(1) {
			t.Fatal("the instance has no connection yet")
		}
		// It has ended, or closes its connections soon.
		if closes(1) || !x.doubted.Load() {
			t.Fatal("it may have ended")
		}
		if x.instance.Verify(); !closes(2) || *asked != 0 {
			t.Fatalf("it only closes its connections; asked %d times", *asked)
		}
		time.Sleep(verifyLease / 2)
		if !closes(2) || *asked != 1 {
			t.Fatalf("the word is to be renewed; asked %d times", *asked)
		}
		time.Sleep(verifyLease / 2)
		if closes(1) {
			t.Fatal("the word is too old")
		}
	})
}

func TestAConnectionThatNobodyHasUsedIsDoubtedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, _, connect := stranger(t)
		_, theirs := connect()
		theirs.Close()
		time.Sleep(time.Hour)
		// The transport makes one, and keeps it for later.
		spare, _ := pair(t)
		x.dialed()
		if x.admits(httptrace.GotConnInfo{Conn: spare, Reused: true, WasIdle: true}) {
			t.Fatal("it was made when nothing showed where to")
		}
		time.Sleep(time.Millisecond)
		x.instance.Verify()
		if !x.admits(httptrace.GotConnInfo{Conn: spare, Reused: true, WasIdle: true}) || x.doubted.Load() {
			t.Fatal("it was made before the instance was vouched for")
		}
	})
}

func TestAWarmRequestPaysNothingForTies(t *testing.T) {
	x, _, connect := stranger(t)
	connect()
	q := &request{ctx: t.Context(), service: new(hub.Service), guard: x, address: "127.0.0.1:80"}
	q.dials.Store(new(dials))
	q.dials.Load().add(x)
	q.begin(x.instance)
	q.attempt.Load().direct = true
	q.attempt.Load().sending.Store(true)
	info := httptrace.GotConnInfo{Reused: true}
	if n := testing.AllocsPerRun(100, func() { q.gotConn(info) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

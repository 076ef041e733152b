package caddymodule

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler/control"
	"github.com/caddy-usher/usher/test/addr"
)

// deaf returns an address that refuses connections.
func deaf(t *testing.T) string { return addr.Refusing(t).String() }

// byHand is a service whose instances the test adds, ready by their word.
func byHand(t *testing.T, instances string, options ...string) (*fleet, func(before ...string) *config) {
	t.Helper()
	f := newFleet(t)
	f.manual = true
	opts := append([]string{"instances " + instances, "ready platform", "balance oldest"}, options...)
	return f, func(before ...string) *config {
		return start(t, site(strings.Join(append(before, f.usher(opts...)), "\n")))
	}
}

// serveConns answers every connection by f.
func serveConns(t *testing.T, f func(net.Conn)) (address string, count *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	count = new(atomic.Int64)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				count.Add(1)
				f(c)
			}()
		}
	}()
	return l.Addr().String(), count
}

// resets reads a request and answers nothing.
func resets(c net.Conn) {
	if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
		_, _ = io.Copy(io.Discard, r.Body)
	}
}

// answers is an instance that answers everything with a status.
func answers(status string) func(net.Conn) {
	return func(c net.Conn) {
		resets(c)
		_, _ = io.WriteString(c, "HTTP/1.1 "+status+"\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody")
	}
}

func none() {}

func TestG9RefusedConnectionGoesToAnotherInstance(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "2 2")
	c := up()
	f.ordered(2)
	dead := f.at("tcp", deaf(t), none)
	addr, _ := serveConns(t, answers("200 OK"))
	f.at("tcp", addr, none)
	f.ready(2)
	if r := c.do("POST", "/", "body"); r.status != 200 {
		t.Errorf("%+v", r)
	}
	for _, i := range serving(t, f.name).Loop.Instances() {
		if i.ID == dead && i.State == control.InstanceReady {
			t.Errorf("the one that refused still takes requests: %+v", i)
		}
	}
}

func TestConnectionsOfABurstAreKeptAsLongAsTheConfiguration(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "1 1", "concurrency 64")
	c := up()
	f.ordered(1)
	const burst = 64 // more than Caddy keeps of itself
	var inside sync.WaitGroup
	inside.Add(burst)
	var made, open atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		inside.Done()
		inside.Wait()
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			made.Add(1)
			open.Add(1)
		case http.StateClosed:
			open.Add(-1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	f.at("tcp", srv.Listener.Addr().String(), none)
	f.ready(1)
	for range 2 {
		var waits []func() reply
		for range burst {
			waits = append(waits, c.begin("GET", "/", ""))
		}
		for _, wait := range waits {
			if r := wait(); r.status != 200 {
				t.Fatalf("%+v", r)
			}
		}
		inside.Add(burst)
	}
	// One or the other may have come just before a connection was free again.
	if n := made.Load(); n > burst+burst/4 {
		t.Errorf("%d connections for two bursts of %d requests", n, burst)
	}
	c.end()
	eventually(t, "the end of the connections", func() bool { return open.Load() == 0 })
}

// otherTransport is one that is not Caddy's, and does not tell of its dials.
type otherTransport struct{ reverseproxy.HTTPTransport }

func init() { caddy.RegisterModule(new(otherTransport)) }

func (*otherTransport) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.reverse_proxy.transport.other", New: func() caddy.Module { return new(otherTransport) }}
}

func TestWhatThisMachineLacksIsNoFaultOfTheInstance(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{"http", "other"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			// The address is none of this machine: no connection can be made from it.
			f, up := byHand(t, "1 1", "transport "+transport+" {\nlocal_address 203.0.113.1\n}")
			c := up()
			f.ordered(1)
			addr, sent := serveConns(t, answers("200 OK"))
			f.at("tcp", addr, none)
			f.ready(1)
			if r := c.do("POST", "/", "body"); r.status != 502 || sent.Load() != 0 {
				t.Errorf("%+v after %d connections", r, sent.Load())
			}
			for _, i := range serving(t, f.name).Loop.Instances() {
				if i.State != control.InstanceReady {
					t.Errorf("the instance is %s", i.State)
				}
			}
		})
	}
}

func TestG9RequestThatMayHaveBeenSeenIsNotRepeated(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		method, options string
		status          int
		sent            int64
	}{
		"POST":                               {"POST", "", 502, 1},
		"GET without lb_retries":             {"GET", "", 502, 1},
		"GET with lb_retries":                {"GET", "lb_retries 2", 502, 3},
		"POST with lb_retries":               {"POST", "lb_retries 2", 502, 1},
		"POST that lb_retry_match allows":    {"POST", "lb_retries 1\nlb_retry_match {\nmethod POST\n}", 502, 2},
		"GET that lb_retry_match leaves out": {"GET", "lb_retries 1\nlb_retry_match {\nmethod POST\n}", 502, 1},
		"transport error by expression":      {"PUT", "lb_retries 1\nlb_retry_match {\nexpression `{rp.is_transport_error} == true`\n}", 502, 2},
		"lb_retry_match without lb_retries":  {"POST", "lb_retry_match {\nmethod POST\n}", 502, 1},
		"FastCGI, POST":                      {"POST", "transport fastcgi", 502, 1},
		"FastCGI, GET without lb_retries":    {"GET", "transport fastcgi", 502, 1},
		"FastCGI, GET with lb_retries":       {"GET", "lb_retries 1\ntransport fastcgi", 502, 2},
		"FastCGI, POST with lb_retries":      {"POST", "lb_retries 1\ntransport fastcgi", 502, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, up := byHand(t, "1 1", x.options)
			c := up()
			f.ordered(1)
			// Not counted are the probes of an instance that was ejected.
			var sent atomic.Int64
			addr, _ := serveConns(t, func(c net.Conn) {
				if n, _ := c.Read(make([]byte, 4096)); n > 0 {
					sent.Add(1)
				}
			})
			f.at("tcp", addr, none)
			f.ready(1)
			r := c.do(x.method, "/", "")
			if r.status != x.status || sent.Load() != x.sent || r.header.Get("Usher-Error") != "" {
				t.Errorf("%d after it was sent %d times: %+v", r.status, sent.Load(), r)
			}
		})
	}
}

func TestFastCGIThatRefusesIsEjected(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "2 2", "transport fastcgi")
	c := up()
	f.ordered(2)
	f.at("tcp", deaf(t), none)
	addr, sent := serveConns(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 64)) })
	f.at("tcp", addr, none)
	f.ready(2)
	c.do("POST", "/", "")
	if n := sent.Load(); n != 1 {
		t.Errorf("sent %d times", n)
	}
	f.ready(1)
}

func TestResponseThatLbRetryMatchNamesIsTriedAgain(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		options string
		status  int
		sent    int64
	}{
		"the status":            {"lb_retries 2\nlb_retry_match {\nexpression `{rp.status_code} == 503`\n}", 503, 3},
		"another status":        {"lb_retries 2\nlb_retry_match {\nexpression `{rp.status_code} == 500`\n}", 503, 1},
		"the status, no method": {"lb_retries 2\nlb_retry_match {\nmethod GET\nexpression `{rp.status_code} == 503`\n}", 503, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, up := byHand(t, "1 1", x.options)
			c := up()
			f.ordered(1)
			addr, sent := serveConns(t, answers("503 Busy"))
			f.at("tcp", addr, none)
			f.ready(1)
			if r := c.do("POST", "/", ""); r.status != x.status || sent.Load() != x.sent || r.header.Get("Usher-Error") != "" {
				t.Errorf("sent %d times: %+v", sent.Load(), r)
			}
			if n := serving(t, f.name).Reserver.Stats(); n.InUse != 0 || n.Open != 1 {
				t.Errorf("%+v", n)
			}
		})
	}
}

func TestRetryThatFindsNoSlotIs502IfAnInstanceMayHaveSeenTheRequest(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "1 1", "lb_retries 2", "wait_timeout 50ms")
	c := up()
	f.ordered(1)
	var id string
	addr, _ := serveConns(t, func(c net.Conn) {
		resets(c)
		f.die(id)
	})
	id = f.at("tcp", addr, none)
	f.ready(1)
	if r := c.get("/"); r.status != 502 || r.header.Get("Usher-Error") != "" {
		t.Errorf("%+v", r)
	}
}

func TestRetryThatFindsNoSlotIs503IfNoneCanHaveSeenTheRequest(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "1 1", "wait_timeout 50ms")
	c := up()
	f.ordered(1)
	f.at("tcp", deaf(t), none)
	f.ready(1)
	if r := c.do("POST", "/", "x"); r.status != 503 || r.header.Get("Usher-Error") != "wait_timeout" {
		t.Errorf("%+v", r)
	}
}

func TestThreeTimeoutsInARowEject(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "1 1", "transport http {\nresponse_header_timeout 20ms\n}")
	c := up()
	f.ordered(1)
	addr, sent := serveConns(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	f.at("tcp", addr, none)
	f.ready(1)
	for k := range 3 {
		if r := c.do("POST", "/", ""); r.status != 504 {
			t.Errorf("request %d: %+v", k, r)
		}
	}
	f.ready(0)
	if n := sent.Load(); n != 3 {
		t.Errorf("sent %d times", n)
	}
}

func TestRequestInsideAnInstanceThatIsGoneIs502(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "1 1")
	c := up()
	f.ordered(1)
	inside := make(chan bool, 1)
	addr, _ := serveConns(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 64))
		inside <- true
		_, _ = io.Copy(io.Discard, c)
	})
	id := f.at("tcp", addr, none)
	f.ready(1)
	wait := c.begin("GET", "/", "")
	<-inside
	f.die(id)
	if r := wait(); r.status != 502 || r.err != nil {
		t.Errorf("%+v", r)
	}
}

// Whatever moment it is in, a request whose instance is gone and may have seen
// it is told so, and not that its client has left.
func TestInterruptedRequestIs502InEveryMoment(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]func(*testing.T, *request, http.ResponseWriter, *http.Request) error{
		"the proxy takes it for a client that left": func(_ *testing.T, q *request, w http.ResponseWriter, _ *http.Request) error {
			q.Interrupt(q.instance, control.ErrGone)
			w.WriteHeader(statusClientGone)
			return nil
		},
		"before another try": func(t *testing.T, q *request, _ http.ResponseWriter, r *http.Request) error {
			q.attempt.Load().outcome = lost
			q.Interrupt(q.instance, control.ErrGone)
			_ = new(Upstreams).ResetCache(r)
			if ups, err := new(Upstreams).GetUpstreams(r); len(ups) != 0 || err != nil {
				t.Errorf("it is sent once more: %v, %v", ups, err)
			}
			return caddyhttp.Error(statusClientGone, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			start(t, site(f.usher()))
			h := &Handler{Service: f.name, service: serving(t, f.name), shared: &serverShared{generation: new(hub.Generation)}, WaitTimeout: caddy.Duration(patience)}
			rec := httptest.NewRecorder()
			err := h.ServeHTTP(rec, httptest.NewRequest("GET", "/", nil), caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				return next(t, requestOf(r.Context()), w, r)
			}))
			if e, ok := errors.AsType[caddyhttp.HandlerError](err); !ok || e.StatusCode != 502 || rec.Code != 200 {
				t.Errorf("%v, and %d was written", err, rec.Code)
			}
		})
	}
}

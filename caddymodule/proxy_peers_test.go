package caddymodule

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler/control"
)

// strangers are the addresses at which something else listens.
type strangers struct {
	mu   sync.Mutex
	them map[string]bool
}

// lookAt checks a connection for the fleet, by the id of the instance.
func (s *strangers) lookAt(id string, _ net.Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.them[id] {
		return errors.New("another process has it")
	}
	return nil
}

func (s *strangers) add(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.them == nil {
		s.them = make(map[string]bool)
	}
	s.them[id] = true
}

// recordAll keeps what is sent to a listener. It answers and closes the
// connection, so that a request that is sent there fails at once.
func recordAll(t *testing.T, ln net.Listener) (seen func() string) {
	t.Helper()
	t.Cleanup(func() { ln.Close() })
	var mu sync.Mutex
	var all bytes.Buffer
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				buf := make([]byte, 4096)
				n, _ := conn.Read(buf)
				mu.Lock()
				all.Write(buf[:n])
				mu.Unlock()
				if n > 0 {
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nstranger")
				}
			}()
		}
	}()
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return all.String()
	}
}

func TestNothingIsSentOnAConnectionThatLeadsElsewhere(t *testing.T) {
	t.Parallel()
	for network, transport := range map[string]string{
		"tcp": "", "unix": "", "tcp with timeouts": "transport http {\nread_timeout 1m\n}",
		// Caddy sends this within its own dial.
		"tcp with the PROXY protocol": "transport http {\nproxy_protocol v1\n}",
	} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			var s strangers
			f, up := byHand(t, "2 2", "wait_timeout 10s", transport)
			f.peer = s.lookAt
			c := up()
			f.ordered(2)
			listen := func() net.Listener {
				if network != "unix" {
					ln, err := net.Listen("tcp", "127.0.0.1:0")
					if err != nil {
						t.Fatal(err)
					}
					return ln
				}
				dir, err := os.MkdirTemp("", "usher")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { os.RemoveAll(dir) })
				ln, err := net.Listen("unix", filepath.Join(dir, "s"))
				if err != nil {
					t.Fatal(err)
				}
				return ln
			}
			elsewhere := listen()
			seen := recordAll(t, elsewhere)
			id := f.at(elsewhere.Addr().Network(), elsewhere.Addr().String(), none)
			s.add(id)
			f.ready(1)
			right := listen()
			if strings.Contains(transport, "proxy_protocol") {
				right = proxyListener{right}
			}
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				_, _ = io.WriteString(w, "right got "+string(body))
			})}
			go func() { _ = server.Serve(right) }()
			t.Cleanup(func() { server.Close() })
			f.at(right.Addr().Network(), right.Addr().String(), none)
			f.ready(2)
			for range 3 {
				if r := c.do("POST", "/", "a body"); r.status != 200 || r.body != "right got a body" {
					t.Errorf("%+v", r)
				}
			}
			if got := seen(); got != "" {
				t.Errorf("the stranger was sent %q", got)
			}
			for _, i := range serving(t, f.name).Loop.Instances() {
				if i.ID == id && i.State == control.InstanceReady {
					t.Errorf("it counts as ready: %+v", i)
				}
			}
		})
	}
}

// proxyListener drops the line of the PROXY protocol, version 1.
type proxyListener struct{ net.Listener }

func (l proxyListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	for b := make([]byte, 1); b[0] != '\n'; {
		if _, err := conn.Read(b); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	return conn, nil
}

// A placeholder in the name of the server makes Caddy shake hands within its own
// dial.
func TestNoHandshakeIsBegunWithSomebodyElse(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "1 1", "wait_timeout 300ms", "transport http {\ntls\ntls_insecure_skip_verify\ntls_server_name {http.request.host}\n}")
	f.peer = func(string, net.Conn) error { return errors.New("another process has it") }
	c := up()
	f.ordered(1)
	elsewhere, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seen := recordAll(t, elsewhere)
	f.at("tcp", elsewhere.Addr().String(), none)
	f.ready(1)
	if r := c.get("/"); r.status != 503 {
		t.Errorf("%+v", r)
	}
	if got := seen(); got != "" {
		t.Errorf("the stranger was sent %q", got)
	}
}

func TestAFastCGIServerThatIsSomebodyElseIsSentNothing(t *testing.T) {
	t.Parallel()
	var s strangers
	f, up := byHand(t, "2 2", "transport fastcgi", "wait_timeout 10s")
	f.peer = s.lookAt
	c := up()
	f.ordered(2)
	elsewhere, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seen := recordAll(t, elsewhere)
	s.add(f.at("tcp", elsewhere.Addr().String(), none))
	f.ready(1)
	right, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { right.Close() })
	var served atomic.Int64
	go func() {
		_ = fcgi.Serve(right, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			served.Add(1)
			_, _ = io.WriteString(w, "right")
		}))
	}()
	f.at("tcp", right.Addr().String(), none)
	f.ready(2)
	for range 3 {
		if r := c.get("/"); r.status != 200 || r.body != "right" {
			t.Errorf("%+v", r)
		}
	}
	if got := seen(); got != "" {
		t.Errorf("the stranger was sent %q", got)
	}
	eventually(t, "the release of the addresses", func() bool { return f.unpinned.Load() == served.Load() })
}

func TestAProbeSendsNothingToSomebodyElse(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	looked := make(chan struct{}, 1)
	f.peer = func(string, net.Conn) error {
		select {
		case looked <- struct{}{}:
		default:
		}
		return errors.New("another process has it")
	}
	c := start(t, site(f.usher("instances 1", "ready http /secret {\nheader Authorization secret\n}", "wait_timeout 300ms")))
	f.ordered(1)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seen := recordAll(t, ln)
	f.at("tcp", ln.Addr().String(), none)
	if r := c.get("/"); r.status != 503 {
		t.Errorf("%+v", r)
	}
	select {
	case <-looked:
	case <-time.After(patience):
		t.Error("the probe's connection was not looked at")
	}
	if got := seen(); got != "" {
		t.Errorf("the stranger was sent %q", got)
	}
}

// TestNothingIsSentOnAConnectionThatLeadsElsewhere has the same from a real proxy.
func TestTheInstanceIsKnownBehindTheClientOfThePROXYProtocol(t *testing.T) {
	t.Parallel()
	for asked, address := range map[string]string{
		"127.0.0.1:3000":                                         "127.0.0.1:3000",
		"192.0.2.1%3A5-%3E127.0.0.1%3A3000:80":                   "127.0.0.1:3000",
		"192.0.2.1%3A5-%3E127.0.0.1%3A3000:443":                  "127.0.0.1:3000",
		"%5B2001%3Adb8%3A%3A1%5D%3A5-%3E%5B%3A%3A1%5D%3A3000:80": "[::1]:3000",
		"192.0.2.1%3A5-%3Eweb:80":                                "web:80",
		"192.0.2.1%3A5-%3E%3A%3A1:443":                           "[::1]:443",
	} {
		if !asksFor(asked, address) {
			t.Errorf("%s does not ask for %s", asked, address)
		}
		for _, other := range []string{"127.0.0.1:300", "1:3000", "[::2]:3000", "192.0.2.1:5", "web:81"} {
			if asksFor(asked, other) {
				t.Errorf("%s asks for %s", asked, other)
			}
		}
	}
}

package caddymodule

import (
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-usher/usher/scaler/control"
)

// serverFor returns the address of a server that a transport of that name can
// talk to.
func serverFor(t *testing.T, transport string) string {
	t.Helper()
	ok := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "ok")
	})
	switch transport {
	case "fastcgi":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() { _ = fcgi.Serve(l, ok) }()
		return l.Addr().String()
	case "https":
		srv := httptest.NewTLSServer(ok)
		t.Cleanup(srv.Close)
		return srv.Listener.Addr().String()
	}
	srv := httptest.NewServer(ok)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// stillReady says whether no instance has been ejected.
func stillReady(t *testing.T, f *fleet) {
	t.Helper()
	for _, i := range serving(t, f.name).Loop.Instances() {
		if i.State != control.InstanceReady {
			t.Errorf("instance %s is %s", i.ID, i.State)
		}
	}
}

// A mistake in the transport is no refusal of the instance: the request is
// answered at once, with the reason, and the instance keeps its place.
func TestMistakeInTheTransportIsToldAtOnce(t *testing.T) {
	t.Parallel()
	closed := deaf(t)
	for name, x := range map[string]struct {
		server, transport string
		reason            string // in the error
		status            int
	}{
		"a certificate that is not trusted": {"https", "transport http {\ntls\n}", "x509", 502},
		"TLS towards a plain port":          {"http", "transport http {\ntls\n}", "does not look like a TLS handshake.*remove tls", 502},
		"TLS towards a server that closes":  {"closes", "transport http {\ntls\n}", "EOF|reset", 502},
		"a certificate, with PROXY":         {"https", "transport http {\ntls\nproxy_protocol v1\n}", "TLS|tls|EOF|reset", 502},
		"another server name":               {"https", "transport http {\ntls\ntls_server_name {http.request.host}\n}", "x509", 502},
		"a handshake without an end":        {"hangs", "transport http {\ntls\ntls_timeout 50ms\n}", "timeout", 504},
		"a dead forward proxy":              {"http", "transport http {\nforward_proxy_url http://" + closed + "\n}", "proxyconnect.*refused.*network_proxy", 502},
		"a dead forward proxy, TLS":         {"https", "transport http {\ntls\nforward_proxy_url http://" + closed + "\n}", "proxyconnect.*refused.*network_proxy", 502},
		"a forward proxy that refuses":      {"https", "transport http {\ntls\nforward_proxy_url http://PLAIN\n}", "Method Not Allowed|Bad Request|malformed", 502},
		"a dead SOCKS proxy":                {"http", "transport http {\nforward_proxy_url socks5://" + closed + "\n}", "proxyconnect.*refused", 502},
		"an own address of another family":  {"http", "transport http {\nlocal_address [::1]:0\n}", "local_address", 502},
		"an own address of another machine": {"http", "transport http {\nlocal_address 203.0.113.1\n}", "cannot assign.*local_address", 502},
		"the same, another transport":       {"http", "transport other {\nlocal_address 203.0.113.1\n}", "cannot assign.*local_address", 502},
		"an untrusted one, another":         {"https", "transport other {\ntls\n}", "x509", 502},
		"a header that cannot be":           {"http", "header_up X-Bad `a\x01b`", "invalid header field", 502},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if strings.Contains(x.transport, "header_up") {
				x.transport = "header_up X-Bad \"a\x01b\""
			}
			var plain atomic.Int64
			proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				plain.Add(1)
				w.WriteHeader(http.StatusMethodNotAllowed)
			}))
			t.Cleanup(proxy.Close)
			f, up := byHand(t, "1 1", strings.ReplaceAll(x.transport, "PLAIN", proxy.Listener.Addr().String()))
			c := up()
			f.ordered(1)
			var addr string
			switch x.server {
			case "closes":
				addr, _ = serveConns(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) })
			case "hangs":
				addr, _ = serveConns(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
			default:
				addr = serverFor(t, x.server)
			}
			f.at("tcp", addr, none)
			f.ready(1)
			for k := range 5 {
				began := time.Now()
				r := c.do("POST", "/", "a body")
				if r.status != x.status || r.header.Get("Usher-Error") != "" {
					t.Fatalf("request %d: %+v", k, r)
				}
				if d := time.Since(began); d > 5*time.Second {
					t.Errorf("request %d took %v", k, d)
				}
			}
			stillReady(t, f)
			last := serving(t, f.name).Summary().LastError
			if last == nil || !regexp.MustCompile(x.reason).MatchString(*last) {
				t.Fatalf("last_error does not say %q: %v", x.reason, deref(last))
			}
			logs := loggedOf(f.name, "cannot send requests to an instance", addr)
			if len(logs) != 1 || logs[0]["level"] != "warn" {
				t.Errorf("logged: %v", logs)
			}
		})
	}
}

// loggedOf returns what was logged about an instance with this message. The log
// of a service is that of the newest configuration, which can be another test's.
func loggedOf(service, msg, address string) (all []map[string]any) {
	logBuffers.Range(func(_, b any) bool {
		for _, e := range b.(*logBuffer).entries(msg) {
			if e["service"] == service && e["address"] == address {
				all = append(all, e)
			}
		}
		return true
	})
	return all
}

func deref(s *string) string {
	if s == nil {
		return "nothing"
	}
	return *s
}

// An error route learns the reason, and the log has it with each request, as
// it has with a plain reverse_proxy.
func TestMistakeInTheTransportReachesTheErrorRoutes(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site("handle_errors {\nrespond `{err.status_code} {err.message}`\n}\n"+f.usher("instances 1 1", "ready platform", "transport http {\ntls\n}")))
	f.ordered(1)
	f.at("tcp", serverFor(t, "https"), none)
	f.ready(1)
	if r := c.get("/"); r.status != 502 || !strings.Contains(r.body, "service "+f.name) || !strings.Contains(r.body, "x509") {
		t.Errorf("%+v", r)
	}
}

// As soon as a request gets through, the trouble is over.
func TestTroubleWithTheTransportEndsWithTheFirstAnswer(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "1 1", "transport http {\ntls\ntls_insecure_skip_verify\n}")
	c := up()
	f.ordered(1)
	var plain atomic.Bool
	plain.Store(true)
	tls := serverFor(t, "https")
	addr, _ := serveConns(t, func(c net.Conn) {
		if plain.Load() {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			return
		}
		to, err := net.Dial("tcp", tls)
		if err != nil {
			return
		}
		defer func() { _ = to.Close() }()
		go func() { _, _ = io.Copy(to, c) }()
		_, _ = io.Copy(c, to)
	})
	f.at("tcp", addr, none)
	f.ready(1)
	if r := c.get("/"); r.status != 502 || serving(t, f.name).Summary().LastError == nil {
		t.Fatalf("%+v", r)
	}
	plain.Store(false)
	if r := c.get("/"); r.status != 200 {
		t.Fatalf("%+v", r)
	}
	if last := serving(t, f.name).Summary().LastError; last != nil {
		t.Errorf("last_error is still %q", *last)
	}
}

// A handshake that one instance breaks off says nothing about another one.
func TestHandshakeThatBreaksOffIsTriedOnAnotherInstance(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "2 2", "transport http {\ntls\ntls_insecure_skip_verify\n}")
	c := up()
	f.ordered(2)
	addr, sent := serveConns(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) })
	f.at("tcp", addr, none)
	f.ready(1)
	f.at("tcp", serverFor(t, "https"), none)
	f.ready(2)
	for range 4 {
		if r := c.do("POST", "/", "a body"); r.status != 200 {
			t.Errorf("%+v", r)
		}
	}
	if sent.Load() == 0 {
		t.Error("the broken instance was never tried")
	}
	stillReady(t, f)
}

// An instance that refuses connections is not taken for a mistake.
func TestRefusedConnectionStillWaitsForAnInstance(t *testing.T) {
	t.Parallel()
	for name, transport := range map[string]string{
		"http": "", "fastcgi": "transport fastcgi", "other": "transport other", "tls": "transport http {\ntls\n}",
		"proxy_protocol": "transport http {\nproxy_protocol v2\n}",
		"tls and proxy":  "transport http {\ntls\nproxy_protocol v2\n}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, up := byHand(t, "1 1", transport, "wait_timeout 50ms")
			c := up()
			f.ordered(1)
			f.at("tcp", deaf(t), none)
			f.ready(1)
			if r := c.do("POST", "/", "x"); r.status != 503 || r.header.Get("Usher-Error") != "wait_timeout" {
				t.Errorf("%+v", r)
			}
			f.ready(0)
		})
	}
}

// What Caddy asks of a transport beside sending, Usher's has to answer for it:
// a new question of Caddy's has to be looked at.
func TestTransportOfUsherAnswersWhatCaddyAsks(t *testing.T) {
	t.Parallel()
	known := map[string]bool{
		"BufferedTransport": true, "RequestHeaderOpsTransport": true, "ProxyProtocolTransport": true, "ContentLengthRequiredTransport": true,
		// Active health checks ask this, which a service has none of.
		"HealthCheckSchemeOverriderTransport": true,
	}
	source, _ := runtime.FuncForPC(reflect.ValueOf(reverseproxy.NewDialError).Pointer()).FileLine(0)
	files, err := filepath.Glob(filepath.Join(filepath.Dir(source), "*.go"))
	if err != nil || len(files) < 5 {
		t.Fatalf("no source of reverse_proxy: %v, %v", files, err)
	}
	questions := regexp.MustCompile(`h\.Transport\.\((\w+)\)`)
	found := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range questions.FindAllStringSubmatch(string(text), -1) {
			found++
			if !known[q[1]] {
				t.Errorf("%s: reverse_proxy asks for a %s", filepath.Base(file), q[1])
			}
		}
	}
	if found < len(known) {
		t.Errorf("only %d questions found", found)
	}
}

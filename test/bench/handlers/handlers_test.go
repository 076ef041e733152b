// Package handlers measures the work that Usher does for a request against
// that of Caddy's own load balancing, without a network around it.
//
// Both sides run through the same server of Caddy and the same
// `reverse_proxy` with the usual transport, which gets its answers without a
// connection: what differs is how an upstream is found and, with Usher, the
// reservation. The sockets, which cost several times as much and would hide
// the difference, are left out.
//
//	go test -bench . -cpuprofile cpu.out ./test/bench/handlers
package handlers

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"golang.org/x/sys/unix"

	_ "github.com/caddy-usher/usher"
	"github.com/caddy-usher/usher/caddymodule"
	"github.com/caddy-usher/usher/test/addr"
	_ "github.com/caddy-usher/usher/test/bench/standin"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "usher-handlers-")
	if err != nil {
		panic(err)
	}
	_ = os.Setenv("XDG_DATA_HOME", dir)
	_ = os.Setenv("XDG_CONFIG_HOME", dir)
	code := m.Run()
	_ = caddy.Stop()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

const firstPort = 11000

// usher is the site with Usher and n instances. Its transport is configured, as
// disconnect needs it to be: the default one does not exist before a request.
func usher(n int) string {
	return fmt.Sprintf("usher web {\n"+
		"backend existing 127.0.0.1 %d\n"+
		"instances %d %d\n"+
		"ready platform\n"+
		"transport http {\nkeepalive_idle_conns_per_host 256\n}\n"+
		"}", firstPort, n, n)
}

// stock is the site with n upstreams and a policy of Caddy's own.
func stock(n int, policy string) string {
	var upstreams strings.Builder
	for i := range n {
		fmt.Fprintf(&upstreams, " 127.0.0.1:%d", firstPort+i)
	}
	return fmt.Sprintf("reverse_proxy%s {\n"+
		"lb_policy %s\n"+
		"}", upstreams.String(), policy)
}

// serve puts a site in force and returns its server.
func serve(b *testing.B, site string) *caddyhttp.Server {
	b.Helper()
	admin, front := addr.Free(b).String(), addr.Free(b).String()
	text := fmt.Sprintf("{\nadmin %s\nauto_https off\nlog default {\noutput discard\n}\n}\nhttp://%s {\n%s\n}\n", admin, front, site)
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		b.Fatal(err)
	}
	if err := caddy.Load(adapted, true); err != nil {
		b.Fatal(err)
	}
	app, err := caddy.ActiveContext().AppIfConfigured("http")
	if err != nil {
		b.Fatal(err)
	}
	if strings.HasPrefix(site, "usher") {
		awaitReady(b, admin)
	}
	server := app.(*caddyhttp.App).Servers["srv0"]
	if n := disconnect(server.Routes); n != 1 {
		b.Fatalf("%d proxies", n)
	}
	return server
}

// disconnect lets the transports of all proxies answer by themselves, and
// returns how many there are.
func disconnect(routes caddyhttp.RouteList) (n int) {
	for _, route := range routes {
		for _, h := range route.Handlers {
			if own, ok := h.(*caddymodule.Handler); ok && own.Proxy != nil {
				h = own.Proxy
			}
			switch h := h.(type) {
			case *caddyhttp.Subroute:
				n += disconnect(h.Routes)
			case *reverseproxy.Handler:
				transport := h.Transport
				if w, ok := transport.(interface{ Unwrap() http.RoundTripper }); ok {
					transport = w.Unwrap()
				}
				transport.(*reverseproxy.HTTPTransport).Transport.RegisterProtocol("http", echo{})
				n++
			}
		}
	}
	return n
}

// echo answers every request itself.
type echo struct{}

// RoundTrip implements http.RoundTripper.
func (echo) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        http.Header{"Content-Type": {"text/plain"}},
		Body:          io.NopCloser(strings.NewReader("hello\n")),
		ContentLength: int64(len("hello\n")), Request: r,
	}, nil
}

// awaitReady waits until all instances have slots.
func awaitReady(b *testing.B, admin string) {
	b.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		resp, err := http.Get("http://" + admin + "/usher/services/web")
		if err != nil {
			continue
		}
		var service struct {
			Min       int
			Instances struct{ Ready int }
		}
		err = json.NewDecoder(resp.Body).Decode(&service)
		resp.Body.Close()
		if err == nil && service.Min > 0 && service.Instances.Ready == service.Min {
			return
		}
	}
	b.Fatal("the instances do not become ready")
}

// client takes an answer as a connection would, and forgets it.
type client struct {
	header http.Header
	status int
}

func (c *client) Header() http.Header              { return c.header }
func (c *client) Write(p []byte) (int, error)      { return len(p), nil }
func (c *client) WriteHeader(status int)           { c.status = status }
func (c *client) Flush()                           {}
func (c *client) SetReadDeadline(time.Time) error  { return nil }
func (c *client) SetWriteDeadline(time.Time) error { return nil }

func BenchmarkHandlers(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		for _, side := range []struct{ name, site string }{
			{"usher", usher(n)},
			{"least_conn", stock(n, "least_conn")},
			{"random", stock(n, "random")},
		} {
			b.Run(fmt.Sprintf("%s/%d", side.name, n), func(b *testing.B) {
				run(b, serve(b, side.site))
			})
		}
	}
}

func run(b *testing.B, server *caddyhttp.Server) {
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime(b)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r, err := http.NewRequest(http.MethodGet, "http://127.0.0.1/", nil)
			if err != nil {
				b.Error(err)
				return
			}
			r.RemoteAddr, r.RequestURI = "127.0.0.1:40000", "/"
			r.Header.Set("User-Agent", "bench")
			c := &client{header: make(http.Header)}
			server.ServeHTTP(c, r)
			if c.status != http.StatusOK {
				b.Errorf("status %d", c.status)
				return
			}
		}
	})
	// On a machine that others use too, CPU tells more than time.
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
}

// cpuTime is the CPU that this process has used, collecting included.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

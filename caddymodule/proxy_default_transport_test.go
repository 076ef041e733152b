package caddymodule

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

func TestADefaultTransportIsMadeOnceForTheFirstRequest(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	defer s.Close()
	transport := new(defaultTransport)
	transport.CloseIdleConnections() // as a service does that was never woken
	if transport.made.Load() != nil {
		t.Fatal("it was made before the first request")
	}
	seen := make([]*reverseproxy.HTTPTransport, 16)
	var requests sync.WaitGroup
	for k := range seen {
		requests.Go(func() {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := transport.RoundTrip(r)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "hello" {
				t.Errorf("%q, %v", body, err)
			}
			seen[k] = transport.made.Load()
		})
	}
	requests.Wait()
	for _, h := range seen {
		if h == nil || h != transport.made.Load() {
			t.Fatal("two transports were made")
		}
	}
	if n := seen[0].Transport.MaxIdleConnsPerHost; n != idleConnections {
		t.Errorf("it keeps %d connections", n)
	}
	transport.CloseIdleConnections()
}

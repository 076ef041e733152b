package caddymodule

import (
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// defaultTransport is the transport of a proxy that has none in the
// configuration. It is the one that the proxy would make itself, but for the
// number of idle connections. It is made for the first request: most of what a
// route costs is its transport, and a service that sleeps needs none.
type defaultTransport struct {
	made atomic.Pointer[reverseproxy.HTTPTransport]
}

// RoundTrip implements http.RoundTripper.
func (t *defaultTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	h := t.made.Load()
	if h == nil {
		var err error
		if h, err = t.make(); err != nil {
			return nil, err
		}
	}
	return h.RoundTrip(r)
}

// make makes the transport, unless another request has made it meanwhile.
func (t *defaultTransport) make() (*reverseproxy.HTTPTransport, error) {
	h := &reverseproxy.HTTPTransport{KeepAlive: &reverseproxy.KeepAlive{MaxIdleConnsPerHost: idleConnections}}
	// Without options it asks nothing of the context, which has ended perhaps:
	// a request that was held over a reload is the first one.
	if err := h.Provision(caddy.Context{}); err != nil {
		return nil, fmt.Errorf("provisioning the default transport: %w", err)
	}
	tellOfDials(h)
	if !t.made.CompareAndSwap(nil, h) {
		return t.made.Load(), nil
	}
	return h, nil
}

// CloseIdleConnections closes the connections that no request uses.
func (t *defaultTransport) CloseIdleConnections() {
	if h := t.made.Load(); h != nil {
		h.Transport.CloseIdleConnections()
	}
}

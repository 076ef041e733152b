package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	proxyheaders "github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi"
)

// sender is the transport of a proxy behind Usher: it makes the attempts and
// takes note of how each one ended. It stands around the configured transport,
// whatever that is, because reverse_proxy tells its source of upstreams too
// little, and some of it too late.
type sender struct {
	http.RoundTripper

	// silent is true if the transport does not tell requests of its dials.
	// They are then traced, which costs more.
	silent bool

	// told is true if no byte is sent before the trace or a dial says so. It
	// is false for transports that Usher does not know.
	told bool

	http3 bool
}

func newSender(transport http.RoundTripper) *sender {
	if _, ok := transport.(*defaultTransport); ok {
		return &sender{RoundTripper: transport, told: true}
	}
	s := &sender{RoundTripper: transport, silent: !tellOfDials(transport)}
	switch t := transport.(type) {
	case *reverseproxy.HTTPTransport:
		s.told = true
		s.http3 = len(t.Versions) == 1 && t.Versions[0] == "3"
	case *fastcgi.Transport:
		s.told = true
	}
	return s
}

// RoundTrip implements http.RoundTripper.
func (s *sender) RoundTrip(r *http.Request) (*http.Response, error) {
	q := requestOf(r.Context())
	if q == nil {
		return s.RoundTripper.RoundTrip(r)
	}
	a := q.attempt.Load()
	if !q.service.MayWrite() {
		a.outcome = unleased
		return nil, reverseproxy.NewDialError(errNoLease)
	}
	a.outcome = underWay
	a.sending.Store(true)
	if s.silent {
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{ConnectDone: q.connectDone(a)}))
	}
	resp, err := s.RoundTripper.RoundTrip(r)
	a.sending.Store(false)
	if err == nil {
		a.outcome = answered
		q.answered(s)
		return resp, nil
	}
	return nil, q.failed(s, a, err)
}

// errNoLease is why nothing is sent for now.
var errNoLease = errors.New("this Caddy has lost its cluster, and sends no requests")

// answered takes note of a final response of the instance.
func (q *request) answered(s *sender) {
	if q.cold {
		q.service.Loop.Answered()
	}
	if t := q.service.Trouble.Load(); t != nil && t.Source == s {
		q.sendable(t)
	}
}

// failed takes note of an attempt that ended without a response. It returns
// the error that the proxy is to see.
func (q *request) failed(s *sender, a *attempt, err error) error {
	a.outcome, a.broke = s.classify(q, a, err), brokeOff(err)
	switch cause := q.interrupted(); {
	case q.ctx.Err() != nil:
	case cause != nil:
		// The proxy takes a cancellation for one of the client's.
		return fmt.Errorf("service %s: instance %s: %w", q.service.Name, a.instance.ID, cause)
	case a.outcome == unsendable, a.outcome == brokenOff:
		a.err = q.cannotSend(s, a, err)
		return a.err
	}
	return err
}

// classify says how an attempt ended that failed with err.
func (s *sender) classify(q *request, a *attempt, err error) outcome {
	ended := context.Cause(a.ctx) != nil
	dial := a.dial.Load()
	switch {
	case a.unleased.Load():
		return unleased
	case a.withheld.Load():
		return withheld
	case a.wrote.Load():
		return lost
	case a.tried.Load():
		switch {
		case !ended:
			return s.classifyConnection(a, dial, err)
		case a.connected.Load():
			// A writer that is interrupted does not say how far it came.
			return lost
		}
		return unwritten
	case isDialError(err), dial != nil && dial.err != nil:
		if ended {
			return unwritten
		}
		return s.classifyConnection(a, dial, err)
	case dial != nil:
		return lost
	}
	if e, ok := errors.AsType[caddyhttp.HandlerError](err); ok && e.StatusCode < http.StatusInternalServerError {
		return rejected
	}
	if !s.told {
		return lost
	}
	if ended {
		return unwritten
	}
	return unsendable
}

// connectDone takes note of how dialling ended, for an attempt.
func (q *request) connectDone(a *attempt) func(network, addr string, err error) {
	return func(_, addr string, err error) {
		if errors.Is(err, context.Canceled) {
			// Of several addresses another one was faster.
			return
		}
		a.dial.Store(&dialResult{err})
		if d := q.dials.Load(); d != nil && err == nil {
			d.done(addr)
		}
	}
}

// attemptOf returns the attempt for which a transport dials. It may go on to
// dial when the request has moved on: then there is none.
func (q *request) attemptOf(ctx context.Context) *attempt {
	a := q.attempt.Load()
	if di, ok := reverseproxy.GetDialInfo(ctx); ok && di.Upstream == a.upstream {
		return a
	}
	return new(attempt)
}

// Unwrap returns the configured transport.
func (s *sender) Unwrap() http.RoundTripper { return s.RoundTripper }

// What follows is what reverse_proxy asks of a transport beside RoundTrip.

// DefaultBufferSizes implements reverseproxy.BufferedTransport.
func (s *sender) DefaultBufferSizes() (request, response int64) {
	if t, ok := s.RoundTripper.(reverseproxy.BufferedTransport); ok {
		return t.DefaultBufferSizes()
	}
	return 0, 0
}

// RequestHeaderOps implements reverseproxy.RequestHeaderOpsTransport.
func (s *sender) RequestHeaderOps() *proxyheaders.HeaderOps {
	if t, ok := s.RoundTripper.(reverseproxy.RequestHeaderOpsTransport); ok {
		return t.RequestHeaderOps()
	}
	return nil
}

// ProxyProtocolEnabled implements reverseproxy.ProxyProtocolTransport.
func (s *sender) ProxyProtocolEnabled() bool {
	t, ok := s.RoundTripper.(reverseproxy.ProxyProtocolTransport)
	return ok && t.ProxyProtocolEnabled()
}

// RequiresContentLength implements reverseproxy.ContentLengthRequiredTransport.
func (s *sender) RequiresContentLength() bool {
	t, ok := s.RoundTripper.(reverseproxy.ContentLengthRequiredTransport)
	return ok && t.RequiresContentLength()
}

var (
	_ reverseproxy.BufferedTransport              = (*sender)(nil)
	_ reverseproxy.RequestHeaderOpsTransport      = (*sender)(nil)
	_ reverseproxy.ProxyProtocolTransport         = (*sender)(nil)
	_ reverseproxy.ContentLengthRequiredTransport = (*sender)(nil)
)

package caddymodule

import (
	"errors"
	"net/http"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-usher/usher/reserver"
)

func init() {
	caddy.RegisterModule(Upstreams{})
	caddy.RegisterModule(MatchRetry{})
}

// Upstreams is the source of dynamic upstreams that gives `reverse_proxy` the
// one instance on which the handler `usher`, earlier in the same route, has
// reserved a slot for the request. A further attempt of the proxy gets a new
// reservation.
//
// A request that no instance can have seen is tried on others, up to 32 times.
// The proxy's own `retries` and `retry_match` are for requests that an
// instance may have seen; unless `retry_match` names the matcher
// `usher_retry`, which leaves all of it to those rules.
type Upstreams struct {
	transport *http.Transport // of the proxy, if it is not configured
}

// CaddyModule returns the Caddy module information.
func (Upstreams) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.upstreams.usher",
		New: func() caddy.Module { return new(Upstreams) },
	}
}

// UnmarshalCaddyfile sets up the source from Caddyfile tokens. Syntax:
//
//	dynamic usher
func (*Upstreams) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(d.Nesting()) {
		return d.Errf("dynamic usher takes no options")
	}
	return nil
}

var errNoReservation = errors.New("dynamic upstreams 'usher': the request has no reservation; put the handler 'usher' before reverse_proxy in the same route")

// GetUpstreams returns the instance of the request's reservation. Without a
// slot the list is empty: the reason is kept with the request, because
// reverse_proxy logs an error and loses it.
func (Upstreams) GetUpstreams(r *http.Request) ([]*reverseproxy.Upstream, error) {
	q := requestOf(r.Context())
	if q == nil {
		return nil, errNoReservation
	}
	for q.blind() && q.reservation.Instance() != nil && !q.ties.dialled() {
		q.attempt.withheld.Store(true)
		q.again()
	}
	if q.refusal != nil || q.reservation.Instance() == nil {
		return nil, nil
	}
	// What else was sent on the way here, to authorize the request, say, is
	// no attempt.
	q.reset()
	q.attempt.handed = true
	// A fresh one each time: reverse_proxy writes to it.
	one := &struct {
		list     [1]*reverseproxy.Upstream
		upstream reverseproxy.Upstream
	}{upstream: reverseproxy.Upstream{Dial: q.address}}
	one.list[0] = &one.upstream
	return one.list[:], nil
}

// blind says whether it has to be known before the request is handed on that
// connections lead to the instance, because the transport does not tell of them.
func (q *request) blind() bool {
	return q.refusal == nil && q.ties != nil && atomic.LoadUint32(&q.handler.untraced) == 1
}

// ResetCache is called before a further attempt: it ends the reservation of
// the last one and gets another.
func (Upstreams) ResetCache(r *http.Request) error {
	if q := requestOf(r.Context()); q != nil {
		q.again()
	}
	return nil
}

// MatchRetry says, in the `retry_match` of a `reverse_proxy` behind the
// handler `usher`, whether a request may be sent again after an attempt that
// failed. Alone it matches if no instance can have seen the request. With
// `attempts`, beside other matchers, it also matches a request that was seen,
// as long as it was seen in fewer attempts.
type MatchRetry struct {
	// In how many attempts instances may have seen the request before it
	// is not sent again. Default: 0.
	Attempts int `json:"attempts,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (MatchRetry) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.matchers.usher_retry",
		New: func() caddy.Module { return new(MatchRetry) },
	}
}

// MatchWithError implements caddyhttp.RequestMatcherWithError.
func (m MatchRetry) MatchWithError(r *http.Request) (bool, error) {
	q := requestOf(r.Context())
	if q == nil {
		return false, nil
	}
	q.attempt.asked = true
	q.attempt.untraced = reserver.Answered
	if q.replacer != nil {
		if _, broken := q.replacer.Get("http.reverse_proxy.is_transport_error"); broken {
			q.attempt.untraced = reserver.Failed
		}
	}
	match := !q.maybeSeen() || int(q.seen) < m.Attempts
	if match {
		q.attempt.approved = true
	}
	return match, nil
}

// Match implements caddyhttp.RequestMatcher.
func (m MatchRetry) Match(r *http.Request) bool {
	match, _ := m.MatchWithError(r)
	return match
}

// UnmarshalCaddyfile sets up the matcher from Caddyfile tokens. Syntax:
//
//	usher_retry [<attempts>]
func (m *MatchRetry) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	for d.Next() {
		if !d.NextArg() {
			continue
		}
		n, err := count(d, "usher_retry", 0)
		if err != nil {
			return err
		}
		m.Attempts = n
		if d.NextArg() {
			return d.ArgErr()
		}
	}
	return nil
}

var (
	_ reverseproxy.CachingUpstreamSource = (*Upstreams)(nil)
	_ caddy.CleanerUpper                 = (*Upstreams)(nil)
	_ caddyfile.Unmarshaler              = (*Upstreams)(nil)
	_ caddyhttp.RequestMatcherWithError  = (*MatchRetry)(nil)
	_ caddyfile.Unmarshaler              = (*MatchRetry)(nil)
)

package caddymodule

import (
	"errors"
	"net/http"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
)

func init() {
	caddy.RegisterModule(new(Upstreams))
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
	// True for `dynamic usher` in a Caddyfile. There the handler is never
	// written without its reverse_proxy, so such a source gets requests only
	// within the `handle_response` of another one. It is refused elsewhere.
	// Default: false.
	Nested bool `json:"nested,omitempty"`

	transport *defaultTransport // of the proxy, if it is not configured
	unseen    http.RoundTripper // that of the proxy, if it shows no connections
	logger    *zap.Logger
	alone     atomic.Bool // a request came that the handler has not seen
}

// CaddyModule returns the Caddy module information.
func (*Upstreams) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.upstreams.usher",
		New: func() caddy.Module { return new(Upstreams) },
	}
}

// UnmarshalCaddyfile sets up the source from Caddyfile tokens. Syntax:
//
//	dynamic usher
func (u *Upstreams) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(d.Nesting()) {
		return d.Errf("dynamic usher takes no options")
	}
	u.Nested = true
	return nil
}

var errAlone = errors.New("'dynamic usher' has no service: write 'usher <service> { ... }' in place of reverse_proxy, which takes its options, and 'usher <service> { php }' in place of php_fastcgi")

// nested returns an error if the source is not within the handle_response of
// another proxy with such a source.
func nested(lineage []caddy.Module) error {
	for _, m := range lineage {
		if rp, ok := m.(*reverseproxy.Handler); ok {
			if _, ok := rp.DynamicUpstreams.(*Upstreams); ok {
				return nil
			}
		}
	}
	return errAlone
}

// GetUpstreams returns the instance of the request's reservation. Without a
// slot the list is empty: the reason is kept with the request, because
// reverse_proxy logs an error and loses it.
func (u *Upstreams) GetUpstreams(r *http.Request) ([]*reverseproxy.Upstream, error) {
	q := requestOf(r.Context())
	if q == nil {
		// An error would be logged for each of the proxy's many tries.
		if u.logger != nil && !u.alone.Swap(true) {
			u.logger.Error("requests come to the dynamic upstreams 'usher' without a reservation and are answered 503: put the handler 'usher' before this reverse_proxy in the same route")
		}
		return nil, nil
	}
	for q.mustVerifyFirst() && q.reservation.Instance() != nil && !q.guard.dialed() {
		q.attempt.Load().outcome = withheld
		q.again()
	}
	if q.refusal != nil || q.reservation.Instance() == nil {
		return nil, nil
	}
	if a := q.attempt.Load(); a.outcome != unsent {
		// Another proxy of the same route had it before.
		if a.outcome.seen() {
			q.seen++
		}
		q.begin(a.instance)
	}
	dial := q.address
	if u.unseen != nil {
		if dial = q.pinInstance(u.unseen); dial == "" {
			return nil, nil
		}
	}
	// A fresh one each time: reverse_proxy writes to it.
	one := &struct {
		list     [1]*reverseproxy.Upstream
		upstream reverseproxy.Upstream
	}{upstream: reverseproxy.Upstream{Dial: dial}}
	one.list[0] = &one.upstream
	q.attempt.Load().upstream = &one.upstream
	return one.list[:], nil
}

// mustVerifyFirst tells whether Usher has to check before it hands the request
// on that connections lead to the instance, because the transport does not
// report its connections.
func (q *request) mustVerifyFirst() bool {
	return q.refusal == nil && q.guard != nil && atomic.LoadUint32(&q.handler.noted)&notedUntraced != 0
}

// ResetCache is called before a further attempt: it ends the reservation of
// the last one and gets another.
func (*Upstreams) ResetCache(r *http.Request) error {
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
	a := q.attempt.Load()
	switch {
	case q.refusal != nil:
		return false, nil
	case a.outcome == unsendable, a.outcome == rejected, a.outcome == brokenOff && q.moves >= movesMax:
		// It would go no better anywhere else.
		return false, nil
	}
	match := !a.outcome.seen() || int(q.seen) < m.Attempts
	if match {
		a.approved = true
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
		n, err := option.Count(d, "usher_retry", 0, hub.MaxRetryAttempts)
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

package caddymodule

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// refusedTries is how many instances a request that none can have seen is
// tried on, after the first.
const refusedTries = 32

// idleConnections is how many connections to an instance are kept for further
// requests, where no transport is configured. Caddy's own default of 32 is meant
// for any server; here there are never more than the requests that an instance
// had at a time, which its slots bound, and to close those above 32 after each
// request, only to make new ones, costs a tenth of all CPU.
const idleConnections = 256

const retryMatcher = "usher_retry"

// unseen is the retry rule that every service has: it lets a request go to
// another instance that none can have seen.
var unseen = caddyhttp.MatcherSets{{MatchRetry{}}}

// Provision completes the `reverse_proxy` that has this source: a request that
// no instance can have seen may go to another one, and one that was seen as
// often as its `retries`, by its `retry_match`, say; and its transport tells of
// the connections that it makes. That is done here, and not where the handler
// is configured, because it also holds for handlers written in JSON, and because
// Caddy keeps several copies of a configuration in memory.
func (u *Upstreams) Provision(ctx caddy.Context) error {
	u.logger = ctx.Logger()
	lineage := ctx.Modules()
	if len(lineage) < 2 {
		return nil
	}
	if u.Nested {
		if err := nested(lineage[:len(lineage)-2]); err != nil {
			return err
		}
	}
	rp, ok := lineage[len(lineage)-2].(*reverseproxy.Handler)
	if !ok {
		return nil
	}
	if rp.Transport == nil {
		u.transport = new(defaultTransport)
		rp.Transport = u.transport
	}
	s := newSender(rp.Transport)
	if s.silent {
		u.unseen = s.RoundTripper
	}
	rp.Transport = s
	return setRetries(rp)
}

// Cleanup closes the idle connections, and those in use as soon as they become
// idle. Otherwise each reload would leave some behind for minutes.
func (u *Upstreams) Cleanup() error {
	if u.transport != nil {
		u.transport.CloseIdleConnections()
	}
	return nil
}

// setRetries adds Usher's own rule to those of the user. A proxy whose rules
// name usher_retry themselves is left as it is.
func setRetries(rp *reverseproxy.Handler) error {
	if rp.LoadBalancing == nil {
		rp.LoadBalancing = new(reverseproxy.LoadBalancing)
	}
	lb := rp.LoadBalancing
	attempts := lb.Retries
	if attempts < 0 {
		return fmt.Errorf("load_balancing: retries cannot be negative, but is %d", attempts)
	}
	for _, rule := range lb.RetryMatchRaw {
		if _, ok := rule[retryMatcher]; ok {
			return nil
		}
	}
	rules := lb.RetryMatchRaw
	lb.RetryMatchRaw = nil
	if attempts > 0 {
		if len(rules) == 0 {
			// As reverse_proxy does where nothing else is said.
			rules = caddyhttp.RawMatcherSets{{"method": json.RawMessage(`["GET"]`)}}
		}
		for _, rule := range rules {
			set := caddy.ModuleMap{retryMatcher: json.RawMessage(`{"attempts":` + strconv.Itoa(attempts) + `}`)}
			maps.Copy(set, rule)
			lb.RetryMatchRaw = append(lb.RetryMatchRaw, set)
		}
	}
	lb.Retries = refusedTries + attempts
	// The proxy appends the user's rules.
	lb.RetryMatch = unseen
	return nil
}

// tellOfDials makes a proxy's transport tell requests of the connections that
// it makes for them, so that only those pay for it that need a new one. It
// returns false where that is not possible.
func tellOfDials(transport http.RoundTripper) bool {
	t, ok := transport.(*reverseproxy.HTTPTransport)
	if !ok || t.Transport == nil || slices.Contains(t.Versions, "3") {
		return false
	}
	// Some of Caddy's own dials write before they return: the header of the
	// PROXY protocol, or a TLS handshake.
	t.Transport.DialContext = telling(t.Transport.DialContext, t.ProxyProtocol != "")
	if t.Transport.DialTLSContext != nil {
		t.Transport.DialTLSContext = telling(t.Transport.DialTLSContext, true)
	}
	return true
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

func telling(dial dialFunc, writes bool) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		q := requestOf(ctx)
		if q == nil {
			return dial(ctx, network, addr)
		}
		if writes {
			if err := q.checkBeforeDial(ctx, addr); err != nil {
				q.attemptOf(ctx).dial.Store(&dialResult{err})
				return nil, reverseproxy.NewDialError(err)
			}
		}
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{ConnectDone: q.connectDone(q.attemptOf(ctx))})
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if err := q.checkPeer(ctx, addr, conn); err != nil {
			_ = conn.Close()
			return nil, reverseproxy.NewDialError(err)
		}
		return conn, nil
	}
}

var _ caddy.Provisioner = (*Upstreams)(nil)

package caddymodule

import (
	"fmt"
	"hash/maphash"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/reserver"
)

// PriorityRule gives a class to some of the requests of a place.
type PriorityRule struct {
	// `high`: the requests have their turns before all others that wait. `low`:
	// they have them after all others.
	Class string `json:"class"`

	// Which requests get the class. Default: all.
	MatchRaw caddyhttp.RawMatcherSets `json:"match,omitempty" caddy:"namespace=http.matchers"`

	match caddyhttp.MatcherSets
	class reserver.Class
}

// classNames are the values of class.
var classNames = map[string]reserver.Class{"high": reserver.High, "low": reserver.Low}

// provisionPriority checks the rules for the classes of requests.
func (h *Handler) provisionPriority(ctx caddy.Context) error {
	for k := range h.Priority {
		rule := &h.Priority[k]
		if k > 0 && h.Priority[k-1].MatchRaw == nil && len(h.Priority[k-1].match) == 0 {
			return fmt.Errorf("the rule for '%s' can never hold: the rule for '%s' before it matches all requests", rule.Class, h.Priority[k-1].Class)
		}
		var ok bool
		if rule.class, ok = classNames[rule.Class]; !ok {
			return fmt.Errorf("the class '%s' is unknown: use high or low", rule.Class)
		}
		if rule.MatchRaw == nil {
			continue
		}
		sets, err := ctx.LoadModule(rule, "MatchRaw")
		if err != nil {
			return fmt.Errorf("matcher: %w", err)
		}
		if err := rule.match.FromInterface(sets); err != nil {
			return fmt.Errorf("matcher: %w", err)
		}
	}
	return nil
}

// FairBy parts the requests that wait into shares, one for each value. Shares
// have their turns one after the other, so a client that sends a hundred
// requests makes another one wait for one of them and not for all.
type FairBy struct {
	// One placeholder, such as `{http.vars.client_ip}` or
	// `{http.auth.user.id}`. It is evaluated for each request. Requests for which
	// it is empty are one share.
	Value string `json:"value"`

	// How many requests of one share may wait. A further one is answered
	// `queue_full`. Default: no limit but that of the queue.
	MaxWaiting int `json:"max_waiting,omitempty"`

	placeholder string
}

func (f *FairBy) provision() (err error) {
	if f.placeholder, err = hub.PlaceholderName(f.Value); err != nil {
		return err
	}
	if hub.IsLearned(f.placeholder) {
		return fmt.Errorf("%s has no value when a request comes: use one that comes with the request", f.Value)
	}
	if f.MaxWaiting < 0 {
		return fmt.Errorf("max_waiting must be at least 1, not %d", f.MaxWaiting)
	}
	return nil
}

// shareSeed makes the shares of this process. They are hashes, so a huge value
// takes no more memory than any other.
var shareSeed = maphash.MakeSeed()

// share returns the share of a request. Those for which the placeholder is empty
// are one share.
func (f *FairBy) share(replacer *caddy.Replacer) uint64 {
	v := hub.Evaluate(replacer, f.placeholder)
	if v == "" {
		return 0
	}
	return max(1, maphash.String(shareSeed, v))
}

// turn is how a request asks for its slot, where that is more than whether it
// wakes the service.
type turn struct {
	ask reserver.Ask

	// of its session; nil without affinity
	sessions *hub.Sessions
	renew    bool             // the cookie is valid, and old
	bound    bool             // it has waited in vain for the instance of its session alone
	session  reserver.Session // what was counted last
}

// risesAfter is after how long a waiting request rises by a class: twice within
// its time, so that none waits in vain.
func (h *Handler) risesAfter() time.Duration { return time.Duration(h.WaitTimeout) / 4 }

// turnOf says how r asks for its slot on s; nil if it asks as all others do.
func (h *Handler) turnOf(s *hub.Service, r *http.Request, quiet bool) (*turn, error) {
	sessions := s.Sessions.Load()
	if sessions == nil && h.Priority == nil && h.FairBy == nil {
		return nil, nil
	}
	t := &turn{ask: h.plainAsk(quiet), sessions: sessions}
	for k := range h.Priority {
		rule := &h.Priority[k]
		match := true
		if len(rule.match) > 0 {
			var err error
			if match, err = rule.match.AnyMatchWithError(r); err != nil {
				return nil, err
			}
		}
		if match {
			t.ask.Class = rule.class
			break
		}
	}
	replacer, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if h.FairBy != nil {
		t.ask.Share, t.ask.ShareLimit = h.FairBy.share(replacer), h.FairBy.MaxWaiting
	}
	if sessions != nil {
		t.join(r, replacer)
	}
	return t, nil
}

// plainAsk is how a request asks that has no turn of its own.
func (h *Handler) plainAsk(quiet bool) reserver.Ask {
	return reserver.Ask{Quiet: quiet, RiseAfter: h.risesAfter()}
}

// join finds the session of r.
func (t *turn) join(r *http.Request, replacer *caddy.Replacer) {
	t.ask.Affinity, t.ask.Key = t.sessions.Of(replacer)
	if cookie := t.sessions.Cookie; t.ask.Affinity == reserver.NoAffinity && cookie != nil && !isPreflight(r) {
		t.ask.Affinity = reserver.ByInstance
		t.ask.Key, t.renew = cookie.Find(r.Header, time.Now())
	}
}

// isPreflight reports whether a browser asks with r if it may send another
// request. It sends no cookie with it and keeps none.
func isPreflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != ""
}

// asks returns what q asks the reserver for.
func (q *request) asks() reserver.Ask {
	switch {
	case q.turn != nil:
		return q.turn.ask
	case q.handler == nil:
		return reserver.Ask{Quiet: q.quiet}
	}
	return q.handler.plainAsk(q.quiet)
}

// bound reports whether q waits for the instance of its session alone.
func (q *request) bound() bool {
	return q.turn != nil && q.turn.sessions != nil && q.reservation.Bound()
}

// session is what the slot of q means for its session.
func (q *request) session() reserver.Session {
	switch {
	case q.turn == nil || q.instance == nil:
		return reserver.NoSession
	case q.turn.ask.Affinity == reserver.NoAffinity:
		return q.turn.session // it may have got one by its answer
	}
	return q.reservation.Session()
}

// countSession counts what a slot means for the session of q, once.
func (q *request) countSession() {
	if t := q.turn; t != nil && t.sessions != nil {
		if now := q.session(); now != t.session {
			t.session = now
			t.sessions.Count(now)
		}
	}
}

// bindSession lets the session of q go on with the instance that has answered
// it: h is the header of the answer. What handlers in between answer is of no
// instance.
func (q *request) bindSession(h http.Header) {
	t := q.turn
	if a := q.attempt.Load(); a == nil || a.outcome != answered || q.reservation.Instance() == nil {
		return
	}
	if key, ok := t.sessions.Learned(h); ok && (t.ask.Affinity != reserver.ByKey || t.ask.Key != key) {
		q.reservation.Learn(key)
		if t.ask.Affinity == reserver.NoAffinity {
			t.session = reserver.SessionNew
			t.sessions.Count(t.session)
		}
	}
	if t.ask.Affinity != reserver.ByInstance {
		return
	}
	if t.renew || q.reservation.Session() != reserver.SessionKept {
		h.Add("Set-Cookie", t.sessions.Cookie.Set(q.instance.Hash(), time.Now(), isSecure(q.came)))
	}
}

// isSecure reports whether the client speaks TLS, with this server or with a
// trusted one in front.
func isSecure(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	return trusted && r.Header.Get("X-Forwarded-Proto") == "https"
}

// provisionOrder checks how h orders the requests that wait, if it does. The
// service may be defined at another place, which is known when the app starts.
func (h *Handler) provisionOrder(ctx caddy.Context, a *App) error {
	if err := h.provisionPriority(ctx); err != nil {
		return fmt.Errorf("priority: %w", err)
	}
	if h.FairBy != nil {
		if err := h.FairBy.provision(); err != nil {
			return fmt.Errorf("fair_by: %w", err)
		}
	}
	if h.Priority == nil && h.FairBy == nil {
		return nil
	}
	a.draft.ordered = append(a.draft.ordered, h)
	return h.checkQueue(a.generation.Definitions[h.Service])
}

// checkQueue refuses an order of requests that never wait.
func (h *Handler) checkQueue(d *hub.Definition) error {
	if d == nil {
		return nil
	}
	return checkQueue(d.Service, h)
}

// checkQueue is the same for a definition in which every option is set.
func checkQueue(s hub.ServiceConfig, h *Handler) error {
	option := "priority"
	if h.FairBy != nil {
		option = "fair_by"
	}
	switch most := *s.MaxWaiting; {
	case h.Priority == nil && h.FairBy == nil:
	case most == 0:
		return fmt.Errorf("%s has no effect with max_waiting 0: no request waits", option)
	case h.FairBy != nil && h.FairBy.MaxWaiting > most:
		return fmt.Errorf("fair_by: one share may have %d requests waiting, but the whole queue has no more than %d: lower the one, or raise max_waiting of the service", h.FairBy.MaxWaiting, most)
	}
	return nil
}

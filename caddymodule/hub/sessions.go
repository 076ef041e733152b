package hub

import (
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-usher/usher/reserver"
)

// Sessions finds the sessions of requests: it is the provisioned form of
// Affinity, for one service. All methods are safe for concurrent use.
type Sessions struct {
	// Cookie is nil where sessions have keys alone.
	Cookie *SessionCookie

	keys    []keySource
	learned []string // the headers of answers from which keys are learned
	counted map[reserver.Session]prometheus.Counter
}

// keySource is where the key of a session is found in a request.
type keySource struct {
	placeholder string // without its braces
	affinity    reserver.Affinity
}

// newSessions returns what a service has of its affinity; nil without one.
func newSessions(service string, a *Affinity, seal *seal) *Sessions {
	if a == nil {
		return nil
	}
	s := &Sessions{counted: make(map[reserver.Session]prometheus.Counter)}
	for _, outcome := range []reserver.Session{reserver.SessionNew, reserver.SessionKept, reserver.SessionMoved} {
		s.counted[outcome] = sessionsTotal.WithLabelValues(service, outcome.String())
	}
	for _, key := range a.Keys {
		name, _ := PlaceholderName(key.Value) // it was validated
		source := keySource{placeholder: name, affinity: reserver.ByKey}
		if key.Spill {
			source.affinity = reserver.ByHash
		}
		if header, ok := strings.CutPrefix(name, responseHeader); ok {
			s.learned = append(s.learned, http.CanonicalHeaderKey(header))
			source.placeholder = requestHeader + header
		}
		s.keys = append(s.keys, source)
	}
	if a.Cookie != nil {
		s.Cookie = newSessionCookie(service, a.Cookie, seal)
	}
	return s
}

// Of says by which key a request finds its instance, if it has one. Values are
// hashed, so a huge one needs no memory, and hashes are the same in every
// process.
func (s *Sessions) Of(replacer *caddy.Replacer) (affinity reserver.Affinity, key uint64) {
	for _, source := range s.keys {
		if v := Evaluate(replacer, source.placeholder); v != "" {
			return source.affinity, xxhash.Sum64String(v)
		}
	}
	return reserver.NoAffinity, 0
}

// Learned returns the key that an answer sets, if it does.
func (s *Sessions) Learned(h http.Header) (key uint64, ok bool) {
	for _, name := range s.learned {
		if v := h[name]; len(v) > 0 && v[0] != "" {
			return xxhash.Sum64String(v[0]), true
		}
	}
	return 0, false
}

// Remembers reports whether the instances of keys are remembered. s may be nil.
func (s *Sessions) Remembers() bool {
	return s != nil && slices.ContainsFunc(s.keys, func(k keySource) bool { return k.affinity == reserver.ByKey })
}

// Count counts a request of a session, by what its slot means for that.
func (s *Sessions) Count(x reserver.Session) {
	if c := s.counted[x]; c != nil {
		c.Inc()
	}
}

// Evaluate returns the value of a placeholder, given without its braces, or "".
func Evaluate(replacer *caddy.Replacer, placeholder string) string {
	if replacer == nil {
		return ""
	}
	switch v, _ := replacer.Get(placeholder); v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	default:
		return caddy.ToString(v)
	}
}

// SessionCookie is the cookie that names the instance of a session.
type SessionCookie struct {
	name   string
	maxAge time.Duration
	whole  http.Cookie // without its value
	seal   *sealedCookies
}

func newSessionCookie(service string, c *AffinityCookie, seal *seal) *SessionCookie {
	name := c.Name
	if name == "" {
		name = "usher_" + service
	}
	s := &SessionCookie{name: name, maxAge: time.Duration(c.MaxAge), seal: newSealedCookies(seal, service)}
	s.whole = http.Cookie{ //nolint:gosec // Secure depends on the request
		Name: name, Path: c.Path, Domain: c.Domain, HttpOnly: true, SameSite: sameSites[c.SameSite],
		MaxAge: int(min((s.maxAge+time.Second-1)/time.Second, math.MaxInt32)),
		Secure: c.SameSite == "none" || strings.HasPrefix(name, "__Secure-") || strings.HasPrefix(name, "__Host-"),
	}
	return s
}

// cookiesTried is how many cookies of the one name are looked at in a request.
const cookiesTried = 8

// Find returns which instance the cookie of a request names, as the hash of its
// id, and whether the cookie is to be set anew. The instance is 0 if the request
// has no cookie that is valid now.
func (c *SessionCookie) Find(h http.Header, now time.Time) (instance uint64, renew bool) {
	tried := 0
	for _, line := range h["Cookie"] {
		for line != "" && tried < cookiesTried {
			var part string
			part, line, _ = strings.Cut(line, ";")
			value, ok := strings.CutPrefix(strings.TrimLeft(part, " "), c.name)
			if !ok || value == "" || value[0] != '=' {
				continue
			}
			tried++
			if instance, issued, ok := c.seal.open(strings.TrimRight(value[1:], " ")); ok {
				if age := now.Sub(issued); c.maxAge == 0 || issued.IsZero() || age <= c.maxAge {
					return instance, c.maxAge > 0 && (issued.IsZero() || age > c.maxAge/2)
				}
			}
		}
	}
	return 0, false
}

// Set returns the value of the header Set-Cookie that names an instance, by the
// hash of its id. With secure, the browser sends it over TLS alone.
func (c *SessionCookie) Set(instance uint64, now time.Time, secure bool) string {
	set := c.whole //nolint:gosec // Secure is set below
	var issued time.Time
	if c.maxAge > 0 {
		issued = now
	}
	set.Value = c.seal.sealed(instance, issued)
	set.Secure = set.Secure || secure
	return set.String()
}

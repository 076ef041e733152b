package hub

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// Affinity lets the requests of a session go to the same instance, as long as
// that serves. If the instance is full, the requests of its sessions wait for
// it. If it is gone or ejected, they go on with another one.
type Affinity struct {
	// Where the key of the session is found in a request. The first one that
	// yields a value counts. Equal values go to the same instance.
	Keys []AffinityKey `json:"keys,omitempty"`

	// A cookie that names the instance. It counts for requests without a key.
	Cookie *AffinityCookie `json:"cookie,omitempty"`
}

// AffinityKey is where the key of a session is found.
type AffinityKey struct {
	// One placeholder, such as `{http.request.header.Session}` or
	// `{http.vars.client_ip}`. It is evaluated for each request. A request for
	// which it is empty has no key here. `{http.response.header.X}` is the value
	// of the header X in an answer of the instance, and from then on that of the
	// header X in requests.
	Value string `json:"value"`

	// Whether a request whose instance is full goes to the next instance in the
	// order of its key at once, instead of waiting. It is for caches, where
	// another instance is only slower. Default: false.
	Spill bool `json:"spill,omitempty"`
}

// AffinityCookie is a cookie that names an instance. It is sealed: it shows
// neither an id nor an address, and a client cannot make one.
type AffinityCookie struct {
	// The name of the cookie. Default: `usher_` and the name of the service.
	Name string `json:"name,omitempty"`

	// How long the browser keeps the cookie after it was set. A cookie that is
	// older than half of that is set anew. At least 1s. Default: until the
	// browser is closed.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	// `lax`, `strict` or `none`. With `none` the cookie is always `Secure`.
	// Default: `lax`.
	SameSite string `json:"same_site,omitempty"`

	// The path below which the browser sends the cookie. Default: `/`.
	Path string `json:"path,omitempty"`

	// The domain to which the browser sends the cookie, subdomains included.
	// Default: the host of the request alone.
	Domain string `json:"domain,omitempty"`
}

const defaultSessionTimeout = 10 * time.Minute

// sameSites are the values of same_site.
var sameSites = map[string]http.SameSite{
	"lax": http.SameSiteLaxMode, "strict": http.SameSiteStrictMode, "none": http.SameSiteNoneMode,
}

// withDefaults returns a copy of a in which every option is set, but for the
// name of the cookie, which depends on the service.
func (a *Affinity) withDefaults() *Affinity {
	if a == nil || a.Cookie == nil {
		return a
	}
	filled, cookie := *a, *a.Cookie
	cookie.SameSite = cmp.Or(cookie.SameSite, "lax")
	cookie.Path = cmp.Or(cookie.Path, "/")
	filled.Cookie = &cookie
	return &filled
}

// validate checks every value of a, in which every option is set.
func (a *Affinity) validate() error {
	if a.Cookie == nil && len(a.Keys) == 0 {
		return errors.New("affinity needs a cookie or a key")
	}
	for k, key := range a.Keys {
		name, err := PlaceholderName(key.Value)
		if err != nil {
			return fmt.Errorf("affinity key: %w", err)
		}
		if key.Spill && IsLearned(name) {
			return fmt.Errorf("affinity key %s: what an answer sets belongs to the instance that set it, so such a key cannot spill to another one: leave out spill", key.Value)
		}
		if slices.ContainsFunc(a.Keys[:k], func(before AffinityKey) bool { return before.Value == key.Value }) {
			return fmt.Errorf("affinity key %s is given twice", key.Value)
		}
	}
	if a.Cookie == nil {
		return nil
	}
	if err := a.Cookie.validate(); err != nil {
		return fmt.Errorf("affinity cookie: %w", err)
	}
	return nil
}

func (c *AffinityCookie) validate() error {
	if _, ok := sameSites[c.SameSite]; !ok {
		return fmt.Errorf("same_site '%s' is unknown: use lax, strict or none", c.SameSite)
	}
	if c.MaxAge != 0 && c.MaxAge < caddy.Duration(time.Second) {
		return fmt.Errorf("max_age is %v, but must be at least 1s; without max_age the cookie is kept until the browser is closed", time.Duration(c.MaxAge))
	}
	if err := CheckDuration("max_age", c.MaxAge); err != nil {
		return err
	}
	if !strings.HasPrefix(c.Path, "/") {
		return fmt.Errorf("the path '%s' must begin with '/'", c.Path)
	}
	if strings.HasPrefix(c.Name, "__Host-") && (c.Domain != "" || c.Path != "/") {
		return fmt.Errorf("browsers accept the cookie %s only without a domain and with the path /", c.Name)
	}
	probe := http.Cookie{Name: cmp.Or(c.Name, "usher"), Value: "x", Path: c.Path, Domain: c.Domain} //nolint:gosec // it is only checked
	if err := probe.Valid(); err != nil {
		return fmt.Errorf("no browser would accept it: %w", err)
	}
	return nil
}

const (
	responseHeader = "http.response.header."
	requestHeader  = "http.request.header."
)

// later are the beginnings of placeholders that have no value yet when a request
// asks for its instance, with what to use instead; fixed are those that have the
// same value for all requests.
var (
	later = map[string]string{
		"http.usher.": "the instance is chosen with it", "http.reverse_proxy.": "the request has not been sent yet",
		"http.intercept.": "to learn from an answer, write {" + responseHeader + "<name>}",
		"http.response.":  "of an answer only a header can be learned: {" + responseHeader + "<name>}",
	}
	fixed = []string{"env.", "file.", "system.", "time."}
)

// PlaceholderName returns what is between the braces of a placeholder by which
// requests are told apart.
func PlaceholderName(s string) (string, error) {
	name, ok := strings.CutPrefix(s, "{")
	if ok {
		name, ok = strings.CutSuffix(name, "}")
	}
	if !ok || name == "" || strings.ContainsAny(name, "{}") {
		return "", fmt.Errorf("'%s' is not one placeholder, such as {http.request.header.Session}", s)
	}
	if header, ok := strings.CutPrefix(name, responseHeader); ok && header != "" {
		return name, nil
	}
	for prefix, why := range later {
		if strings.HasPrefix(name, prefix) {
			return "", fmt.Errorf("%s has no value when a request comes: %s", s, why)
		}
	}
	for _, prefix := range fixed {
		if strings.HasPrefix(name, prefix) {
			return "", fmt.Errorf("%s does not tell requests apart", s)
		}
	}
	return name, nil
}

// IsLearned reports whether a placeholder, given without its braces, is learned
// from an answer.
func IsLearned(name string) bool { return strings.HasPrefix(name, responseHeader) }

package caddymodule

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/caddymodule/hub"
)

// Async lets requests be stored and executed later. Such a request is accepted when
// it is on the disk, and its result can be fetched later.
type Async struct {
	// Which requests may be stored. Default: all.
	MatchRaw caddyhttp.RawMatcherSets `json:"match,omitempty" caddy:"namespace=http.matchers"`

	// `prefer`: those that have `respond-async` in a `Prefer` header. `always`: all
	// that match. Default: `prefer`.
	When string `json:"when,omitempty"`

	// Where they are stored. All places of one Caddy have the same store. Default:
	// `file`, in Caddy's data directory.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=usher.stores inline_key=type"`

	// One placeholder. Requests with an equal value are executed one at a time, in
	// order. Those for which it is empty are of no group. Default: none.
	Group string `json:"group,omitempty"`

	// A name. Of all requests with it, of all services, one is executed at a time.
	// Default: none.
	Exclusive string `json:"exclusive,omitempty"`

	// How often a request may be sent. 1: at most once. Default: 5.
	Attempts int `json:"attempts,omitempty"`

	// The pause after the first attempt, and the longest one. It doubles after each
	// attempt. Default: 1s and 10m.
	BackoffFrom caddy.Duration `json:"backoff_from,omitempty"`
	BackoffTo   caddy.Duration `json:"backoff_to,omitempty"`

	// How long one attempt may take. Default: 1h.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// The statuses after which there is another attempt. Default: 429, 502, 503 and
	// 504.
	RetryOn []int `json:"retry_on,omitempty"`

	// How long after it was accepted the first attempt may begin. Default: 72h.
	Expires caddy.Duration `json:"expires,omitempty"`

	// How long results are kept. Default: 24h.
	Keep caddy.Duration `json:"keep,omitempty"`

	// The largest request and the largest answer, in bytes. Default: 100 MB.
	MaxBody   int64 `json:"max_body,omitempty"`
	MaxResult int64 `json:"max_result,omitempty"`

	// How many requests of the service may be stored and not executed yet. Default:
	// 100000.
	MaxTasks int `json:"max_tasks,omitempty"`

	// Which headers of requests are stored. Others are dropped. Default: those that
	// carry no secrets: `Accept`, `Accept-Encoding`, `Accept-Language`, `Baggage`,
	// `Content-Encoding`, `Content-Language`, `Content-Type`, `Traceparent`,
	// `Tracestate`, `User-Agent` and `X-Request-Id`.
	Headers []string `json:"headers,omitempty"`

	// Encrypts what is stored. All places of one Caddy have the same key, and it
	// stays the same. Default: it is not encrypted.
	Encrypt string `json:"encrypt,omitempty"`

	// Lets clients be told of the end of what they have handed in. Default: it does
	// not.
	Callback *Callback `json:"callback,omitempty"`

	match  caddyhttp.MatcherSets
	group  string // name of the placeholder
	policy async.Policy
	store  *hub.TaskStore
	proxy  []byte // Handler.ProxyRaw
	raw    []byte // all of it, to compare
}

// storedHeaders is the default of Async.Headers.
var storedHeaders = []string{
	"Accept", "Accept-Encoding", "Accept-Language", "Baggage", "Content-Encoding", "Content-Language", "Content-Type",
	"Traceparent", "Tracestate", "User-Agent", "X-Request-Id",
}

// The values of when.
const (
	whenPrefer = "prefer"
	whenAlways = "always"
)

// What holds for the options of Async that are not given.
const (
	defaultExpires  = 72 * time.Hour
	defaultKeep     = 24 * time.Hour
	defaultMaxBody  = 100_000_000
	defaultMaxTasks = 100_000

	// The limits of the options.
	mostAttempts = 1000
	mostTasks    = 100_000_000
)

var defaultStore = json.RawMessage(`{"type":"file"}`)

// provisionAsync checks the options, and lets the tasks of the service be executed
// here.
func (h *Handler) provisionAsync(ctx caddy.Context, app *App) (err error) {
	a := h.Async
	if a == nil {
		return nil
	}
	switch {
	case h.shared.server == nil:
		return errors.New("it belongs into a route of an HTTP server")
	case h.Proxy == nil:
		return errors.New("it needs the handler's own proxy, by which requests are sent later: give the handler 'proxy'")
	}
	if a.raw, err = json.Marshal(a); err != nil {
		return err
	}
	a.raw = append(append(a.raw, ' '), a.proxy...)
	if err := a.fill(); err != nil {
		return err
	}
	if a.MatchRaw != nil {
		sets, err := ctx.LoadModule(a, "MatchRaw")
		if err != nil {
			return fmt.Errorf("matcher: %w", err)
		}
		if err := a.match.FromInterface(sets); err != nil {
			return fmt.Errorf("matcher: %w", err)
		}
	}
	if err := a.loadStore(ctx); err != nil {
		return err
	}
	if a.Callback != nil {
		if err := a.Callback.provision(); err != nil {
			return fmt.Errorf("callback: %w", err)
		}
	}
	return app.executeTasks(h)
}

// loadStore makes the description of the store.
func (a *Async) loadStore(ctx caddy.Context) error {
	var name bytes.Buffer
	if err := json.Compact(&name, a.StoreRaw); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	module, err := ctx.LoadModule(a, "StoreRaw")
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	opener, ok := module.(async.Opener)
	if !ok {
		return fmt.Errorf("store: the module is a %T, which is no store", module)
	}
	key := caddy.NewReplacer().ReplaceKnown(a.Encrypt, "")
	if a.Encrypt != "" && key == "" {
		return fmt.Errorf("encrypt: %s is empty", a.Encrypt)
	}
	sum := sha256.Sum256([]byte(key))
	a.store = &hub.TaskStore{Name: name.String() + " " + hex.EncodeToString(sum[:]), Opener: opener, Key: key}
	return nil
}

// fill checks the options and gives those that are missing their defaults.
func (a *Async) fill() error {
	if a.When == "" {
		a.When = whenPrefer
	}
	if a.When != whenPrefer && a.When != whenAlways {
		return fmt.Errorf("when '%s' is unknown: use prefer or always", a.When)
	}
	if a.StoreRaw == nil {
		a.StoreRaw = defaultStore
	}
	if a.Group != "" {
		var err error
		if a.group, err = hub.PlaceholderName(a.Group); err != nil {
			return fmt.Errorf("group: %w", err)
		}
		if hub.IsLearned(a.group) {
			return fmt.Errorf("group: %s has no value when a request comes: use one that comes with the request", a.Group)
		}
	}
	if len(a.Exclusive) > 255 {
		return errors.New("exclusive: the name can have 255 bytes at most")
	}
	for _, d := range []struct {
		name  string
		value *caddy.Duration
		none  time.Duration
	}{
		{"backoff", &a.BackoffFrom, async.DefaultPolicy.BackoffFrom},
		{"backoff", &a.BackoffTo, max(async.DefaultPolicy.BackoffTo, time.Duration(a.BackoffFrom))},
		{"timeout", &a.Timeout, async.DefaultPolicy.Timeout},
		{"expires", &a.Expires, defaultExpires},
		{"keep", &a.Keep, defaultKeep},
	} {
		if *d.value == 0 {
			*d.value = caddy.Duration(d.none)
		}
		if err := hub.CheckDuration(d.name, *d.value); err != nil {
			return err
		}
	}
	if a.BackoffTo < a.BackoffFrom {
		return fmt.Errorf("backoff: the longest pause, %v, is shorter than the first one, %v", time.Duration(a.BackoffTo), time.Duration(a.BackoffFrom))
	}
	return a.fillNumbers()
}

func (a *Async) fillNumbers() error {
	for _, n := range []struct {
		name  string
		value *int64
	}{{"max_body", &a.MaxBody}, {"max_result", &a.MaxResult}} {
		if *n.value == 0 {
			*n.value = defaultMaxBody
		}
		if *n.value < 0 {
			return fmt.Errorf("%s cannot be negative, but is %d", n.name, *n.value)
		}
	}
	if a.Attempts == 0 {
		a.Attempts = async.DefaultPolicy.Attempts
	}
	if err := hub.CheckCount("attempts", a.Attempts, 1, mostAttempts); err != nil {
		return err
	}
	if a.MaxTasks == 0 {
		a.MaxTasks = defaultMaxTasks
	}
	if err := hub.CheckCount("max_tasks", a.MaxTasks, 1, mostTasks); err != nil {
		return err
	}
	if a.RetryOn == nil {
		a.RetryOn = async.DefaultPolicy.RetryOn
	}
	for _, status := range a.RetryOn {
		if status < 400 || status > 599 {
			return fmt.Errorf("retry_on: %d is not the status of an error: use 400 to 599", status)
		}
	}
	if a.Headers == nil {
		a.Headers = storedHeaders
	}
	if a.Callback != nil {
		if _, err := a.Callback.rules(); err != nil {
			return fmt.Errorf("callback: %w", err)
		}
	}
	a.Headers = slices.Clone(a.Headers)
	for k, name := range a.Headers {
		a.Headers[k] = http.CanonicalHeaderKey(name)
	}
	a.policy = async.DefaultPolicy
	a.policy.Attempts, a.policy.RetryOn, a.policy.MaxResult = a.Attempts, a.RetryOn, a.MaxResult
	a.policy.BackoffFrom, a.policy.BackoffTo = time.Duration(a.BackoffFrom), time.Duration(a.BackoffTo)
	a.policy.Timeout = time.Duration(a.Timeout)
	return nil
}

// Policy implements hub.TaskPlace.
func (h *Handler) Policy() async.Policy { return h.Async.policy }

// executeTasks lets the tasks of the service of h be executed at h. Further places
// with the same service say the same.
func (a *App) executeTasks(h *Handler) error {
	g := a.generation
	if g.TaskStore == nil {
		g.TaskStore = h.Async.store
	}
	if g.TaskStore.Name != h.Async.store.Name {
		return errors.New("another place in the configuration has another store, or another key: there is one store in a Caddy")
	}
	if other, ok := g.Tasks[h.Service].(*Handler); ok {
		if !bytes.Equal(other.Async.raw, h.Async.raw) {
			return fmt.Errorf("it stands twice for the service, in %s and in %s, and not with the same options, or beside other options of reverse_proxy: requests that are stored at both are executed in one way", other.shared.name, h.shared.name)
		}
		return nil
	}
	if g.Tasks == nil {
		g.Tasks = make(map[string]hub.TaskPlace)
	}
	g.Tasks[h.Service] = h
	if c := h.Async.Callback; c != nil {
		g.Tasks[async.CallbackQueue(h.Service)] = c.sender
	}
	return nil
}

var _ hub.TaskPlace = (*Handler)(nil)

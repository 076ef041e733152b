package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

func init() {
	caddy.RegisterModule(new(Handler))
}

// Handler reserves a slot on an instance of a service for each request,
// before it is handed on, and gives it back when it has been answered. A
// request for which no slot is free waits in the service's line; if it is the
// first, it wakes the service.
//
// The handler's own `proxy` then sends the request to the instance on which it
// has its slot. Without it, a `reverse_proxy` with the dynamic upstreams `usher`
// has to follow in the same route.
type Handler struct {
	// The name of the service. It is defined here, in `define`, or by the
	// app `usher`, or by another handler. Or one placeholder, which gives the name
	// for each request: it finds services that were made while Caddy runs, and no
	// others unless `from` says so. `{http.request.host}` finds a service by the
	// hosts that it has, not by its name.
	Service string `json:"service,omitempty"`

	// A regular expression that the name has to match if `service` is a
	// placeholder. It is required where clients choose the value freely, and lets
	// services of the configuration be found, too.
	From string `json:"from,omitempty"`

	// The services between which the requests of this place are divided. `service`
	// is the name of the split then, and no service has that name. Default: none.
	Split *hub.SplitConfig `json:"split,omitempty"`

	// The definition of the service.
	Define *hub.ServiceConfig `json:"define,omitempty"`

	// How long one request may wait. Default: 60s.
	WaitTimeout caddy.Duration `json:"wait_timeout,omitempty"`

	// Which requests wake the service. The others never wake it, are no
	// reason to keep it awake, and are served while an instance is ready.
	// Default: all.
	WakeRaw caddyhttp.RawMatcherSets `json:"wake,omitempty" caddy:"namespace=http.matchers"`

	// Whether responses tell in a Server-Timing header how long the request
	// waited, and whether it waited for a start. Default: false.
	ServerTiming bool `json:"server_timing,omitempty"`

	// The `reverse_proxy` that sends requests to the instances: its options, by
	// their JSON names, or `{}`. `upstreams`, `dynamic_upstreams`,
	// `health_checks` and `circuit_breaker` are not among them, and
	// `stream_close_delay` is 24h unless it is given. Default: none.
	ProxyRaw json.RawMessage `json:"proxy,omitempty"`

	// Proxy is the provisioned form of ProxyRaw; nil without.
	Proxy *reverseproxy.Handler `json:"-"`

	// noted is what was found out while requests ran. It stands where there is
	// room for it: there are thousands of handlers.
	noted uint32

	// The page that people see in their browser while their request waits.
	// Default: none; the browser waits for the answer.
	WaitingPage *WaitingPage `json:"waiting_page,omitempty"`

	// trouble is what was logged last of what keeps requests from being sent.
	trouble atomic.Pointer[hub.Trouble]

	// Which requests have their turns before or after others while they wait.
	// The first rule that matches holds. A request that has waited for a quarter
	// of `wait_timeout` rises by one class, so that those of a lower class are
	// served, too. Default: all requests are of one class.
	Priority []PriorityRule `json:"priority,omitempty"`

	// What the requests that wait are parted by, so that no part of them has
	// all turns. Default: nothing; the order of arrival decides.
	FairBy *FairBy `json:"fair_by,omitempty"`

	// Which requests are stored and executed later. Default: none.
	Async *Async `json:"async,omitempty"`

	wake    caddyhttp.MatcherSets
	service *hub.Service // nil with a finder
	finder  finder       // nil if the name is constant
	shared  *serverShared
}

// What Handler.noted can have.
const (
	// notedUntraced: the proxy behind has a transport that does not tell of
	// its connections, as that of FastCGI.
	notedUntraced = 1 << iota
	// notedUnused: a request did not use its slot, which was logged.
	notedUnused
)

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.usher",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision sets up the handler. It touches nothing that runs.
func (h *Handler) Provision(ctx caddy.Context) error {
	if !isPlaceholder(h.Service) {
		if err := hub.CheckName(h.Service); err != nil {
			return err
		}
	}
	appAny, err := ctx.App("usher")
	if err != nil {
		return err
	}
	app := appAny.(*App)
	server, _ := ctx.Context.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	h.shared = app.sharedOf(server)
	switch {
	case h.Split != nil:
		if err := h.provisionSplit(app); err != nil {
			return fmt.Errorf("split %s (%s): %w", h.Service, h.shared.name, err)
		}
	case isPlaceholder(h.Service):
		if err := h.provisionLookup(app); err != nil {
			return fmt.Errorf("service %s (%s): %w", h.Service, h.shared.name, err)
		}
	case h.From != "":
		return fmt.Errorf("service %s: from is for a service that a placeholder names", h.Service)
	}
	if h.Define != nil {
		if err := app.define(ctx, h.Service, h.Define, h.shared.name); err != nil {
			return err
		}
		// Its provisioned form is kept, not this one.
		h.Define = nil
	}
	if h.finder == nil {
		h.service = app.use(h.Service, h.shared.name)
	}

	if h.WaitTimeout == 0 {
		h.WaitTimeout = caddy.Duration(hub.DefaultWaitTimeout)
	}
	if h.WaitTimeout < 0 {
		return fmt.Errorf("service %s: wait_timeout must be positive, not %v", h.Service, time.Duration(h.WaitTimeout))
	}
	if err := hub.CheckDuration("wait_timeout", h.WaitTimeout); err != nil {
		return fmt.Errorf("service %s: %w", h.Service, err)
	}
	if h.WakeRaw != nil {
		sets, err := ctx.LoadModule(h, "WakeRaw")
		if err != nil {
			return fmt.Errorf("service %s: wake: %w", h.Service, err)
		}
		if err := h.wake.FromInterface(sets); err != nil {
			return fmt.Errorf("service %s: wake: %w", h.Service, err)
		}
	}
	if err := h.provisionOrder(ctx, app); err != nil {
		return fmt.Errorf("service %s: %w", h.Service, err)
	}
	if h.WaitingPage != nil {
		if err := h.WaitingPage.provision(ctx, time.Duration(h.WaitTimeout)); err != nil {
			return fmt.Errorf("service %s: waiting_page: %w", h.Service, err)
		}
		if err := app.loadPage(h.Service, h.shared.name, h.WaitingPage); err != nil {
			return fmt.Errorf("service %s: waiting_page: %w", h.Service, err)
		}
	}
	if h.Async != nil {
		h.Async.proxy = h.ProxyRaw
	}
	if h.ProxyRaw != nil {
		if err := h.loadProxy(ctx); err != nil {
			return fmt.Errorf("service %s: proxy: %w", h.Service, err)
		}
	}
	if err := h.provisionAsync(ctx, app); err != nil {
		return fmt.Errorf("service %s: async: %w", h.Service, err)
	}
	if server != nil {
		h.checkWriteTimeout(ctx, server)
	}
	return nil
}

// checkWriteTimeout looks at what the server does to requests that wait.
func (h *Handler) checkWriteTimeout(ctx caddy.Context, server *caddyhttp.Server) {
	if w := server.WriteTimeout; w > 0 && h.WaitTimeout > w {
		ctx.Logger().Warn("requests may wait longer than the server's write_timeout allows: they would be cut off without an answer",
			zap.String("service", h.Service),
			zap.Duration("wait_timeout", time.Duration(h.WaitTimeout)), zap.Duration("write_timeout", time.Duration(w)))
	}
}

// serverShared is what the handlers of one HTTP server share.
type serverShared struct {
	name       string            // for messages
	server     *caddyhttp.Server // nil for handlers that stand elsewhere
	generation *hub.Generation
	errors     errorRoutes
	readAhead  *readAhead
	proxy      *reverseproxy.Handler // of the handlers whose proxies have no options; nil if none has
	ended      chan struct{}         // closed when the server shuts down
}

// sharedOf returns what the handlers of server share; it is nil for handlers
// that stand elsewhere. It is called while the configuration is provisioned.
func (a *App) sharedOf(server *caddyhttp.Server) *serverShared {
	shared := a.draft.servers[server]
	if shared != nil {
		return shared
	}
	shared = &serverShared{name: "a handler of the HTTP app", server: server, generation: a.generation, readAhead: readAheadOf(a.hub), ended: make(chan struct{})}
	a.draft.servers[server] = shared
	if server == nil {
		return shared
	}
	if name := server.Name(); name != "" {
		shared.name = "a handler of the HTTP server " + name
	}
	// On exit, answer waiting requests as soon as the server shuts down, after
	// shutdown_delay. Otherwise the server would wait for them.
	h := a.hub
	end := sync.OnceFunc(func() { close(shared.ended) })
	server.RegisterOnShutdown(func() {
		// The server would wait for the streams of open pages, which come
		// again.
		end()
		if caddy.Exiting() {
			h.Exit()
		}
	})
	return shared
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	f := found{service: h.service}
	if h.finder != nil {
		var answered bool
		if f, answered = h.finder.find(h, w, r); answered {
			return nil
		}
	}
	if x, ok := h.finder.(*splitter); ok && h.WaitingPage != nil && listens(r) {
		f = x.placed(f, r)
	}
	if h.Async != nil {
		if done, err := h.serveAsync(w, r); done || err != nil {
			return err
		}
	}
	quiet, err := h.quiet(r)
	if err != nil {
		return err
	}
	turn, err := h.turnOf(f.service, r, quiet)
	if err != nil {
		return err
	}
	waitsInBrowser := false
	if h.WaitingPage != nil {
		if listens(r) {
			return h.stream(f, w, r, quiet, turn)
		}
		if waitsInBrowser, err = h.WaitingPage.wants(r); err != nil {
			return err
		}
	}
	q := newRequest(h, f.service, w, r, quiet)
	defer q.end()
	q.turn, q.choice = turn, f.choice
	if waitsInBrowser {
		key := keyOf(r)
		q.page, q.key = h.WaitingPage, &key
	}

	for {
		if err := q.reserve(); err != nil {
			if q.nextSide(err) {
				continue
			}
			q.countSide()
			return q.refuse(err)
		}
		q.countSide()
		if h.Proxy == nil {
			return q.finish(next.ServeHTTP(&q.writer, q.forwarded()))
		}
		err = h.Proxy.ServeHTTP(&q.writer, q.forwarded(), next)
		if q.unsent() && q.nextSide(q.refusal) {
			continue
		}
		return q.finish(err)
	}
}

// quiet says whether the request is one that does not wake the service.
func (h *Handler) quiet(r *http.Request) (bool, error) {
	if len(h.wake) == 0 {
		return false, nil
	}
	match, err := h.wake.AnyMatchWithError(r)
	return !match, err
}

var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)

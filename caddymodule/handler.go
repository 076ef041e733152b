package caddymodule

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

func init() {
	caddy.RegisterModule(Handler{})
}

// Handler reserves a slot on an instance of a service for each request,
// before the next handlers run, and gives it back when they have returned. A
// request for which no slot is free waits in the service's line; if it is the
// first, it wakes the service.
//
// It is followed by `reverse_proxy` with the dynamic upstreams `usher`, which
// sends the request to the instance on which it has its slot. The Caddyfile
// directive makes the two.
type Handler struct {
	// The name of the service. It is defined here, in `define`, or by the
	// app `usher`, or by another handler.
	Service string `json:"service,omitempty"`

	// The definition of the service.
	Define *Service `json:"define,omitempty"`

	// How long one request may wait. Default: 60s.
	WaitTimeout caddy.Duration `json:"wait_timeout,omitempty"`

	// Which requests wake the service. The others never wake it, are no
	// reason to keep it awake, and are served while an instance is ready.
	// Default: all.
	WakeRaw caddyhttp.RawMatcherSets `json:"wake,omitempty" caddy:"namespace=http.matchers"`

	// Whether responses tell in a Server-Timing header how long the request
	// waited, and whether it waited for a start. Default: false.
	ServerTiming bool `json:"server_timing,omitempty"`

	// untraced is 1 if the proxy behind has a transport that does not tell of
	// its connections, as that of FastCGI. It is set while requests run. It
	// stands where there is room for it: there are thousands of handlers.
	untraced uint32

	// The page that people see in their browser while their request waits.
	// Default: none; the browser waits for the answer.
	WaitingPage *WaitingPage `json:"waiting_page,omitempty"`

	wake    caddyhttp.MatcherSets
	service *service
	place   *serverPlace
}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.usher",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision sets up the handler. It touches nothing that runs.
func (h *Handler) Provision(ctx caddy.Context) error {
	if err := checkName(h.Service); err != nil {
		return err
	}
	appAny, err := ctx.App("usher")
	if err != nil {
		return err
	}
	app := appAny.(*App)
	server, _ := ctx.Context.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	h.place = app.placeOf(server)
	if h.Define != nil {
		if err := app.define(ctx, h.Service, h.Define, h.place.name); err != nil {
			return err
		}
		// Its provisioned form is kept, not this one.
		h.Define = nil
	}
	h.service = app.use(h.Service, h.place.name)

	if h.WaitTimeout == 0 {
		h.WaitTimeout = caddy.Duration(defaultWaitTimeout)
	}
	if h.WaitTimeout < 0 {
		return fmt.Errorf("service %s: wait_timeout must be positive, not %v", h.Service, time.Duration(h.WaitTimeout))
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
	if h.WaitingPage != nil {
		if err := h.WaitingPage.provision(ctx, time.Duration(h.WaitTimeout)); err != nil {
			return fmt.Errorf("service %s: waiting_page: %w", h.Service, err)
		}
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

// serverPlace is what the handlers of one HTTP server share.
type serverPlace struct {
	name       string            // for messages
	server     *caddyhttp.Server // nil for handlers that stand elsewhere
	generation *generation
	errors     errorRoutes
	ended      chan struct{} // closed when the server shuts down
}

// placeOf returns what the handlers of server share; it is nil for handlers
// that stand elsewhere. It is called while the configuration is provisioned.
func (a *App) placeOf(server *caddyhttp.Server) *serverPlace {
	place := a.generation.draft.servers[server]
	if place != nil {
		return place
	}
	place = &serverPlace{name: "a handler of the HTTP app", server: server, generation: a.generation, ended: make(chan struct{})}
	a.generation.draft.servers[server] = place
	if server == nil {
		return place
	}
	if name := server.Name(); name != "" {
		place.name = "a handler of the HTTP server " + name
	}
	// On exit, who waits is answered as soon as the server shuts down, which
	// is after shutdown_delay; the server would wait for them.
	hub := a.hub
	end := sync.OnceFunc(func() { close(place.ended) })
	server.RegisterOnShutdown(func() {
		// The server would wait for the streams of open pages, which come
		// again.
		end()
		if caddy.Exiting() {
			hub.exit()
		}
	})
	return place
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	quiet, err := h.quiet(r)
	if err != nil {
		return err
	}
	waitsInBrowser := false
	if h.WaitingPage != nil {
		if listens(r) {
			return h.stream(w, r, quiet)
		}
		if waitsInBrowser, err = h.WaitingPage.wants(r); err != nil {
			return err
		}
	}
	q := newRequest(h, w, r, quiet)
	defer q.end()
	if waitsInBrowser {
		key := keyOf(r)
		q.page, q.key = h.WaitingPage, &key
	}

	if err := q.reserve(); err != nil {
		return q.refuse(err)
	}
	err = next.ServeHTTP(&q.writer, q.forwarded())
	return q.finish(err)
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

package caddymodule

import (
	"fmt"
	"maps"
	"slices"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/intercept"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

// checkFastCGI refuses a readiness check by HTTP for a service whose proxy
// speaks FastCGI. The check can never pass, so no request would get that far.
// A handler does not know the handlers behind it. So this looks at all routes
// of the HTTP app, once they are provisioned.
func (a *App) checkFastCGI() error {
	if !slices.ContainsFunc(slices.Collect(maps.Values(a.generation.Definitions)), (*hub.Definition).ProbesHTTP) {
		return nil
	}
	app, err := a.ctx.AppIfConfigured("http")
	if err != nil {
		return nil //nolint:nilerr // without the HTTP app there are no routes
	}
	servers := app.(*caddyhttp.App).Servers
	for _, name := range slices.Sorted(maps.Keys(servers)) {
		walk := routeWalk{app: a, server: servers[name], invoked: make(map[string]bool)}
		walk.routes(walk.server.Routes, nil)
		if e := walk.server.Errors; e != nil {
			walk.routes(e.Routes, nil)
		}
		if d := walk.mistaken; d != nil {
			return fmt.Errorf("service %s (%s): 'ready http' can never pass, because its instances speak FastCGI and not HTTP (HTTP server %s): use the check tcp, which is the default", walk.service, d.Place, name)
		}
	}
	return nil
}

// routeWalk looks for a service that is probed by HTTP and used by FastCGI.
type routeWalk struct {
	app     *App
	server  *caddyhttp.Server
	invoked map[string]bool // named routes that lead to this place

	service  string
	mistaken *hub.Definition
}

// routes walks through routes. reserving is the handler that has reserved the
// slot of a request that comes to them; nil if that is not known. It returns
// whether a handler in them reserves slots.
func (w *routeWalk) routes(routes caddyhttp.RouteList, reserving *Handler) (reserves bool) {
	for _, route := range routes {
		if w.handlers(route.Handlers, reserving) {
			// Matchers decide whether the next route sees its requests.
			reserves, reserving = true, nil
		}
	}
	return reserves
}

// handlers walks through the handlers of one route.
func (w *routeWalk) handlers(handlers []caddyhttp.MiddlewareHandler, reserving *Handler) (reserves bool) {
	for _, h := range handlers {
		inside := false
		switch h := h.(type) {
		case *Handler:
			reserves, reserving = true, h
			if h.Proxy != nil {
				w.proxy(h.Proxy, h)
				w.responses(h.Proxy.HandleResponse, h)
			}
		case *reverseproxy.Handler:
			w.proxy(h, reserving)
			w.responses(h.HandleResponse, reserving)
		case *intercept.Intercept:
			w.responses(h.HandleResponse, nil)
		case *caddyhttp.Subroute:
			inside = w.routes(h.Routes, reserving)
			if h.Errors != nil {
				w.routes(h.Errors.Routes, nil)
			}
		case *caddyhttp.Invoke:
			if route := w.server.NamedRoutes[h.Name]; route != nil && !w.invoked[h.Name] {
				w.invoked[h.Name] = true
				inside = w.handlers(route.Handlers, reserving)
				delete(w.invoked, h.Name)
			}
		}
		if inside {
			reserves, reserving = true, nil
		}
	}
	return reserves
}

func (w *routeWalk) responses(handlers []caddyhttp.ResponseHandler, reserving *Handler) {
	for _, h := range handlers {
		w.routes(h.Routes, reserving)
	}
}

func (w *routeWalk) proxy(proxy *reverseproxy.Handler, reserving *Handler) {
	if reserving == nil {
		return
	}
	if _, ok := proxy.DynamicUpstreams.(*Upstreams); !ok {
		return
	}
	s, ok := proxy.Transport.(*sender)
	if !ok {
		return
	}
	if _, ok := s.RoundTripper.(*fastcgi.Transport); !ok {
		return
	}
	for _, name := range reserving.services() {
		if d := w.app.generation.Definitions[name]; d != nil && d.ProbesHTTP() && w.mistaken == nil {
			w.service, w.mistaken = name, d
		}
	}
}

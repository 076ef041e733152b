package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
	"github.com/caddy-usher/usher/caddymodule/registryapi"
)

func init() {
	caddy.RegisterModule(new(RegistryHandler))
	httpcaddyfile.RegisterHandlerDirective("usher_registry", parseRegistryHandler)
	httpcaddyfile.RegisterDirectiveOrder("usher_registry", httpcaddyfile.After, "metrics")
}

// RegistryHandler lets people make, change and delete services of their own while
// Caddy runs, at the paths `/services` and below. It does not authenticate clients:
// put it behind what does. Whole definitions are refused here; services are made of the
// templates that the registry allows.
type RegistryHandler struct {
	// Whose services the client may see and change: one placeholder that
	// authentication sets, such as `{http.auth.user.id}`. Requests for which it is
	// empty are refused.
	Owner string `json:"owner"`

	owner string // the placeholder, without its braces
	hub   *hub.Hub
}

// CaddyModule returns the Caddy module information.
func (*RegistryHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.usher_registry",
		New: func() caddy.Module { return new(RegistryHandler) },
	}
}

// Provision checks the handler.
func (h *RegistryHandler) Provision(ctx caddy.Context) error {
	app, err := ctx.App("usher")
	if err != nil {
		return err
	}
	a := app.(*App)
	if a.generation.Made == nil {
		return errors.New("usher_registry: the global option usher has no registry")
	}
	h.hub = a.hub
	h.owner, err = ownerPlaceholder(h.Owner)
	return err
}

// ownerPlaceholder refuses what a client could say of itself.
func ownerPlaceholder(s string) (string, error) {
	if s == "" {
		return "", errors.New("usher_registry: say by 'owner' whose services a client may change, such as {http.auth.user.id}")
	}
	name, err := hub.PlaceholderName(s)
	if err != nil {
		return "", fmt.Errorf("usher_registry: owner: %w", err)
	}
	if strings.HasPrefix(name, chosenByClient) && !strings.HasPrefix(name, "http.request.tls.client.") {
		return "", fmt.Errorf("usher_registry: owner: clients choose %s freely: use what authentication says, such as {http.auth.user.id}", s)
	}
	return name, nil
}

var crossOrigin = http.NewCrossOriginProtection()

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *RegistryHandler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if parts[0] != "services" {
		return next.ServeHTTP(w, r)
	}
	w = answer.Seal(w)
	replacer, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	owner := hub.Evaluate(replacer, h.owner)
	if owner == "" {
		return answer.AnswerError(w, answer.ApiError(http.StatusForbidden, "the request has no owner: it comes without authentication"))
	}
	// A browser asks before it sends any other change for a page of another site.
	if r.Method == http.MethodPost && r.Header.Get("If-Match") == "" && crossOrigin.Check(r) != nil {
		return answer.AnswerError(w, answer.ApiError(http.StatusForbidden, "a page of another site may not change services"))
	}
	if err := registryapi.Serve(w, r, h.hub, registryapi.Caller{Name: owner, Owner: owner}, parts); err != nil {
		return answer.AnswerError(w, err)
	}
	return nil
}

// parseRegistryHandler reads
//
//	usher_registry [<matcher>] {
//		owner <placeholder>
//	}
func parseRegistryHandler(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(RegistryHandler)
	return handler, handler.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile implements caddyfile.Unmarshaler.
func (h *RegistryHandler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		return d.ArgErr()
	}
	seen := make(map[string]bool)
	for d.NextBlock(0) {
		if d.Val() != "owner" {
			return d.Errf("usher_registry has no option '%s': use owner", d.Val())
		}
		if err := option.Once(d, seen, "usher_registry: "); err != nil {
			return err
		}
		if !d.AllArgs(&h.Owner) {
			return d.ArgErr()
		}
	}
	if _, err := ownerPlaceholder(h.Owner); err != nil {
		return d.WrapErr(err)
	}
	return nil
}

var (
	_ caddy.Provisioner           = (*RegistryHandler)(nil)
	_ caddyhttp.MiddlewareHandler = (*RegistryHandler)(nil)
)

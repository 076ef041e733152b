package caddymodule

import (
	"context"
	"fmt"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddytls"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

func init() {
	caddy.RegisterModule(new(Permission))
}

// Permission allows certificates on demand for the hosts of services that were made
// while Caddy runs, and for no others. It asks no server.
type Permission struct {
	// The domains directly below which the name of a service is its host, as in
	// `<service>.apps.example.com` for `apps.example.com`. Give those of the sites
	// that find services by a label of the host. Default: none; only the hosts that
	// definitions of services name are allowed.
	Domains []string `json:"domains,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*Permission) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "tls.permission.usher",
		New: func() caddy.Module { return new(Permission) },
	}
}

// Provision checks the domains.
func (p *Permission) Provision(caddy.Context) error {
	for k, domain := range p.Domains {
		p.Domains[k] = strings.ToLower(strings.Trim(domain, "."))
		if p.Domains[k] == "" || strings.ContainsAny(domain, "*/:{} ") {
			return fmt.Errorf("'%s' is not a domain, such as apps.example.com", domain)
		}
	}
	return nil
}

// CertificateAllowed implements caddytls.OnDemandPermission.
func (p *Permission) CertificateAllowed(_ context.Context, host string) error {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if h := hub.Latest.Load(); h != nil {
		if h.FindHost(host) != nil {
			return nil
		}
		if name, domain, ok := strings.Cut(host, "."); ok {
			for _, d := range p.Domains {
				if d == domain && h.Find(name) != nil {
					return nil
				}
			}
		}
	}
	return fmt.Errorf("%w: no service has the host %s", caddytls.ErrPermissionDenied, host)
}

// UnmarshalCaddyfile reads
//
//	permission usher [<domain...>]
func (p *Permission) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	p.Domains = d.RemainingArgs()
	if d.NextBlock(0) {
		return d.Errf("permission usher has no options: give the domains as arguments")
	}
	return nil
}

var (
	_ caddytls.OnDemandPermission = (*Permission)(nil)
	_ caddy.Provisioner           = (*Permission)(nil)
	_ caddyfile.Unmarshaler       = (*Permission)(nil)
)

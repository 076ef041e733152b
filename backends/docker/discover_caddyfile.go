package docker

import (
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// UnmarshalCaddyfile sets up the discovery from Caddyfile tokens. Syntax:
//
//	discover docker {
//		host      <url>
//		ca_file   <path>
//		cert_file <path>
//		key_file  <path>
//	}
func (d *Discoverer) UnmarshalCaddyfile(t *caddyfile.Dispenser) error {
	t.Next() // the name of the platform
	if t.NextArg() {
		return t.Err("discover docker takes no arguments, but a block: discover docker { host <url> }")
	}
	b, seen := new(Backend), make(map[string]bool)
	for nesting := t.Nesting(); t.NextBlock(nesting); {
		option := t.Val()
		ok, err := b.unmarshalAccess(t, seen)
		if err != nil {
			return err
		}
		if !ok {
			return t.Errf("unrecognized option '%s' of discover docker; it knows host, ca_file, cert_file, key_file", option)
		}
	}
	d.Host, d.CAFile, d.CertFile, d.KeyFile = b.Host, b.CAFile, b.CertFile, b.KeyFile
	if d.Host == "" || strings.Contains(d.Host, "{") {
		return nil // the host may be a shared option: Provision knows
	}
	if _, err := d.resolve(nil); err != nil {
		return t.Errf("discover docker: %v", err)
	}
	return nil
}

// Interface guard.
var _ caddyfile.Unmarshaler = (*Discoverer)(nil)

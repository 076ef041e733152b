package marathon

import "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

// UnmarshalCaddyfile sets up the discovery from Caddyfile tokens. Syntax:
//
//	discover marathon {
//		url        <url...>
//		basic_auth <user> <password>
//		token_file <path>
//		ca_file    <path>
//	}
func (d *Discoverer) UnmarshalCaddyfile(t *caddyfile.Dispenser) error {
	t.Next() // the name of the platform
	if t.NextArg() {
		return t.Err("discover marathon takes no arguments, but a block: discover marathon { url <url...> }")
	}
	b, seen := new(Backend), make(map[string]bool)
	for nesting := t.Nesting(); t.NextBlock(nesting); {
		option := t.Val()
		known, err := b.unmarshalAccess(t, seen)
		if err != nil {
			return err
		}
		if !known {
			return t.Errf("unrecognized option '%s' of discover marathon; it knows url, basic_auth, token_file, ca_file", option)
		}
	}
	if seen["basic_auth"] && seen["token_file"] {
		return t.Err("give basic_auth or token_file, not both")
	}
	d.URLs, d.BasicAuth, d.TokenFile, d.CAFile = b.URLs, b.BasicAuth, b.TokenFile, b.CAFile
	return nil
}

// Interface guard.
var _ caddyfile.Unmarshaler = (*Discoverer)(nil)

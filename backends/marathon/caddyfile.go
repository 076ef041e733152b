package marathon

import (
	"strconv"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// UnmarshalCaddyfile sets up the backend from Caddyfile tokens. Syntax:
//
//	backend marathon <app-id> {
//		url        <url...>
//		port_index <n>
//		port_name  <name>
//		basic_auth <user> <password>
//		token_file <path>
//		ca_file    <path>
//	}
func (b *Backend) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the backend
	if !d.AllArgs(&b.App) {
		return d.Err("backend marathon needs the id of one app: backend marathon <app-id>")
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		known, err := b.unmarshalAccess(d, seen)
		switch {
		case err != nil:
			return err
		case known:
			continue
		case option == "port_index":
			value, err := one(d, seen)
			if err != nil {
				return err
			}
			if b.PortIndex, err = strconv.Atoi(value); err != nil || b.PortIndex < 0 || b.PortIndex > maxPortIndex {
				return d.Errf("port_index %q: ports are counted from 0 to at most %d", value, maxPortIndex)
			}
		case option == "port_name":
			if b.PortName, err = one(d, seen); err != nil {
				return err
			}
		default:
			return d.Errf("unrecognized option '%s' of backend marathon; it knows url, port_index, port_name, basic_auth, token_file, ca_file", option)
		}
	}
	switch {
	case seen["port_index"] && seen["port_name"]:
		return d.Err("give port_index or port_name, not both")
	case seen["basic_auth"] && seen["token_file"]:
		return d.Err("give basic_auth or token_file, not both")
	}
	return nil
}

// MergeDefaults fills in what the global option says: nothing if this service
// is on a cluster of its own, since credentials are for the cluster that they
// were given with; and no second kind of credentials.
func (b *Backend) MergeDefaults(shared any) {
	s, ok := shared.(*Backend)
	if !ok || len(b.URLs) > 0 {
		return
	}
	b.URLs = s.URLs
	if b.BasicAuth == nil && b.TokenFile == "" {
		b.BasicAuth, b.TokenFile = s.BasicAuth, s.TokenFile
	}
	if b.CAFile == "" {
		b.CAFile = s.CAFile
	}
}

// UnmarshalCaddyfileDefaults reads the global option `marathon` of Usher: what
// services on Marathon use unless they say otherwise. Syntax:
//
//	marathon {
//		url        <url...>
//		basic_auth <user> <password>
//		token_file <path>
//		ca_file    <path>
//	}
func (b *Backend) UnmarshalCaddyfileDefaults(d *caddyfile.Dispenser) error {
	d.Next() // the name of the option
	if d.NextArg() {
		return d.Err("marathon takes no arguments, but a block: marathon { url <url...> }")
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		known, err := b.unmarshalAccess(d, seen)
		if err != nil {
			return err
		}
		if !known {
			return d.Errf("unrecognized option '%s' of marathon; it knows url, basic_auth, token_file, ca_file", option)
		}
	}
	if seen["basic_auth"] && seen["token_file"] {
		return d.Err("give basic_auth or token_file, not both")
	}
	return nil
}

// unmarshalAccess reads an option that says how to talk to the cluster. It
// returns false if this is another one.
func (b *Backend) unmarshalAccess(d *caddyfile.Dispenser, seen map[string]bool) (bool, error) {
	var err error
	switch d.Val() {
	case "url":
		// Several lines are as good as several arguments.
		urls := d.RemainingArgs()
		if len(urls) == 0 {
			return true, d.Err("url takes one or more base URLs, such as http://master:8080")
		}
		b.URLs = append(b.URLs, urls...)
	case "basic_auth":
		if seen["basic_auth"] {
			return true, d.Err("basic_auth is given twice")
		}
		seen["basic_auth"] = true
		auth := new(BasicAuth)
		if !d.AllArgs(&auth.User, &auth.Password) {
			return true, d.Err("basic_auth takes a user and a password: basic_auth <user> <password>")
		}
		b.BasicAuth = auth
	case "token_file":
		b.TokenFile, err = one(d, seen)
	case "ca_file":
		b.CAFile, err = one(d, seen)
	default:
		return false, nil
	}
	return true, err
}

// one reads the only value of an option that may be given once.
func one(d *caddyfile.Dispenser, seen map[string]bool) (string, error) {
	option := d.Val()
	if seen[option] {
		return "", d.Errf("%s is given twice", option)
	}
	seen[option] = true
	var value string
	if !d.AllArgs(&value) || value == "" {
		return "", d.Errf("%s takes exactly one value", option)
	}
	return value, nil
}

// Interface guard.
var _ caddyfile.Unmarshaler = (*Backend)(nil)

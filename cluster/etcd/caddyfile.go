package etcd

import (
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// UnmarshalCaddyfile sets up the coordinator from Caddyfile tokens. Syntax:
//
//	coordinator etcd <url...> {
//		user    <name> <password>
//		cert    <cert_file> <key_file>
//		ca_file <path>
//		prefix  <key>
//	}
func (c *Coordinator) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the coordinator
	c.URLs = d.RemainingArgs()
	if len(c.URLs) == 0 {
		return d.Err("coordinator etcd needs the URL of each member: coordinator etcd <url...>, for example http://10.0.0.1:2379")
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] {
			return d.Errf("%s is given twice", option)
		}
		seen[option] = true
		switch option {
		case "user":
			if !d.AllArgs(&c.User, &c.Password) {
				return d.Err("user takes a name and a password: user <name> <password>")
			}
		case "cert":
			if !d.AllArgs(&c.CertFile, &c.KeyFile) {
				return d.Err("cert takes two files: cert <cert_file> <key_file>")
			}
		case "ca_file":
			if !d.AllArgs(&c.CAFile) {
				return d.Err("ca_file takes exactly one value")
			}
		case "prefix":
			if !d.AllArgs(&c.Prefix) {
				return d.Err("prefix takes exactly one value")
			}
		default:
			return d.Errf("unrecognized option '%s' of coordinator etcd; it knows user, cert, ca_file, prefix", option)
		}
	}
	return nil
}

// Interface guard.
var _ caddyfile.Unmarshaler = (*Coordinator)(nil)

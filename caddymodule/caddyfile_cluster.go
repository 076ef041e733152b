package caddymodule

import (
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
)

// parseCluster reads the option `cluster`. Syntax:
//
//	cluster [<name>] {
//		coordinator <type> [<arguments>] { options }
//		listen <address>
//		advertise <host>:<port>
//		secret <value>
//		tls <certificate> <key> <authority>
//		lease <duration>
//		lost_after <duration>|replace
//		isolated stop|keep
//		fair <duration>
//	}
func parseCluster(d *caddyfile.Dispenser) (*hub.ClusterConfig, error) {
	c := &hub.ClusterConfig{}
	if d.NextArg() {
		c.Name = d.Val()
	}
	if d.NextArg() {
		return nil, d.ArgErr()
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := option.Once(d, seen, "cluster: "); err != nil {
			return nil, err
		}
		if err := parseClusterOption(d, c); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func parseClusterOption(d *caddyfile.Dispenser, c *hub.ClusterConfig) (err error) {
	text := map[string]*string{"listen": &c.Listen, "advertise": &c.Advertise, "secret": &c.Secret, "isolated": &c.Isolated}
	duration := map[string]*caddy.Duration{"lease": &c.Lease, "lost_after": &c.LostAfter, "fair": &c.Fair}
	name := d.Val()
	switch {
	case text[name] != nil:
		if !d.AllArgs(text[name]) {
			return d.ArgErr()
		}
	case duration[name] != nil:
		var value string
		if !d.AllArgs(&value) {
			return d.ArgErr()
		}
		if name == "lost_after" && value == "replace" {
			c.Replace = true
			return nil
		}
		parsed, err := caddy.ParseDuration(value)
		if err != nil || parsed <= 0 || parsed > 24*time.Hour {
			return d.Errf("cluster: %s: '%s' is not a duration of up to a day", name, value)
		}
		*duration[name] = caddy.Duration(parsed)
	case name == "tls":
		c.TLS = &hub.ClusterTLS{}
		if !d.AllArgs(&c.TLS.Certificate, &c.TLS.Key, &c.TLS.Authority) {
			return d.ArgErr()
		}
	case name == "coordinator":
		c.CoordinatorRaw, err = parseCoordinator(d)
		return err
	default:
		return d.Errf("cluster: unknown option '%s': use coordinator, listen, advertise, secret, tls, lease, lost_after, isolated or fair", name)
	}
	return nil
}

func parseCoordinator(d *caddyfile.Dispenser) ([]byte, error) {
	if !d.NextArg() {
		return nil, d.ArgErr()
	}
	name := d.Val()
	unm, err := caddyfile.UnmarshalModule(d, "usher.coordinators."+name)
	if err != nil {
		return nil, err
	}
	return caddyconfig.JSONModuleObject(unm, "type", name, nil), nil
}

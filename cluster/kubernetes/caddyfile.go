package kubernetes

import (
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/kubeaccess"
)

// UnmarshalCaddyfile sets up the coordinator from Caddyfile tokens. Syntax:
//
//	coordinator kubernetes {
//		namespace  <name>
//		name       <name>
//		kubeconfig <path>
//		context    <name>
//	}
func (c *Coordinator) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the coordinator
	if d.NextArg() {
		return d.Err("coordinator kubernetes takes a block, and no arguments")
	}
	fields := map[string]*string{"namespace": &c.Namespace, "name": &c.Name, "kubeconfig": &c.Kubeconfig, "context": &c.Context}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		field, ok := fields[option]
		if !ok {
			return d.Errf("unrecognized option '%s' of coordinator kubernetes; it knows namespace, name, kubeconfig, context", option)
		}
		if *field != "" {
			return d.Errf("%s is given twice", option)
		}
		if !d.AllArgs(field) || *field == "" {
			return d.Errf("%s takes exactly one value", option)
		}
		if strings.Contains(*field, "{") {
			continue // known when the configuration is loaded
		}
		var err error
		switch option {
		case "namespace":
			err = kubeaccess.CheckNamespace(*field)
		case "name":
			err = checkName(*field)
		}
		if err != nil {
			return d.WrapErr(err)
		}
	}
	return nil
}

// Interface guard.
var _ caddyfile.Unmarshaler = (*Coordinator)(nil)

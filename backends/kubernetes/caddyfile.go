package kubernetes

import (
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/kubeaccess"
)

// UnmarshalCaddyfile sets up the backend from Caddyfile tokens. Syntax:
//
//	backend kubernetes <resource>/<name> {
//		namespace  <name>
//		port       <name|number>
//		kubeconfig <path>
//		context    <name>
//	}
func (b *Backend) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the backend
	if !d.AllArgs(&b.Resource) {
		return d.Err("backend kubernetes needs one workload: backend kubernetes <resource>/<name>, for example deployment/web")
	}
	if !hasPlaceholder(b.Resource) {
		if _, err := parseWorkload(b.Resource); err != nil {
			return d.WrapErr(err)
		}
	}
	return b.unmarshalBlock(d, "backend kubernetes", map[string]*string{
		"namespace": &b.Namespace, "port": &b.Port, "kubeconfig": &b.Kubeconfig, "context": &b.Context,
	}, "namespace, port, kubeconfig, context")
}

// UnmarshalCaddyfileDefaults reads the global option `kubernetes`, which says
// what services leave out. Syntax:
//
//	kubernetes {
//		kubeconfig <path>
//		context    <name>
//		namespace  <name>
//	}
func (b *Backend) UnmarshalCaddyfileDefaults(d *caddyfile.Dispenser) error {
	d.Next() // the name of the option
	if d.NextArg() {
		return d.Err("the global option kubernetes takes a block, and no arguments")
	}
	return b.unmarshalBlock(d, "the global option kubernetes", map[string]*string{
		"kubeconfig": &b.Kubeconfig, "context": &b.Context, "namespace": &b.Namespace,
	}, "kubeconfig, context, namespace")
}

// unmarshalBlock reads a block of options with one value each. It refuses,
// where the line is still known, what Provision would refuse later.
func (b *Backend) unmarshalBlock(d *caddyfile.Dispenser, place string, fields map[string]*string, names string) error {
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		field, ok := fields[option]
		if !ok {
			return d.Errf("unrecognized option '%s' of %s; it knows %s", option, place, names)
		}
		if *field != "" {
			return d.Errf("%s is given twice", option)
		}
		var value string
		if !d.AllArgs(&value) || value == "" {
			return d.Errf("%s takes exactly one value", option)
		}
		*field = value
		if hasPlaceholder(value) {
			continue
		}
		var err error
		switch option {
		case "namespace":
			err = kubeaccess.CheckNamespace(value)
		case "port":
			err = checkPort(value)
		}
		if err != nil {
			return d.WrapErr(err)
		}
	}
	return nil
}

// hasPlaceholder tells whether the value is only known when the configuration
// is loaded.
func hasPlaceholder(value string) bool {
	for _, c := range value {
		if c == '{' {
			return true
		}
	}
	return false
}

// Interface guard.
var _ caddyfile.Unmarshaler = (*Backend)(nil)

package kubernetes

import (
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/kubeaccess"
)

// UnmarshalCaddyfile sets up the backend from Caddyfile tokens. Syntax:
//
//	backend kubernetes <resource>/<name> {
//		namespace  <name>
//		port       <name|number>
//		deadline   <duration>
//		ttl        <duration>
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
	}, map[string]*caddy.Duration{"deadline": &b.Deadline, "ttl": &b.TTL}, "namespace, port, deadline, ttl, kubeconfig, context")
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
	}, nil, "kubeconfig, context, namespace")
}

// unmarshalBlock reads a block of options with one value each. It refuses,
// where the line is still known, what Provision would refuse later.
func (b *Backend) unmarshalBlock(d *caddyfile.Dispenser, place string, fields map[string]*string, durations map[string]*caddy.Duration, names string) error {
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if field, ok := durations[option]; ok {
			if err := unmarshalDuration(d, option, field); err != nil {
				return err
			}
			continue
		}
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

func unmarshalDuration(d *caddyfile.Dispenser, option string, field *caddy.Duration) error {
	if *field != 0 {
		return d.Errf("%s is given twice", option)
	}
	var value string
	if !d.AllArgs(&value) {
		return d.Errf("%s takes exactly one value", option)
	}
	v, err := caddy.ParseDuration(value)
	if err != nil || v < time.Second {
		return d.Errf("%s %s is no duration of at least 1s, such as 10m", option, value)
	}
	*field = caddy.Duration(v)
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

package kubernetes

import (
	"slices"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/kubeaccess"
)

// UnmarshalCaddyfile sets up the discovery from Caddyfile tokens. Syntax:
//
//	discover kubernetes {
//		namespace      <name...>
//		all_namespaces
//		resource       <kind...>
//		kubeconfig     <path>
//		context        <name>
//	}
func (d *Discoverer) UnmarshalCaddyfile(t *caddyfile.Dispenser) error {
	t.Next() // the name of the platform
	if t.NextArg() {
		return t.Err("discover kubernetes takes no arguments, but a block: discover kubernetes { namespace <name...> }")
	}
	for nesting := t.Nesting(); t.NextBlock(nesting); {
		option := t.Val()
		var err error
		switch option {
		case "namespace":
			err = unmarshalNames(t, &d.Namespaces, kubeaccess.CheckNamespace)
		case "all_namespaces":
			if d.AllNamespaces || t.NextArg() {
				return t.Err("all_namespaces is given once, and takes no value")
			}
			d.AllNamespaces = true
		case "resource":
			err = unmarshalNames(t, &d.Resources, func(kind string) error {
				_, err := parseKind(kind)
				return err
			})
		case "kubeconfig":
			err = unmarshalOne(t, &d.Kubeconfig)
		case "context":
			err = unmarshalOne(t, &d.Context)
		default:
			return t.Errf("unrecognized option '%s' of discover kubernetes; it knows namespace, all_namespaces, resource, kubeconfig, context", option)
		}
		if err != nil {
			return err
		}
	}
	switch {
	case d.AllNamespaces && len(d.Namespaces) > 0:
		return t.Err("give namespace or all_namespaces, not both")
	case !d.AllNamespaces && len(d.Namespaces) == 0:
		return t.Err("discover kubernetes needs the namespaces whose workloads may be services: namespace <name...>, or all_namespaces")
	}
	return nil
}

// unmarshalNames reads one or more names. Several lines are as good as several
// values.
func unmarshalNames(t *caddyfile.Dispenser, into *[]string, check func(string) error) error {
	option, names := t.Val(), t.RemainingArgs()
	if len(names) == 0 || slices.Contains(names, "") {
		return t.Errf("%s takes one or more names", option)
	}
	for _, name := range names {
		if hasPlaceholder(name) {
			continue
		}
		if err := check(name); err != nil {
			return t.WrapErr(err)
		}
	}
	*into = append(*into, names...)
	return nil
}

// unmarshalOne reads an option with one value.
func unmarshalOne(t *caddyfile.Dispenser, into *string) error {
	option := t.Val()
	if *into != "" {
		return t.Errf("%s is given twice", option)
	}
	if !t.AllArgs(into) || *into == "" {
		return t.Errf("%s takes exactly one value", option)
	}
	return nil
}

// Interface guard.
var _ caddyfile.Unmarshaler = (*Discoverer)(nil)

package caddymodule

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
	"github.com/caddy-usher/usher/registry"
)

// ParseMade reads the definitions of services that are to be made while Caddy runs
// from a text in the form of a Caddyfile, and returns them as the JSON that the API
// takes, by the names of the services. The options of a service are those of the
// global option. filename is for errors, and where imports are looked for. The
// syntax:
//
//	service <name> {
//		template <name>
//		param <name> <value>
//		<or options of a service>
//		hosts <host...>
//		fallback <duration>|off
//	}
func ParseMade(filename string, text []byte) (map[string]json.RawMessage, error) {
	blocks, err := caddyfile.Parse(filename, text)
	if err != nil {
		return nil, err
	}
	all := make(map[string]json.RawMessage)
	for _, b := range blocks {
		if len(b.Keys) == 0 {
			return nil, fmt.Errorf("%s: a block of global options cannot stand here: only 'service <name>' can", filename)
		}
		place := b.Keys[0]
		if b.IsNamedRoute || place.Text != "service" || len(b.Keys) != 2 {
			return nil, atToken(place).Errf("only 'service <name>' can stand here")
		}
		name := b.Keys[1].Text
		if err := registry.CheckName(name); err != nil {
			return nil, atToken(place).WrapErr(err)
		}
		if all[name] != nil {
			return nil, atToken(place).Errf("service %s is given twice", name)
		}
		made := madeDefinition{seen: make(map[string]bool)}
		for _, s := range b.Segments {
			d := caddyfile.NewDispenser(s)
			d.Next()
			if err := made.read(d); err != nil {
				return nil, fmt.Errorf("service %s: %w", name, err)
			}
		}
		if all[name], err = made.encode(); err != nil {
			return nil, atToken(place).Errf("service %s: %v", name, err)
		}
	}
	return all, nil
}

// madeDefinition is a definition while it is read.
type madeDefinition struct {
	registry.Definition
	service hub.ServiceConfig
	own     string // the first option of a service that is given
	seen    map[string]bool
}

// read reads one option.
func (m *madeDefinition) read(d *caddyfile.Dispenser) error {
	if name := d.Val(); serviceOptions[name] != nil {
		if m.own == "" {
			m.own = name
		}
		return readOption(&m.service, d, m.seen)
	}
	if d.Val() == "param" {
		return m.readParam(d)
	}
	if err := option.Once(d, m.seen, ""); err != nil {
		return err
	}
	switch d.Val() {
	case "template":
		if !d.AllArgs(&m.Template) {
			return d.ArgErr()
		}
	case "hosts":
		if m.Hosts = d.RemainingArgs(); len(m.Hosts) == 0 {
			return d.ArgErr()
		}
	case "fallback":
		return m.readFallback(d)
	default:
		return d.Errf("unknown option '%s': use template, param, hosts, fallback, or the options of a service", d.Val())
	}
	return nil
}

func (m *madeDefinition) readParam(d *caddyfile.Dispenser) error {
	var name, value string
	if !d.AllArgs(&name, &value) {
		return d.ArgErr()
	}
	if _, ok := m.Params[name]; ok {
		return d.Errf("param %s is given twice", name)
	}
	if m.Params == nil {
		m.Params = make(map[string]string)
	}
	m.Params[name] = value
	return nil
}

func (m *madeDefinition) readFallback(d *caddyfile.Dispenser) error {
	var value string
	if !d.AllArgs(&value) {
		return d.ArgErr()
	}
	if m.Fallback = value; value == registry.FallbackOff {
		return nil
	}
	after, err := parseDuration(d, "fallback", value)
	if err == nil && after == 0 {
		return d.Errf("fallback must be longer than 0; 'off' keeps a new definition even if it cannot be started")
	}
	m.Fallback = time.Duration(after).String()
	return err
}

// encode returns the definition as JSON.
func (m *madeDefinition) encode() (json.RawMessage, error) {
	switch {
	case m.Template != "" && m.own != "":
		return nil, fmt.Errorf("it has a template, and the option %s of a service: a template has the options already", m.own)
	case m.Template == "" && m.Params != nil:
		return nil, fmt.Errorf("it has params, and no template that takes them")
	case m.Template == "" && m.own == "":
		return nil, fmt.Errorf("it has neither a template nor a backend")
	case m.Template == "":
		if err := m.service.WithDefaults().Validate(); err != nil {
			return nil, err
		}
		if len(m.service.BackendRaw) == 0 {
			return nil, fmt.Errorf("it has no backend: say what runs its instances")
		}
		var err error
		if m.Service, err = json.Marshal(m.service); err != nil {
			return nil, err
		}
	}
	return json.Marshal(m.Definition)
}

package caddymodule

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

// DefaultsUnmarshaler is implemented by backend modules that have options
// which many services share, such as how a platform is reached. They stand
// once in the global option `usher`, in a block with the backend's name, and
// hold for every service of that backend that does not give them itself.
type DefaultsUnmarshaler interface {
	// UnmarshalCaddyfileDefaults reads such a block, and nothing but those
	// options, into the module. The current token is the backend's name.
	UnmarshalCaddyfileDefaults(d *caddyfile.Dispenser) error
}

// DefaultsMerger is implemented by those of them whose options do not stand for
// themselves: credentials belong to the address that they were given with. For
// all others, an option that a service does not give is the shared one.
type DefaultsMerger interface {
	// MergeDefaults fills in what of shared, a module of the same type, holds
	// for this one as well.
	MergeDefaults(shared any)
}

// backendDefaults are the shared options, by the names of backends.
type backendDefaults map[string]json.RawMessage

// isBackend says whether there is a backend of that name.
func isBackend(name string) bool {
	_, err := caddy.GetModule("usher.backends." + name)
	return err == nil
}

// appFields is App without its methods: what encoding/json sees.
type appFields App

// UnmarshalJSON reads the app. Every key that is not a field of its own is
// the name of a backend, with its shared options.
func (a *App) UnmarshalJSON(b []byte) error {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	defaults := backendDefaults{}
	for key, raw := range all {
		if isBackend(key) {
			defaults[key] = raw
			delete(all, key)
		}
	}
	own, err := json.Marshal(all)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(own))
	dec.DisallowUnknownFields()
	if err := dec.Decode((*appFields)(a)); err != nil {
		return err
	}
	if len(defaults) > 0 {
		a.backends = defaults
	}
	return nil
}

// MarshalJSON writes the app as UnmarshalJSON reads it.
func (a App) MarshalJSON() ([]byte, error) {
	own, err := json.Marshal(appFields(a))
	if err != nil || len(a.backends) == 0 {
		return own, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(own, &all); err != nil {
		return nil, err
	}
	maps.Copy(all, a.backends)
	return json.Marshal(all)
}

// fill adds the shared options that raw, the configuration of a backend, does
// not give itself.
func (d backendDefaults) fill(raw json.RawMessage) (json.RawMessage, error) {
	if len(d) == 0 {
		return raw, nil
	}
	name := hub.InlineKey(raw, "type")
	shared, ok := d[name]
	if !ok {
		return raw, nil
	}
	info, err := caddy.GetModule("usher.backends." + name)
	if err != nil {
		return nil, err
	}
	var own, more map[string]json.RawMessage
	if err := json.Unmarshal(raw, &own); err != nil {
		return nil, err
	}
	if own == nil {
		return raw, nil
	}
	if m, ok := info.New().(DefaultsMerger); ok {
		delete(own, "type")
		return merged(m, name, own, info.New(), shared)
	}
	if err := json.Unmarshal(shared, &more); err != nil {
		return nil, fmt.Errorf("the shared options of the backend %s: %w", name, err)
	}
	for key, value := range more {
		if _, given := own[key]; !given {
			own[key] = value
		}
	}
	return json.Marshal(own)
}

// merged lets m, which is empty, be the service's own options, and adds what it
// takes of the shared ones.
func merged(m DefaultsMerger, name string, own map[string]json.RawMessage, with caddy.Module, shared json.RawMessage) (json.RawMessage, error) {
	raw, err := json.Marshal(own)
	if err != nil {
		return nil, err
	}
	if err := caddy.StrictUnmarshalJSON(raw, m); err != nil {
		return nil, err
	}
	if err := caddy.StrictUnmarshalJSON(shared, with); err != nil {
		return nil, fmt.Errorf("the shared options of the backend %s: %w", name, err)
	}
	m.MergeDefaults(with)
	return caddyconfig.JSONModuleObject(m, "type", name, nil), nil
}

// parseDefaults reads the block of shared options of a backend. It returns
// false if the current token does not begin one.
func (a *App) parseDefaults(d *caddyfile.Dispenser) (bool, error) {
	name := d.Val()
	info, err := caddy.GetModule("usher.backends." + name)
	if err != nil {
		// No backend: it is not for this function to say what else it is.
		return false, nil //nolint:nilerr // see above
	}
	mod := info.New()
	unm, ok := mod.(DefaultsUnmarshaler)
	if !ok {
		return true, d.Errf("the backend %s has no options that services share", name)
	}
	if _, given := a.backends[name]; given {
		return true, d.Errf("%s is given twice", name)
	}
	if err := unm.UnmarshalCaddyfileDefaults(d.NewFromNextSegment()); err != nil {
		return true, err
	}
	if a.backends == nil {
		a.backends = backendDefaults{}
	}
	a.backends[name] = caddyconfig.JSON(mod, nil)
	return true, nil
}

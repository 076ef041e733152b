package registry

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// masked is what stands in place of a secret.
const masked = "***"

// Shown returns a record that operators and owners may see: secrets are "***" in all of
// its revisions. Names, numbers and ETags are as in r.
func (r *Registry) Shown(record *Record) *Record {
	rules := r.rules.Load()
	shown := *record
	shown.Revisions = slices.Clone(record.Revisions)
	for i := range shown.Revisions {
		d := &shown.Revisions[i].Definition
		*d = rules.shown(*d)
	}
	return &shown
}

// shown returns d without secrets. A service that cannot be masked any more, because its
// backend is not there, is a secret as a whole.
func (r *Rules) shown(d Definition) Definition {
	secret := r.secretParams(&d)
	if len(secret) > 0 {
		d.Params = maps.Clone(d.Params)
		for name := range d.Params {
			if secret[name] {
				d.Params[name] = masked
			}
		}
	}
	if d.Service != nil {
		service, err := r.mask(d.Service)
		if err != nil {
			service = masked
		}
		d.Service = render(service)
	}
	return d
}

// mask returns a service as a JSON value, with secrets masked. All else is as it was
// written, whatever Mask makes of it: a patch is one of this value.
func (r *Rules) mask(service json.RawMessage) (any, error) {
	value, err := parse(service)
	if err != nil || r.Mask == nil {
		return value, err
	}
	if service, err = r.Mask(service); err != nil {
		return nil, err
	}
	hidden, err := parse(service)
	if err != nil {
		return nil, err
	}
	return overlay(value, hidden), nil
}

// overlay returns value with what hidden masks. A text that hidden does not have is
// masked, too.
func overlay(value, hidden any) any {
	if text, ok := hidden.(string); ok && strings.Contains(text, masked) {
		return hidden
	}
	switch v := value.(type) {
	case string:
		if hidden == nil && v != "" {
			return masked
		}
	case []any:
		list := make([]any, len(v))
		for i, item := range v {
			list[i] = overlay(item, at(hidden, []string{strconv.Itoa(i)}))
		}
		return list
	case map[string]any:
		object := make(map[string]any, len(v))
		for key, item := range v {
			object[key] = overlay(item, at(hidden, []string{key}))
		}
		return object
	}
	return value
}

// secretParams returns which of d's params are secret: those that stand where the
// service is masked. Values that the template itself names are not. If the service cannot
// be masked, all are.
func (r *Rules) secretParams(d *Definition) map[string]bool {
	if len(d.Params) == 0 || r.Mask == nil {
		return nil
	}
	secret := make(map[string]bool)
	t := r.Templates[d.Template]
	if t == nil {
		for name := range d.Params {
			secret[name] = true
		}
		return secret
	}
	service, hidden := r.bothForms(d)
	for name := range d.Params {
		p, ok := t.params[name]
		if ok && p.pattern == nil {
			continue
		}
		secret[name] = !ok || hidden == nil || slices.ContainsFunc(p.paths, func(path []string) bool {
			return !reflect.DeepEqual(at(service, path), at(hidden, path))
		})
	}
	return secret
}

// bothForms returns what d describes, and the same masked; nil if that cannot be done.
func (r *Rules) bothForms(d *Definition) (service, hidden any) {
	raw, err := r.resolve(d)
	if err != nil {
		return nil, nil
	}
	service, err = parse(raw)
	if err != nil {
		return nil, nil
	}
	if hidden, err = r.mask(raw); err != nil {
		return nil, nil
	}
	return service, hidden
}

// at returns what is at a path of a JSON value, or nil.
func at(value any, path []string) any {
	for _, key := range path {
		switch v := value.(type) {
		case map[string]any:
			value = v[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(v) {
				return nil
			}
			value = v[i]
		default:
			return nil
		}
	}
	return value
}

// unmask returns d with "***" replaced by what old has there. It is Invalid if old has
// nothing there that is shown as "***", or if d would show it.
func (r *Rules) unmask(d Definition, old *Record) (Definition, error) {
	var before Definition
	if old != nil {
		before = old.Current().Definition
	}
	var err error
	if d.Service == nil {
		d.Params, err = r.unmaskParams(&d, &before)
	} else if strings.Contains(string(d.Service), masked) {
		d.Service, err = r.unmaskService(d.Service, &before)
	}
	return d, err
}

func noSecret(place string) error {
	return refuse(Invalid, "%s is '***', which keeps a secret, but no secret is stored there; give the value itself", place)
}

func (r *Rules) unmaskParams(d, before *Definition) (map[string]string, error) {
	var params map[string]string
	for _, name := range sortedKeys(d.Params) {
		if d.Params[name] != masked {
			continue
		}
		value, ok := before.Params[name]
		if !ok || before.Template != d.Template || !r.secretParams(before)[name] {
			return nil, noSecret("the param " + name)
		}
		if params == nil {
			params = maps.Clone(d.Params)
		}
		params[name] = value
	}
	if params == nil {
		return d.Params, nil
	}
	return params, nil
}

func (r *Rules) unmaskService(service json.RawMessage, before *Definition) (json.RawMessage, error) {
	value, err := parse(service)
	if err != nil {
		return nil, refuse(Invalid, "the service is not valid JSON: %w", err)
	}
	u := unmasker{}
	var stored, hidden any
	if before.Service != nil {
		stored, hidden = r.bothForms(before)
	}
	value, err = u.replace(value, stored, hidden, nil)
	if err != nil {
		return nil, err
	}
	if len(u.kept) == 0 {
		return service, nil
	}
	// A secret that moves to where it is not masked could be read there.
	whole := render(value)
	hidden, err = r.mask(whole)
	if err != nil {
		return nil, refuse(Invalid, "the service cannot be made: %w", err)
	}
	for _, path := range u.kept {
		if reflect.DeepEqual(at(hidden, path), at(value, path)) {
			return nil, noSecret("service." + strings.Join(path, "."))
		}
	}
	return whole, nil
}

// unmasker replaces what is masked by what is stored.
type unmasker struct{ kept [][]string }

func (u *unmasker) replace(value, stored, hidden any, path []string) (any, error) {
	if text, ok := value.(string); ok && strings.Contains(text, masked) {
		if hidden != nil && reflect.DeepEqual(value, hidden) && !reflect.DeepEqual(stored, hidden) {
			u.kept = append(u.kept, path)
			return stored, nil
		}
		if text == masked {
			return nil, noSecret("service." + strings.Join(path, "."))
		}
		return value, nil
	}
	switch v := value.(type) {
	case []any:
		list := make([]any, len(v))
		for i, item := range v {
			key := []string{strconv.Itoa(i)}
			var err error
			if list[i], err = u.replace(item, at(stored, key), at(hidden, key), append(slices.Clip(path), key[0])); err != nil {
				return nil, err
			}
		}
		return list, nil
	case map[string]any:
		object := make(map[string]any, len(v))
		for _, name := range sortedKeys(v) {
			key := []string{name}
			var err error
			if object[name], err = u.replace(v[name], at(stored, key), at(hidden, key), append(slices.Clip(path), name)); err != nil {
				return nil, err
			}
		}
		return object, nil
	}
	return value, nil
}

package caddymodule

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/caddy-usher/usher/scaler"
)

// definition is the provisioned form of a Service.
type definition struct {
	*options
	place   string
	backend scaler.Backend
}

// options are the provisioned form of all that a Service says beside its
// backend. They do not change: the services of a configuration that say the
// same share them, and most say nothing.
type options struct {
	service    Service // every option set; without the raw modules
	policy     scaler.Policy
	policyName string
	settings   scaler.Settings
	live       liveOptions
}

// newDefinition checks s and loads its modules. Equal options are looked for
// in known, and added to it.
func newDefinition(ctx caddy.Context, s Service, place string, known map[string]*options) (*definition, error) {
	o, err := sharedOptions(ctx, s, known)
	if err != nil {
		return nil, err
	}
	// Loading a module takes the raw form away, and s is a copy already.
	backendType := inlineKey(s.BackendRaw, "type")
	mod, err := ctx.LoadModule(&s, "BackendRaw")
	if err != nil {
		return nil, fmt.Errorf("backend %s: %w", backendType, err)
	}
	backend, ok := mod.(scaler.Backend)
	if !ok {
		return nil, fmt.Errorf("the module usher.backends.%s is a %T, which is not a backend", backendType, mod)
	}
	return &definition{options: o, place: place, backend: backend}, nil
}

// backendType is the name of the backend's module.
func (d *definition) backendType() string { return d.backend.(caddy.Module).CaddyModule().ID.Name() }

// sharedOptions returns the options that s gives.
func sharedOptions(ctx caddy.Context, s Service, known map[string]*options) (*options, error) {
	if len(s.BackendRaw) == 0 {
		return nil, errNoBackend
	}
	s.BackendRaw = nil
	key, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	if o := known[string(key)]; o != nil {
		return o, nil
	}
	s = s.withDefaults()
	if err := s.validateOptions(); err != nil {
		return nil, err
	}
	o := &options{policyName: inlineKey(s.ScaleRaw, "policy")}
	mod, err := ctx.LoadModule(&s, "ScaleRaw")
	if err != nil {
		return nil, fmt.Errorf("scale: %w", err)
	}
	var ok bool
	if o.policy, ok = mod.(scaler.Policy); !ok {
		return nil, fmt.Errorf("the module usher.policies.%s is a %T, which is not a policy", o.policyName, mod)
	}
	o.service = s
	o.settings = s.settings(o.policy)
	o.live = liveOptions{detailFull: s.ErrorDetail == detailFull, max: s.Instances.Max, maxWaiting: *s.MaxWaiting}
	known[string(key)] = o
	return o, nil
}

// whole returns the service with its policy as provisioned: there a default
// that is spelled out is no difference.
func (d *definition) whole() Service {
	s := d.service
	s.ScaleRaw = caddyconfig.JSONModuleObject(d.policy, "policy", d.policyName, nil)
	return s
}

// fields returns every option in its canonical form, to compare definitions.
// It is made when it is needed: most services are defined once.
func (d *definition) fields() (map[string]string, error) {
	fields, err := canonicalFields(d.whole())
	if err == nil {
		fields["backend"] = d.backendType() + " " + d.backend.Fingerprint()
	}
	return fields, err
}

// differs returns in which options d is not the same as other.
func (d *definition) differs(other *definition) (string, error) {
	a, err := d.fields()
	if err != nil {
		return "", err
	}
	b, err := other.fields()
	return differences(a, b), err
}

// shown encodes the effective configuration, secrets hidden.
func (d *definition) shown() (json.RawMessage, error) {
	s := d.whole()
	redacted, err := json.Marshal(d.backend.Redacted())
	if err != nil {
		return nil, fmt.Errorf("backend %s: encoding its configuration: %w", d.backendType(), err)
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(redacted, &fields); err == nil {
		fields["type"], _ = json.Marshal(d.backendType())
		redacted, _ = json.Marshal(fields)
	}
	s.BackendRaw = redacted
	if len(s.Ready.Headers) > 0 {
		// They may be there to be let in.
		ready := *s.Ready
		ready.Headers = make(http.Header, len(s.Ready.Headers))
		for name := range s.Ready.Headers {
			ready.Headers.Set(name, "***")
		}
		s.Ready = &ready
	}
	return json.Marshal(s)
}

func inlineKey(raw json.RawMessage, key string) string {
	var m map[string]any
	_ = json.Unmarshal(raw, &m)
	v, _ := m[key].(string)
	return v
}

// canonicalFields encodes every option of s, in which every option is set.
func canonicalFields(s Service) (map[string]string, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	fields := make(map[string]string, len(m))
	for k, raw := range m {
		// By way of the generic form: the order of keys and white space are
		// no difference.
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.UseNumber()
		var v any
		if err := dec.Decode(&v); err != nil {
			return nil, err
		}
		canon, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		fields[k] = string(canon)
	}
	return fields, nil
}

// differs returns in which options s is not the same as other, defaults
// included.
func (s Service) differs(other Service) (string, error) {
	a, err := canonicalFields(s.withDefaults())
	if err != nil {
		return "", err
	}
	b, err := canonicalFields(other.withDefaults())
	return differences(a, b), err
}

// differences names the keys in which a and b differ.
func differences(a, b map[string]string) string {
	var names []string
	for k, v := range a {
		if b[k] != v {
			names = append(names, k)
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

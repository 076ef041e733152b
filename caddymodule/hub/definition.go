package hub

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

// Definition is the provisioned form of a Service.
type Definition struct {
	*Options
	Place   string
	Backend scaler.Backend
	Missing *scaler.Failure // what this machine lacks for it; nil if nothing is known

	summed atomic.Pointer[string] // sum; nil before it was asked for
}

// Options are the provisioned form of all that a Service says beside its
// backend. They do not change: the services of a configuration that say the
// same share them, and most say nothing.
type Options struct {
	Service    ServiceConfig // every option set; without the raw modules
	policy     scaler.Policy
	policyName string
	Settings   control.Settings
	live       LiveOptions
}

// NewDefinition checks s and loads its modules. Equal options are looked for
// in known, and added to it.
func NewDefinition(ctx caddy.Context, s ServiceConfig, place string, known map[string]*Options) (*Definition, error) {
	o, err := sharedOptions(ctx, s, known)
	if err != nil {
		return nil, err
	}
	// Loading a module takes the raw form away, and s is a copy already.
	raw := s.BackendRaw
	mod, err := ctx.LoadModule(&s, "BackendRaw")
	if err != nil {
		return nil, fmt.Errorf("backend %s: %w", InlineKey(raw, "type"), err)
	}
	backend, ok := mod.(scaler.Backend)
	if !ok {
		return nil, fmt.Errorf("the module usher.backends.%s is a %T, which is not a backend", InlineKey(raw, "type"), mod)
	}
	d := &Definition{Options: o, Place: place, Backend: backend}
	if l, ok := backend.(scaler.Limiter); ok && o.Service.MaxRequests == 0 && l.DefaultMaxRequests() > 0 {
		own := *o
		own.Service.MaxRequests = l.DefaultMaxRequests()
		own.Settings = own.Service.settings(o.Settings.Policy)
		d.Options = &own
	}
	if err := d.checkBusy(); err != nil {
		return nil, err
	}
	if c, ok := backend.(scaler.Checker); ok {
		d.Missing = c.Check()
	}
	return d, nil
}

// ProbesHTTP says whether instances are probed by HTTP.
func (d *Definition) ProbesHTTP() bool { return d.Service.ProbesHTTP() }

// BackendType is the name of the backend's module.
func (d *Definition) BackendType() string { return d.Backend.(caddy.Module).CaddyModule().ID.Name() }

// sharedOptions returns the options that s gives.
func sharedOptions(ctx caddy.Context, s ServiceConfig, known map[string]*Options) (*Options, error) {
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
	s = s.WithDefaults()
	if err := s.validateOptions(); err != nil {
		return nil, err
	}
	o := &Options{policyName: InlineKey(s.ScaleRaw, "policy")}
	mod, err := ctx.LoadModule(&s, "ScaleRaw")
	if err != nil {
		return nil, fmt.Errorf("scale: %w", err)
	}
	var ok bool
	if o.policy, ok = mod.(scaler.Policy); !ok {
		return nil, fmt.Errorf("the module usher.policies.%s is a %T, which is not a policy", o.policyName, mod)
	}
	o.Service = s
	scheduled, err := s.schedule(o.policy)
	if err != nil {
		return nil, err
	}
	o.Settings = s.settings(scheduled)
	o.live = LiveOptions{DetailFull: s.ErrorDetail == DetailFull, max: s.Instances.Max, maxWaiting: *s.MaxWaiting}
	known[string(key)] = o
	return o, nil
}

// whole returns the service with its policy as provisioned: there a default
// that is spelled out is no difference.
func (d *Definition) whole() ServiceConfig {
	s := d.Service
	s.ScaleRaw = caddyconfig.JSONModuleObject(d.policy, "policy", d.policyName, nil)
	return s
}

// Fields returns every option in its canonical form, to compare definitions.
// It is made when it is needed: most services are defined once.
func (d *Definition) Fields() (map[string]string, error) {
	fields, err := CanonicalFields(d.whole())
	if err == nil {
		fields["backend"] = d.BackendType() + " " + d.Backend.Fingerprint()
	}
	return fields, err
}

// Differs returns in which options d is not the same as other.
func (d *Definition) Differs(other *Definition) (string, error) {
	a, err := d.Fields()
	if err != nil {
		return "", err
	}
	b, err := other.Fields()
	return Differences(a, b), err
}

// Shown encodes the effective configuration, secrets hidden.
func (d *Definition) Shown() (json.RawMessage, error) {
	s := d.Service
	policy, err := spellDurations(d.policy)
	if err != nil {
		return nil, fmt.Errorf("policy %s: encoding its configuration: %w", d.policyName, err)
	}
	if s.ScaleRaw, err = WithKey(policy, "policy", d.policyName); err != nil {
		return nil, fmt.Errorf("policy %s: encoding its configuration: %w", d.policyName, err)
	}
	redacted, err := spellDurations(d.Backend.Redacted())
	if err != nil {
		return nil, fmt.Errorf("backend %s: encoding its configuration: %w", d.BackendType(), err)
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(redacted, &fields); err == nil {
		fields["type"], _ = json.Marshal(d.BackendType())
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
	return spellDurations(s)
}

// WithKey adds a key to an encoded object, before all others.
func WithKey(object json.RawMessage, key string, value any) (json.RawMessage, error) {
	first, err := json.Marshal(map[string]any{key: value})
	if err != nil {
		return nil, err
	}
	if len(object) <= len("{}") {
		return first, nil
	}
	return slices.Concat(first[:len(first)-1], []byte(","), object[1:]), nil
}

// InlineKey returns the text of the key of a JSON object, or "".
func InlineKey(raw json.RawMessage, key string) string {
	var m map[string]json.RawMessage
	var v string
	_ = json.Unmarshal(raw, &m)
	_ = json.Unmarshal(m[key], &v)
	return v
}

// CanonicalFields encodes every option of s, in which every option is set.
func CanonicalFields(s ServiceConfig) (map[string]string, error) {
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

// Differs returns in which options s is not the same as other, defaults
// included.
func (s ServiceConfig) Differs(other ServiceConfig) (string, error) {
	a, err := CanonicalFields(s.WithDefaults())
	if err != nil {
		return "", err
	}
	b, err := CanonicalFields(other.WithDefaults())
	return Differences(a, b), err
}

// Differences names the keys in which a and b differ.
func Differences(a, b map[string]string) string {
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

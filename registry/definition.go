package registry

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	// DefaultFallback is for how long after its first start a new revision that fails
	// is replaced by the one before it.
	DefaultFallback = 5 * time.Minute

	// FallbackOff is the Fallback that never comes.
	FallbackOff = "off"

	maxFallback = 24 * time.Hour
	maxHosts    = 100
	maxParams   = 100
)

// Definition is what an owner or an operator says of a service: the body of a PUT. In
// JSON, unknown fields are refused.
//
// The zero value of a field stands for its absence. A Definition of a Record is in its
// canonical form, and is not to be changed.
type Definition struct {
	// The template that the service is made of. Either this or Service is set.
	Template string `json:"template,omitempty"`

	// Values for the template's params, by their names.
	Params map[string]string `json:"params,omitempty"`

	// The whole definition, as in apps.usher.services. Operators only.
	Service json.RawMessage `json:"service,omitempty"`

	// The host names that lead to the service: exact, in lower case, without a port.
	// Names beyond ASCII are in punycode. In canonical form they are sorted.
	Hosts []string `json:"hosts,omitempty"`

	// For how long after its first start a new revision that fails is replaced by the
	// one before it: a duration, as in Go, or "off". Default: 5m.
	Fallback string `json:"fallback,omitempty"`
}

// FallbackAfter returns for how long after its first start a new revision that fails is
// replaced by the one before it, or false if it never is.
func (d *Definition) FallbackAfter() (time.Duration, bool) {
	if d.Fallback == FallbackOff {
		return 0, false
	}
	if d.Fallback == "" {
		return DefaultFallback, true
	}
	span, err := time.ParseDuration(d.Fallback)
	return span, err == nil // the form was checked
}

// ParseDefinition reads a definition and returns it in its canonical form. It refuses
// unknown fields, keys that occur twice, nesting deeper than 32 levels, and more than
// MaxBody bytes. What only the rules can tell is not checked: whether there is such a
// template, whether the hosts may be claimed, what the service means.
func ParseDefinition(body []byte) (Definition, error) {
	value, err := parse(body)
	if err != nil {
		return Definition{}, refuse(Invalid, "the definition is not valid JSON: %w", err)
	}
	return definitionOf(value)
}

// definitionOf makes a definition of a JSON value.
func definitionOf(value any) (Definition, error) {
	fields, ok := value.(map[string]any)
	if !ok {
		return Definition{}, refuse(Invalid, "the definition is not a JSON object")
	}
	var d Definition
	for _, key := range sortedKeys(fields) {
		var err error
		switch field := fields[key]; key {
		case "template":
			d.Template, err = textField(key, field)
		case "params":
			d.Params, err = paramsField(field)
		case "service":
			d.Service, err = serviceField(field)
		case "hosts":
			d.Hosts, err = hostsField(field)
		case "fallback":
			d.Fallback, err = fallbackField(field)
		default:
			err = refuse(Invalid, "the definition has the unknown field %q; it may have template, params, service, hosts and fallback", key)
		}
		if err != nil {
			return Definition{}, err
		}
	}
	return d, d.checkForm()
}

// checkForm returns what is wrong with d that can be told without the rules.
func (d *Definition) checkForm() error {
	switch {
	case d.Template == "" && d.Service == nil:
		return refuse(Invalid, "the definition has neither a template nor a service")
	case d.Template != "" && d.Service != nil:
		return refuse(Invalid, "the definition has both a template and a service; it may have one of them")
	case d.Service != nil && len(d.Params) > 0:
		return refuse(Invalid, "the definition has params, but no template that takes them")
	}
	if size := len(d.canonical()); size > MaxBody {
		return refuse(Invalid, "the definition has %d bytes; it may have %d", size, MaxBody)
	}
	return nil
}

// canonical returns the one text of d.
func (d *Definition) canonical() []byte {
	return render(d)
}

func (d *Definition) equal(other *Definition) bool {
	return bytes.Equal(d.canonical(), other.canonical())
}

func textField(key string, value any) (string, error) {
	text, ok := value.(string)
	if !ok || text == "" {
		return "", refuse(Invalid, "%s is not a string with text", key)
	}
	return text, nil
}

func paramsField(value any) (map[string]string, error) {
	object, ok := value.(map[string]any)
	if !ok {
		return nil, refuse(Invalid, "params is not an object of strings")
	}
	if len(object) > maxParams {
		return nil, refuse(Invalid, "there are %d params; at most %d may be given", len(object), maxParams)
	}
	var params map[string]string
	for _, name := range sortedKeys(object) {
		text, ok := object[name].(string)
		if !ok {
			return nil, refuse(Invalid, "the param %q is not a string", name)
		}
		if params == nil {
			params = make(map[string]string, len(object))
		}
		params[name] = text
	}
	return params, nil
}

// optionName is what a key of a service and of its backend looks like. Readers that do
// not distinguish letters of different case, as encoding/json, would else see a
// "Backend" that nothing here has looked at.
var optionName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

func serviceField(value any) (json.RawMessage, error) {
	service, ok := value.(map[string]any)
	if !ok {
		return nil, refuse(Invalid, "service is not an object")
	}
	if err := checkOptions("service", service); err != nil {
		return nil, err
	}
	backend, ok := service["backend"].(map[string]any)
	if !ok {
		return nil, refuse(Invalid, "service has no backend; it is an object with a type")
	}
	if err := checkOptions("service.backend", backend); err != nil {
		return nil, err
	}
	if kind, ok := backend["type"].(string); !ok || !optionName.MatchString(kind) {
		return nil, refuse(Invalid, "service.backend has no type; it is the name of a backend")
	}
	return render(service), nil
}

func checkOptions(place string, object map[string]any) error {
	for _, key := range sortedKeys(object) {
		if !optionName.MatchString(key) {
			return refuse(Invalid, "%s has the unknown option %q: names of options are in lower case", place, key)
		}
	}
	return nil
}

// backendType returns the type of the backend of a service that serviceField has
// passed.
func backendType(service json.RawMessage) string {
	var s struct {
		Backend struct {
			Type string `json:"type"`
		} `json:"backend"`
	}
	_ = json.Unmarshal(service, &s)
	return s.Backend.Type
}

func hostsField(value any) ([]string, error) {
	list, ok := value.([]any)
	if !ok {
		return nil, refuse(Invalid, "hosts is not a list of host names")
	}
	hosts := make([]string, 0, len(list))
	for _, item := range list {
		host, ok := item.(string)
		if !ok {
			return nil, refuse(Invalid, "hosts is not a list of host names")
		}
		hosts = append(hosts, host)
	}
	return canonicalHosts(hosts)
}

// canonicalHosts checks host names and sorts them.
func canonicalHosts(hosts []string) ([]string, error) {
	if len(hosts) > maxHosts {
		return nil, refuse(Invalid, "there are %d hosts; a service may have %d", len(hosts), maxHosts)
	}
	for _, host := range hosts {
		if err := checkHost(host); err != nil {
			return nil, err
		}
	}
	if len(hosts) == 0 {
		return nil, nil
	}
	hosts = slices.Clone(hosts)
	slices.Sort(hosts)
	for i := range hosts[1:] {
		if hosts[i] == hosts[i+1] {
			return nil, refuse(Invalid, "the host %q is named twice", hosts[i])
		}
	}
	return hosts, nil
}

var (
	hostLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	digits    = regexp.MustCompile(`^[0-9]+$`)
)

// checkHost returns an error if host is not an exact host name.
func checkHost(host string) error {
	labels := strings.Split(host, ".")
	if len(host) > 253 || digits.MatchString(labels[len(labels)-1]) {
		return refuse(Invalid, "%q is not a host name", host)
	}
	for _, label := range labels {
		if !hostLabel.MatchString(label) {
			return refuse(Invalid, "%q is not an exact host name: it has labels of a-z, 0-9 and '-' with dots between, no port and no '*'; other letters are in punycode", host)
		}
	}
	return nil
}

// hostAllowed says whether a host may be claimed. A pattern is a host, or begins with
// "*.", which stands for one label.
func hostAllowed(host string, patterns []string) bool {
	_, parent, _ := strings.Cut(host, ".")
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(pattern string) bool {
		if suffix, ok := strings.CutPrefix(pattern, "*."); ok {
			return parent == suffix
		}
		return host == pattern
	})
}

func fallbackField(value any) (string, error) {
	text, err := textField("fallback", value)
	if err != nil || text == FallbackOff {
		return text, err
	}
	after, err := time.ParseDuration(text)
	if err != nil || after <= 0 || after > maxFallback {
		return "", refuse(Invalid, "fallback is %q; it is a duration of at most %v, or 'off'", text, maxFallback)
	}
	return after.String(), nil
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// CheckName returns an error if name cannot be the name of a service made at run time.
// A name with ".." is for revisions and variants, which get theirs from the registry
// and the program.
func CheckName(name string) error {
	if !nameForm.MatchString(name) || strings.Contains(name, "..") {
		return refuse(Invalid, "%q is not a service name: at most 63 of a-z, 0-9, '.', '_' and '-', the first a letter or digit, no '..'", name)
	}
	return nil
}

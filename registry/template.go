package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxValue is the most bytes that the value of a param may have.
const maxValue = 255

// Param is what a template says of one of its params.
type Param struct {
	// A value matches it as a whole, whether the pattern is anchored or not. Either
	// this or OneOf is set.
	Pattern string `json:"pattern,omitempty"`

	// The values that are permitted.
	OneOf []string `json:"one_of,omitempty"`

	// The value if none is given. nil: the param is required.
	Default *string `json:"default,omitempty"`

	// The value becomes the variable of the param's name in the backend's env.
	Env bool `json:"env,omitempty"`

	// The value may also come from a request: see Registry.Variant.
	Request bool `json:"request,omitempty"`
}

// Template is what owners may make services of. It was checked when it was made, and
// does not change.
type Template struct {
	service     any
	backend     string
	params      map[string]*param
	maxServices int
}

type param struct {
	Param
	pattern *regexp.Regexp
	paths   [][]string // where it stands in the service
}

// Takes says whether a param may stand at a place in the description of a backend. path
// has the keys and the decimal indexes from the backend to a string: ("args", "2"). nil:
// nowhere.
type Takes func(path ...string) bool

func (t Takes) at(path ...string) bool { return t != nil && t(path...) }

var (
	paramName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,62}$`)
	envName   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	paramUse  = regexp.MustCompile(`\{param\.([^{}]*)\}`)
)

// NewTemplate checks a template and returns it.
//
// service is a definition as in apps.usher.services. Strings in its backend may hold
// {param.name}, where takes permits it. Such a string has no other
// placeholder, no other brace, and no backslash. maxServices is how many services may
// be made of the template, with the variants that requests ask for; 0 is no limit, which
// a template with a param of requests must have.
//
// An error says what is wrong: a param that does not exist or is not used, a param in
// another place, a pattern that cannot be read, a default that the param refuses.
func NewTemplate(service json.RawMessage, params map[string]Param, takes Takes, maxServices int) (*Template, error) {
	value, err := parse(service)
	if err != nil {
		return nil, fmt.Errorf("the template's service is not valid JSON: %w", err)
	}
	checked, err := serviceField(value)
	if err != nil {
		return nil, err
	}
	if maxServices < 0 {
		return nil, fmt.Errorf("max_services is %d; it is 0 or more", maxServices)
	}
	t := &Template{service: value, backend: backendType(checked), params: make(map[string]*param, len(params)), maxServices: maxServices}
	for _, name := range sortedKeys(params) {
		p, err := newParam(name, params[name])
		if err != nil {
			return nil, fmt.Errorf("param %s: %w", name, err)
		}
		if p.Request && maxServices == 0 {
			return nil, fmt.Errorf("param %s may come from requests, so the template needs max_services", name)
		}
		t.params[name] = p
	}
	return t, t.checkUses(takes)
}

func newParam(name string, p Param) (*param, error) {
	if !paramName.MatchString(name) {
		return nil, errors.New("its name is not a letter or '_' and at most 62 more letters, digits, '_' or '-'")
	}
	if p.Env && !envName.MatchString(name) {
		return nil, errors.New("its name cannot be the name of a variable of the environment")
	}
	if (p.Pattern == "") == (len(p.OneOf) == 0) {
		return nil, errors.New("it needs a pattern or one_of, and not both")
	}
	c := &param{Param: p}
	if p.Pattern != "" {
		// The pattern alone first: "a)|(b" would be valid only inside of the group.
		if _, err := regexp.Compile(p.Pattern); err != nil {
			return nil, fmt.Errorf("pattern: %w", err)
		}
		c.pattern = regexp.MustCompile(`\A(?:` + p.Pattern + `)\z`)
	}
	for _, v := range p.OneOf {
		if err := checkValue(v); err != nil {
			return nil, fmt.Errorf("one_of: %w", err)
		}
	}
	if p.Default != nil {
		if err := c.check(*p.Default); err != nil {
			return nil, fmt.Errorf("default: %w", err)
		}
	}
	return c, nil
}

// checkUses checks where the template has params.
func (t *Template) checkUses(takes Takes) error {
	err := eachString(t.service, nil, func(path []string, text string, key bool) error {
		names, err := usesIn(text)
		if err != nil || len(names) == 0 {
			return err
		}
		at := strings.Join(path, ".")
		if key {
			return fmt.Errorf("a param cannot stand in a key, as in %q at %s", text, at)
		}
		if path[0] != "backend" || path[1] == "type" || !takes.at(path[1:]...) {
			return fmt.Errorf("a param cannot stand at %s: backend %s takes none there", at, t.backend)
		}
		for _, name := range names {
			p := t.params[name]
			if p == nil {
				return fmt.Errorf("%s has {param.%s}, but the template has no param %s", at, name, name)
			}
			p.paths = append(p.paths, slices.Clone(path))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range sortedKeys(t.params) {
		p := t.params[name]
		if p.Env {
			if err := t.checkEnv(name, takes); err != nil {
				return err
			}
			p.paths = append(p.paths, []string{"backend", "env", name})
		} else if p.paths == nil {
			return fmt.Errorf("param %s is never used: the backend has no {param.%s}", name, name)
		}
	}
	return nil
}

// checkEnv checks a param that becomes a variable.
func (t *Template) checkEnv(name string, takes Takes) error {
	if !takes.at("env", name) {
		return fmt.Errorf("param %s cannot be a variable: backend %s takes no param there", name, t.backend)
	}
	backend := t.service.(map[string]any)["backend"].(map[string]any)
	env, ok := backend["env"].(map[string]any)
	if _, there := backend["env"]; there && !ok {
		return fmt.Errorf("param %s cannot be a variable: the backend's env is not an object", name)
	}
	if _, twice := env[name]; twice {
		return fmt.Errorf("param %s is a variable that the backend's env sets, too", name)
	}
	return nil
}

// usesIn returns the params that a string of a template has.
func usesIn(text string) ([]string, error) {
	uses := paramUse.FindAllStringSubmatch(text, -1)
	if uses == nil {
		if strings.Contains(text, "{param.") {
			return nil, fmt.Errorf("%q has a {param. that does not end", text)
		}
		return nil, nil
	}
	if rest := paramUse.ReplaceAllString(text, ""); strings.ContainsAny(rest, `{}\`) {
		return nil, fmt.Errorf("%q has a param, so it can have no other placeholder, brace or backslash", text)
	}
	names := make([]string, len(uses))
	for i, use := range uses {
		names[i] = use[1]
	}
	return names, nil
}

// MaxServices returns how many services may be made of the template; 0: no limit.
func (t *Template) MaxServices() int { return t.maxServices }

// Backend returns the type of the backend of the template's services.
func (t *Template) Backend() string { return t.backend }

// Params returns what the template says of its params.
func (t *Template) Params() map[string]Param {
	params := make(map[string]Param, len(t.params))
	for name, p := range t.params {
		params[name] = p.Param
	}
	return params
}

// checkValue returns an error if v cannot be the value of any param. What it refuses
// could end a string, begin a placeholder, or look in a log like something else.
func checkValue(v string) error {
	switch {
	case len(v) > maxValue:
		return fmt.Errorf("the value has %d bytes; it may have %d", len(v), maxValue)
	case !utf8.ValidString(v):
		return errors.New("the value is not valid UTF-8")
	case strings.ContainsAny(v, `{}\`):
		return errors.New(`the value has a '{', '}' or '\'`)
	case strings.ContainsFunc(v, func(c rune) bool { return unicode.IsControl(c) || unicode.In(c, unicode.Zl, unicode.Zp, unicode.Cf) }):
		return errors.New("the value has a control character")
	}
	return nil
}

// check returns an error if v cannot be a value of p. It does not show v, which may be
// a secret: the template may have changed since the value was given.
func (p *param) check(v string) error {
	if err := checkValue(v); err != nil {
		return err
	}
	if p.pattern != nil {
		if !p.pattern.MatchString(v) {
			return fmt.Errorf("the value does not match %s", p.Pattern)
		}
	} else if !slices.Contains(p.OneOf, v) {
		return fmt.Errorf("the value is none of: %s", strings.Join(p.OneOf, ", "))
	}
	return nil
}

// values returns the values of all params, if those are given.
func (t *Template) values(given map[string]string) (map[string]string, error) {
	for _, name := range sortedKeys(given) {
		p, ok := t.params[name]
		if !ok {
			return nil, refuse(Invalid, "the template has no param %q; it has: %s", name, strings.Join(sortedKeys(t.params), ", "))
		}
		if err := p.check(given[name]); err != nil {
			return nil, refuse(Invalid, "param %s: %w", name, err)
		}
	}
	values := maps.Clone(given)
	for _, name := range sortedKeys(t.params) {
		if _, ok := values[name]; ok {
			continue
		}
		p := t.params[name]
		if p.Default == nil {
			return nil, refuse(Invalid, "the param %s is missing", name)
		}
		if values == nil {
			values = make(map[string]string, len(t.params))
		}
		values[name] = *p.Default
	}
	return values, nil
}

// Expand returns the service that the template makes of these values. A param that is
// missing and has no default, one that the template does not have, and a value that the
// param refuses are Invalid.
func (t *Template) Expand(given map[string]string) (json.RawMessage, error) {
	values, err := t.values(given)
	if err != nil {
		return nil, err
	}
	// Each string is replaced as a decoded one, and written anew: a value cannot end it.
	service := mapStrings(t.service, func(text string) string {
		if !strings.Contains(text, "{param.") {
			return text
		}
		return paramUse.ReplaceAllStringFunc(text, func(use string) string {
			return values[use[len("{param."):len(use)-1]]
		})
	}).(map[string]any)
	for name, p := range t.params {
		if !p.Env {
			continue
		}
		backend := service["backend"].(map[string]any)
		env, ok := backend["env"].(map[string]any)
		if !ok {
			env = make(map[string]any)
			backend["env"] = env
		}
		env[name] = values[name]
	}
	return render(service), nil
}

package registry_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/registry"
)

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func TestATemplateExpands(t *testing.T) {
	template := newTemplate(t, 100)
	got, err := template.Expand(map[string]string{"name": "shop", "SIZE": "large"})
	const want = `{"backend":{"args":["--port","{usher.port}","--team=red"],"command":"/srv/run","env":{"NAME":"shop","SIZE":"large"},"type":"process"},"concurrency":10}`
	if err != nil || string(got) != want {
		t.Errorf("it expands to\n%s, error %v, want\n%s", got, err, want)
	}
	for _, c := range []struct {
		params map[string]string
		part   string
	}{
		{nil, "name is missing"},
		{map[string]string{"name": "a", "other": "b"}, `no param "other"`},
		{map[string]string{"name": "a", "team": "green"}, "none of: red, blue"},
		{map[string]string{"name": "A"}, "does not match"},
		{map[string]string{"name": "a", "SIZE": "large\n"}, "control"},
	} {
		_, err := template.Expand(c.params)
		if registry.KindOf(err) != registry.Invalid || !strings.Contains(err.Error(), c.part) {
			t.Errorf("%v: error %v, want one with %q", c.params, err, c.part)
		}
	}
}

func TestAPatternMatchesTheWholeValue(t *testing.T) {
	for _, pattern := range []string{"[a-z]+", "^[a-z]+", "a|[a-z]+$", "(?m)^[a-z]+$"} {
		template, err := registry.NewTemplate(webTemplate, map[string]registry.Param{
			"name": {Pattern: pattern}, "team": {OneOf: []string{"red"}, Default: new("red")},
		}, takesArgsAndEnv, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := template.Expand(map[string]string{"name": "abc"}); err != nil {
			t.Errorf("%s: %v", pattern, err)
		}
		for _, value := range []string{"", "abc ", "abc;rm", "9abc", "abc9", "a|b"} {
			if _, err := template.Expand(map[string]string{"name": value}); err == nil {
				t.Errorf("%s has accepted %q", pattern, value)
			}
		}
	}
}

func TestAWrongTemplateIsRefused(t *testing.T) {
	backend := func(rest string) string { return `{"backend":{"type":"process",` + rest + `}}` }
	params := func(name string, p registry.Param) map[string]registry.Param {
		return map[string]registry.Param{name: p}
	}
	x := params("x", registry.Param{Pattern: "x"})
	for _, c := range []struct {
		service string
		params  map[string]registry.Param
		max     int
		part    string
	}{
		{`{`, nil, 0, "not valid JSON"},
		{`{"backend":{}}`, nil, 0, "no type"},
		{backend(`"command":"{param.x}"`), x, 0, "cannot stand at backend.command"},
		{backend(`"dir":"/srv/{param.x}"`), x, 0, "cannot stand at backend.dir"},
		{backend(`"env":{"PATH":"{param.x}"}`), x, 0, "cannot stand at backend.env.PATH"},
		{backend(`"args":["{param.x}"],"env":{"{param.x}":"y"}`), x, 0, "in a key"},
		{backend(`"args":[["{param.x}"]]`), x, 0, "cannot stand at backend.args.0.0"},
		{`{"backend":{"type":"process","args":["{param.x}"]},"scale":{"policy":"{param.x}"}}`, x, 0, "cannot stand at scale.policy"},
		{`{"backend":{"type":"{param.x}"}}`, x, 0, "no type"},
		{backend(`"args":["{param.y}"]`), x, 0, "no param y"},
		{backend(`"args":["{param.}"]`), x, 0, "no param "},
		{backend(`"args":["{param.x"]`), x, 0, "does not end"},
		{backend(`"args":["{param.x}{usher.port}"]`), x, 0, "no other placeholder"},
		{backend(`"args":["{env.{param.x}}"]`), x, 0, "no other placeholder"},
		{backend(`"args":["\\{param.x}"]`), x, 0, "backslash"},
		{backend(`"args":["a"]`), x, 0, "never used"},
		{backend(`"args":["{param.x}"]`), params("x", registry.Param{}), 0, "a pattern or one_of"},
		{backend(`"args":["{param.x}"]`), params("x", registry.Param{Pattern: "x", OneOf: []string{"x"}}), 0, "a pattern or one_of"},
		{backend(`"args":["{param.x}"]`), params("x", registry.Param{Pattern: "("}), 0, "pattern"},
		{backend(`"args":["{param.x}"]`), params("x", registry.Param{Pattern: "a)|(b"}), 0, "pattern"},
		{backend(`"args":["{param.x}"]`), params("x", registry.Param{OneOf: []string{"a{b"}}), 0, "one_of"},
		{backend(`"args":["{param.x}"]`), params("x", registry.Param{Pattern: "x", Default: new("y")}), 0, "default"},
		{backend(`"args":["{param.x}"]`), params("x", registry.Param{Pattern: "x", Request: true}), 0, "needs max_services"},
		{backend(`"args":["{param.x}"]`), x, -1, "max_services"},
		{backend(`"args":[]`), params("x y", registry.Param{Pattern: "x"}), 0, "its name"},
		{backend(`"args":[]`), params("x-y", registry.Param{Pattern: "x", Env: true}), 0, "variable"},
		{backend(`"args":[]`), params("PATH", registry.Param{Pattern: "x", Env: true}), 0, "cannot be a variable"},
		{backend(`"env":{"X":"1"}`), params("X", registry.Param{Pattern: "x", Env: true}), 0, "sets, too"},
		{backend(`"env":[]`), params("X", registry.Param{Pattern: "x", Env: true}), 0, "not an object"},
	} {
		_, err := registry.NewTemplate(json.RawMessage(c.service), c.params, takesArgsAndEnv, c.max)
		if err == nil || !strings.Contains(err.Error(), c.part) {
			t.Errorf("%s with %+v: error %v, want one with %q", c.service, c.params, err, c.part)
		}
	}
	if _, err := registry.NewTemplate(webTemplate, webParams(), nil, 100); err == nil {
		t.Error("a backend that takes no params took some")
	}
}

// The text is shown to the owner of the service, in the log, and to clients that ask for a variant.
func TestAnErrorDoesNotShowTheValueThatIsWrong(t *testing.T) {
	for name, p := range map[string]registry.Param{
		"pattern": {Pattern: "[a-z]{8}"},
		"one_of":  {OneOf: []string{"small", "large"}},
	} {
		template, err := registry.NewTemplate(webTemplate, map[string]registry.Param{"name": p, "team": {OneOf: []string{"red"}, Default: new("red")}}, takesArgsAndEnv, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, value := range []string{"s3cret", "s3cret\n", "{s3cret}", "s3cret\xff"} {
			if _, err := template.Expand(map[string]string{"name": value}); err == nil || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s: %q: the error is %v", name, value, err)
			}
		}
	}
}

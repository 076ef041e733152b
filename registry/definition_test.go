package registry_test

import (
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/registry"
)

func TestADefinitionIsReadStrictly(t *testing.T) {
	const backend = `"backend":{"type":"process","command":"/bin/true"}`
	for body, part := range map[string]string{
		`[]`:                                  "not a JSON object",
		`{}`:                                  "neither",
		`{"template":""}`:                     "not a string with text",
		`{"template":null}`:                   "not a string with text",
		`{"template":1}`:                      "not a string with text",
		`{"Template":"web"}`:                  `unknown field "Template"`,
		`{"template":"web","owner":"bob"}`:    `unknown field "owner"`,
		`{"template":"web","params":[]}`:      "not an object",
		`{"template":"web","params":{"a":1}}`: `"a" is not a string`,
		`{"template":"web","service":{` + backend + `}}`:   "both",
		`{"params":{"a":"b"},"service":{` + backend + `}}`: "no template",
		`{"service":"x"}`:                                                        "not an object",
		`{"service":{}}`:                                                         "no backend",
		`{"service":{"backend":{"command":"x"}}}`:                                "no type",
		`{"service":{"backend":{"type":7}}}`:                                     "no type",
		`{"service":{` + backend + `,"Backend":{"type":"docker"}}}`:              `unknown option "Backend"`,
		`{"service":{` + backend + `,"bac\u212aend":{"type":"docker"}}}`:         "unknown option",
		`{"service":{"backend":{"type":"process","TYPE":"docker"}}}`:             `unknown option "TYPE"`,
		`{"template":"web","hosts":"a.example.com"}`:                             "not a list",
		`{"template":"web","hosts":[1]}`:                                         "not a list",
		`{"template":"web","hosts":["a.example.com","a.example.com"]}`:           "named twice",
		`{"template":"web","fallback":"soon"}`:                                   "fallback",
		`{"template":"web","fallback":"-1s"}`:                                    "fallback",
		`{"template":"web","fallback":"25h"}`:                                    "fallback",
		`{"template":"web","params":{"a":"` + strings.Repeat("x", 66000) + `"}}`: "bytes",
	} {
		_, err := registry.ParseDefinition([]byte(body))
		if registry.KindOf(err) != registry.Invalid || !strings.Contains(err.Error(), part) {
			t.Errorf("%.80s: error %v, want one with %q", body, err, part)
		}
	}
}

func TestHostsAreExactNames(t *testing.T) {
	for host, ok := range map[string]bool{
		"shop.example.com": true, "localhost": true, "a-b.c0": true, "xn--mnchen-3ya.de": true, strings.Repeat("a", 63) + ".com": true,
		"": false, "*.example.com": false, "Shop.example.com": false, "shop.example.com:80": false, "shop.example.com.": false, ".com": false,
		"a..b": false, "-a.com": false, "a-.com": false, "a_b.com": false, "münchen.de": false, "10.0.0.1": false, "[::1]": false, "a/b": false,
		"a b.com": false, "a.com\n": false, "{http.request.host}": false, strings.Repeat("a", 64) + ".com": false, strings.Repeat("a.", 127) + "com": false,
	} {
		_, err := registry.ParseDefinition([]byte(`{"template":"web","hosts":[` + quote(host) + `]}`))
		if (err == nil) != ok {
			t.Errorf("host %q: error %v", host, err)
		}
	}
}

func TestFallbackIsADurationOrOff(t *testing.T) {
	for text, want := range map[string]time.Duration{`"90s"`: 90 * time.Second, `"off"`: -1, ``: 5 * time.Minute} {
		body := `{"template":"web"}`
		if text != "" {
			body = `{"template":"web","fallback":` + text + `}`
		}
		d, err := registry.ParseDefinition([]byte(body))
		if err != nil {
			t.Fatal(err)
		}
		if after, ok := d.FallbackAfter(); ok != (want >= 0) || ok && after != want {
			t.Errorf("fallback %s is %v, %t", text, after, ok)
		}
	}
}

func TestNamesOfServicesAreNeverPaths(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "0": true, "a.b": true, "a_b-c": true, strings.Repeat("a", 63): true,
		"": false, ".": false, "..": false, ".a": false, "a..b": false, "a..r2": false, "a/b": false, `a\b`: false, "A": false, "a\x00": false,
		"a\n": false, "-a": false, "_a": false, "ä": false, "a b": false, "%2e%2e": false, strings.Repeat("a", 64): false,
	} {
		if err := registry.CheckName(name); (err == nil) != ok {
			t.Errorf("name %q: error %v", name, err)
		}
	}
}

package caddymodule

import (
	"strings"
	"testing"

	"github.com/caddy-usher/usher/registry"
)

func TestDefinitionsOfACaddyfileAreWhatTheAPITakes(t *testing.T) {
	t.Parallel()
	all, err := ParseMade("services.caddyfile", []byte(`
(red) {
	template web
	param team red
}
service hello {
	import red
	param name "hello world"
	hosts hello.example.com b.example.com
	fallback 1m30s
}
service api {
	backend test fleet {env.FLAVOUR}
	concurrency 5
	ready http /up {
		interval 1s
	}
	fallback off
}
`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"hello": `{"template":"web","params":{"name":"hello world","team":"red"},"hosts":["hello.example.com","b.example.com"],"fallback":"1m30s"}`,
		"api": `{"service":{"backend":{"type":"test","fleet":"fleet","flavour":"{env.FLAVOUR}"},"concurrency":5,` +
			`"ready":{"check":"http","path":"/up","interval":1000000000}},"fallback":"off"}`,
	} {
		if got := string(all[name]); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
		if _, err := registry.ParseDefinition(all[name]); err != nil {
			t.Errorf("%s: the registry refuses it: %v", name, err)
		}
	}
	if len(all) != 2 {
		t.Errorf("%d services", len(all))
	}
}

// Mistakes are found before anything is sent, with the place where they are.
func TestDefinitionsOfACaddyfileThatAreWrong(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"service a {\n\ttemplate web\n\tconcurrency 2\n}":              "a template has the options already",
		"service a {\n\tparam x y\n\tbackend test fleet\n}":            "no template that takes them",
		"service a {\n\thosts a.example.com\n}":                        "neither a template nor a backend",
		"service a {\n\tconcurrency 2\n}":                              "no backend",
		"service a {\n\ttemplate web\n}\nservice a {\n\ttemplate b\n}": "service a is given twice, at made:4",
		"service a {\n\ttemplate web\n\ttemplate b\n}":                 "template is given twice",
		"service a {\n\ttemplate web\n\tparam x 1\n\tparam x 2\n}":     "param x is given twice",
		"service a {\n\ttemplate web\n\tparam x\n}":                    "made:3",
		"service a {\n\ttemplate web\n\thosts\n}":                      "made:3",
		"service a {\n\ttemplate web\n\tfallback soon\n}":              "not a duration",
		"service a {\n\ttemplate web\n\tfallback 0s\n}":                "longer than 0",
		"service a {\n\ttemplate web\n\twait_timeout 5s\n}":            "unknown option 'wait_timeout'",
		"service a {\n\tready http /up {\n\t\tnonsense\n\t}\n}":        "nonsense",
		"service ../a {\n\ttemplate web\n}":                            "not a service name",
		"service {\n\ttemplate web\n}":                                 "only 'service <name>'",
		"service a b {\n\ttemplate web\n}":                             "only 'service <name>'",
		"example.com {\n\trespond ok\n}":                               "only 'service <name>' can stand here, at made:1",
		"{\n\tusher\n}\nservice a {\n\ttemplate web\n}":                "a block of global options",
	} {
		switch _, err := ParseMade("made", []byte(text)); {
		case err == nil:
			t.Errorf("no error:\n%s", text)
		case !strings.Contains(err.Error(), want):
			t.Errorf("%q, want %q:\n%s", err, want, text)
		}
	}
}

package marathon

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func parse(text string) (*Backend, error) {
	b := new(Backend)
	return b, b.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text))
}

func TestCaddyfile(t *testing.T) {
	for text, want := range map[string]string{
		`marathon /web`: `{"app":"/web"}`,
		`marathon /prod/web {
			url http://m1:8080 http://m2:8080
			url https://m3/service/marathon
			port_index 1
			basic_auth usher "pass word"
			ca_file /etc/ca.pem
		}`: `{"app":"/prod/web","urls":["http://m1:8080","http://m2:8080","https://m3/service/marathon"],"port_index":1,"basic_auth":{"user":"usher","password":"pass word"},"ca_file":"/etc/ca.pem"}`,
		`marathon /web {
			url http://m1:8080
			port_name http
			token_file /run/token
		}`: `{"app":"/web","urls":["http://m1:8080"],"port_name":"http","token_file":"/run/token"}`,
	} {
		b, err := parse(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got, _ := json.Marshal(b)
		if string(got) != want {
			t.Errorf("%s\ngot  %s\nwant %s", text, got, want)
		}
	}
}

func TestCaddyfileMistakes(t *testing.T) {
	for text, words := range map[string]string{
		"marathon":                                         "needs the id of one app",
		"marathon /a /b":                                   "needs the id of one app",
		"marathon /a {\nhost x\n}":                         "it knows url, port_index",
		"marathon /a {\nurl\n}":                            "one or more base URLs",
		"marathon /a {\nport_index x\n}":                   "counted from 0",
		"marathon /a {\nport_index -1\n}":                  "counted from 0",
		"marathon /a {\nport_index 1000000\n}":             "at most 65535",
		"marathon /a {\nport_name\n}":                      "exactly one value",
		"marathon /a {\nport_name a\nport_name b\n}":       "twice",
		"marathon /a {\nport_name a\nport_index 1\n}":      "not both",
		"marathon /a {\nbasic_auth x\n}":                   "a user and a password",
		"marathon /a {\nbasic_auth x y\nbasic_auth x y\n}": "twice",
		"marathon /a {\nbasic_auth x y\ntoken_file /t\n}":  "not both",
		"marathon /a {\ntoken_file /t\ntoken_file /u\n}":   "twice",
	} {
		if _, err := parse(text); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v does not say %q", text, err, words)
		}
	}
}

func TestGlobalDefaults(t *testing.T) {
	b := new(Backend)
	err := b.UnmarshalCaddyfileDefaults(caddyfile.NewTestDispenser("marathon {\nurl http://m1 http://m2\nbasic_auth u p\nca_file /ca\n}"))
	got, _ := json.Marshal(b)
	if want := `{"urls":["http://m1","http://m2"],"basic_auth":{"user":"u","password":"p"},"ca_file":"/ca"}`; err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
	for text, words := range map[string]string{
		"marathon /web":                               "takes no arguments",
		"marathon {\nport_index 1\n}":                 "it knows url, basic_auth, token_file, ca_file",
		"marathon {\ntoken_file\n}":                   "exactly one value",
		"marathon {\nbasic_auth a b\ntoken_file t\n}": "not both",
	} {
		if err := new(Backend).UnmarshalCaddyfileDefaults(caddyfile.NewTestDispenser(text)); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v does not say %q", text, err, words)
		}
	}
}

func TestProvisionChecksWithoutAskingAnybody(t *testing.T) {
	urls := []string{"http://127.0.0.1:1"}
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, []byte("two\nlines"), 0o600); err != nil {
		t.Fatal(err)
	}
	for words, b := range map[string]*Backend{
		"id of an app is required": {URLs: urls},
		"no id that Marathon":      {App: "/Prod", URLs: urls},
		"ends in restart":          {App: "/a/restart", URLs: urls},
		"needs the url":            {App: "/a"},
		"http://host:8080":         {App: "/a", URLs: []string{"m1:8080"}},
		"without ? and #":          {App: "/a", URLs: []string{"http://m1/?x=1"}},
		"do not belong into a URL": {App: "/a", URLs: []string{"http://user:hunter2@m1"}},
		"counted from 0":           {App: "/a", URLs: urls, PortIndex: -1},
		"no more than 65535 ports": {App: "/a", URLs: urls, PortIndex: 1 << 40},
		"port_index or port_name":  {App: "/a", URLs: urls, PortIndex: 1, PortName: "x"},
		"needs a user":             {App: "/a", URLs: urls, BasicAuth: &BasicAuth{Password: "x"}},
		"not both":                 {App: "/a", URLs: urls, BasicAuth: &BasicAuth{User: "x"}, TokenFile: junk},
		"no PEM":                   {App: "/a", URLs: urls, CAFile: junk},
		"ca_file":                  {App: "/a", URLs: urls, CAFile: junk + "x"},
		"one token":                {App: "/a", URLs: urls, TokenFile: junk},
		"token_file":               {App: "/a", URLs: urls, TokenFile: junk + "x"},
		"app":                      {App: "/{http.request.host}", URLs: urls},
	} {
		err := b.Provision(caddy.Context{})
		if err == nil {
			if f := b.Check(); f != nil {
				err = f
			}
		}
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%+v: %v does not say %q", b, err, words)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("a password in %v", err)
		}
	}
}

func TestPlaceholdersAreResolvedAndSecretsAreNotShown(t *testing.T) {
	t.Setenv("USHER_TEST_PASSWORD", "hunter2")
	one := &Backend{App: "web", URLs: []string{"http://m1:8080/", "http://m1:8080"}, BasicAuth: &BasicAuth{User: "u", Password: "{env.USHER_TEST_PASSWORD}"}}
	provisioned(t, one)
	if p := one.plan; p.app != "/web" || len(p.access.urls) != 1 || p.access.urls[0] != "http://m1:8080" || p.access.password != "hunter2" {
		t.Errorf("%+v", p)
	}
	shown, _ := json.Marshal(one.Redacted())
	if s := string(shown); strings.Contains(s, "hunter2") || strings.Contains(s, "USHER_TEST") || !strings.Contains(s, `"password":"***"`) {
		t.Errorf("%s", shown)
	}
	two := provisioned(t, &Backend{App: "/web", URLs: []string{"http://m1:8080"}, BasicAuth: &BasicAuth{User: "u", Password: "hunter2"}})
	if one.Fingerprint() != two.Fingerprint() {
		t.Error("the same, written in two ways, has two fingerprints")
	}
	if strings.Contains(one.Fingerprint(), "hunter2") {
		t.Error("the fingerprint holds the password")
	}
	three := provisioned(t, &Backend{App: "/web", URLs: []string{"http://m1:8080"}, BasicAuth: &BasicAuth{User: "u", Password: "other"}})
	if one.Fingerprint() == three.Fingerprint() {
		t.Error("another password has the same fingerprint")
	}
}

func TestSharedCredentialsStayWithTheClusterTheyWereGivenFor(t *testing.T) {
	shared := &Backend{URLs: []string{"http://one"}, BasicAuth: &BasicAuth{User: "u", Password: "p"}, CAFile: "/ca"}
	for name, c := range map[string]struct{ own, want Backend }{
		"a service without a cluster of its own": {
			Backend{App: "/a"},
			Backend{App: "/a", URLs: shared.URLs, BasicAuth: shared.BasicAuth, CAFile: "/ca"},
		},
		"a service with one": {
			Backend{App: "/a", URLs: []string{"http://two"}},
			Backend{App: "/a", URLs: []string{"http://two"}},
		},
		"a service with a token": {
			Backend{App: "/a", TokenFile: "/token"},
			Backend{App: "/a", URLs: shared.URLs, TokenFile: "/token", CAFile: "/ca"},
		},
	} {
		c.own.MergeDefaults(shared)
		if !reflect.DeepEqual(c.own, c.want) {
			t.Errorf("%s: %+v, want %+v", name, c.own, c.want)
		}
	}
}

package etcd

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func TestCaddyfile(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"etcd http://a:2379", `{"urls":["http://a:2379"]}`},
		{
			"etcd https://a https://b {\n user me secret\n cert c.pem k.pem\n ca_file ca.pem\n prefix /x\n}",
			`{"urls":["https://a","https://b"],"user":"me","password":"secret","cert_file":"c.pem","key_file":"k.pem","ca_file":"ca.pem","prefix":"/x"}`,
		},
	} {
		got := new(Coordinator)
		if err := got.UnmarshalCaddyfile(caddyfile.NewTestDispenser(c.text)); err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		want := new(Coordinator)
		if err := json.Unmarshal([]byte(c.want), want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", c.text, got, want)
		}
	}
}

func TestCaddyfileMistakes(t *testing.T) {
	for text, words := range map[string]string{
		"etcd":                                     "needs the URL of each member",
		"etcd {\n user a b\n}":                     "needs the URL of each member",
		"etcd http://a {\n user me\n}":             "user takes a name and a password",
		"etcd http://a {\n user me x y\n}":         "user takes a name and a password",
		"etcd http://a {\n cert c\n}":              "cert takes two files",
		"etcd http://a {\n ca_file\n}":             "ca_file takes exactly one value",
		"etcd http://a {\n prefix a b\n}":          "prefix takes exactly one value",
		"etcd http://a {\n prefix a\n prefix b\n}": "prefix is given twice",
		"etcd http://a {\n token x\n}":             "unrecognized option 'token' of coordinator etcd; it knows user, cert, ca_file, prefix",
	} {
		err := new(Coordinator).UnmarshalCaddyfile(caddyfile.NewTestDispenser(text))
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: error %v, want %q", text, err, words)
		}
	}
}

func TestProvisionMistakes(t *testing.T) {
	urls := []string{"https://a"}
	for _, c := range []struct {
		c     Coordinator
		words string
	}{
		{Coordinator{}, "URL of a member of the etcd cluster is required"},
		{Coordinator{URLs: []string{"a:2379"}}, "no URL of an etcd"},
		{Coordinator{URLs: []string{"http://"}}, "no URL of an etcd"},
		{Coordinator{URLs: []string{"ftp://a"}}, "no URL of an etcd"},
		{Coordinator{URLs: []string{"http://me:secret@a"}}, "credentials do not belong into a URL"},
		{Coordinator{URLs: []string{"http://me:secret@a\x7f"}}, "no URL of an etcd"},
		{Coordinator{URLs: []string{"http://a/v3"}}, "the scheme, host and port alone"},
		{Coordinator{URLs: []string{"http://a?b"}}, "the scheme, host and port alone"},
		{Coordinator{URLs: []string{"{env.USHER_IS_NOT_SET}"}}, "url: "},
		{Coordinator{URLs: urls, Password: "secret"}, "a password needs a user"},
		{Coordinator{URLs: urls, User: "me"}, "the user me needs a password"},
		{Coordinator{URLs: urls, CertFile: "c"}, "cert_file and key_file go together"},
		{Coordinator{URLs: urls, KeyFile: "k"}, "cert_file and key_file go together"},
		{Coordinator{URLs: []string{"http://a"}, CAFile: "ca"}, "of no use without an https URL"},
		{Coordinator{URLs: urls, Prefix: "{env.USHER_IS_NOT_SET}"}, "prefix: "},
	} {
		err := c.c.Provision(caddy.Context{})
		if err == nil || !strings.Contains(err.Error(), c.words) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: error %v, want %q and no secret", c.c, err, c.words)
		}
	}
}

func TestTheObject(t *testing.T) {
	t.Setenv("USHER_TEST_PREFIX", "/x/")
	for _, c := range []struct {
		c    Coordinator
		want string
	}{
		{Coordinator{URLs: []string{"http://a", "http://a:2379/", "https://[::1]:1"}}, "the key /usher/main/view of etcd at http://a:2379, https://[::1]:1"},
		{Coordinator{URLs: []string{"http://a"}, Prefix: "{env.USHER_TEST_PREFIX}", User: "me", Password: "secret"}, "the key /x/view of etcd at http://a:2379"},
	} {
		if err := c.c.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		got, err := c.c.Open("main")
		if err != nil {
			t.Fatal(err)
		}
		if got.String() != c.want {
			t.Errorf("it is called %q, want %q", got, c.want)
		}
		got.Close()
	}
}

func TestOpenSaysWhichFileIsMissing(t *testing.T) {
	for _, c := range []struct {
		c     Coordinator
		words string
	}{
		{Coordinator{CAFile: "/nonexistent/ca"}, "etcd: ca_file: open /nonexistent/ca"},
		{Coordinator{CAFile: "/dev/null"}, "ca_file /dev/null holds no PEM certificate"},
		{Coordinator{CertFile: "/nonexistent/c", KeyFile: "/nonexistent/k"}, "cert_file /nonexistent/c, key_file /nonexistent/k: "},
	} {
		c.c.URLs = []string{"https://a"}
		if err := c.c.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.c.Open("main"); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("error %v, want %q", err, c.words)
		}
	}
	if _, err := new(Coordinator).Open("main"); err == nil || !strings.Contains(err.Error(), "before it was provisioned") {
		t.Errorf("error %v", err)
	}
}

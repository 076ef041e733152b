package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

// namesThatAreNone are what clients may send in place of the name of a service.
var namesThatAreNone = []string{
	"", ".", "..", "../secret", "a/../../secret", "%2e%2e%2fsecret", "hidden", "hello..p0123456789abcdef", "hello..r1", "hello\x00", "hello\n", " hello",
	"{env.HOME}", "{param.WHO}", "{file./etc/passwd}", "$(id)", "hello;id", "héllo", strings.Repeat("a", 5000), "*", "null",
}

// A request finds services that were made for it to find, and nothing else, by
// whatever part of it names them.
func TestNoRequestReachesWhatIsNotForIt(t *testing.T) {
	c := harness.New(t)
	cfg := registrySite(c)
	cfg.Usher += "\nservice hidden {\n" + c.Backend() + "\n}\nservice secret {\n" + c.Backend() + "\n}"
	cfg.Site = `
handle /header {
	usher {http.request.header.X-Service} {
		from ^[a-gi-r]
	}
}
handle /query {
	usher {http.request.uri.query.service} {
		from ^[a-gi-r]
	}
}
handle /cookie {
	usher {http.request.cookie.service} {
		from ^[a-gi-r]
	}
}
handle /path/* {
	usher {http.request.uri.path.1} {
		from ^[a-gi-r]
	}
}
handle /host {
	usher {http.request.host}
}
handle /label {
	usher {http.request.host.labels.3}
}
handle {
	respond 404
}`
	c.Start(cfg)
	mustCall(t, c, http.StatusCreated, "PUT", "hello", `{"template":"web","params":{"WHO":"world"}}`, "")
	mustCall(t, c, http.StatusCreated, "PUT", "early", `{"template":"web","params":{"WHO":"bird"}}`, "")
	for way, send := range map[string]func(name string) harness.Response{
		"header": func(name string) harness.Response {
			return c.Do(harness.Request{Path: "/header", Header: http.Header{"X-Service": {name}}})
		},
		"query": func(name string) harness.Response { return c.Get("/query?service=" + url.QueryEscape(name)) },
		"cookie": func(name string) harness.Response {
			return c.Do(harness.Request{Path: "/cookie", Header: http.Header{"Cookie": {"service=" + name}}})
		},
		"path": func(name string) harness.Response { return c.Get("/path/" + url.PathEscape(name)) },
		"host": func(name string) harness.Response { return c.Do(harness.Request{Path: "/host", Host: name}) },
		"label": func(name string) harness.Response {
			return c.Do(harness.Request{Path: "/label", Host: name + ".apps.example.com"})
		},
	} {
		for _, name := range namesThatAreNone {
			// What no HTTP client sends, or no server takes, reaches nothing either.
			if r := send(name); r.Err == nil && (r.Status < 400 || r.Status > 499) {
				t.Errorf("%s %q: %d %s", way, name, r.Status, r.UsherError())
			}
		}
	}
	for line := range c.Metrics("caddy_usher_") {
		if strings.Contains(line, `service=""`) || strings.Contains(line, "env.HOME") || strings.Contains(line, "passwd") {
			t.Errorf("a name that a client has sent is in the metrics: %s", line)
		}
	}
	// That which is for them is found.
	if r := c.Do(harness.Request{Path: "/header", Header: http.Header{"X-Service": {"early"}}}); r.Status != http.StatusNotFound && r.Status != http.StatusOK {
		t.Errorf("early: %d", r.Status)
	}
	if r := c.Do(harness.Request{Path: "/label", Host: "hello.apps.example.com"}); r.Status != http.StatusNotFound && r.Status != http.StatusOK {
		t.Errorf("hello: %d", r.Status)
	}
	for _, s := range c.Services() {
		if (s.Name == "hidden" || s.Name == "secret") && s.State != "asleep" {
			t.Errorf("service %s is %s", s.Name, s.State)
		}
		if !strings.Contains("hidden secret hello early", s.Name) {
			t.Errorf("there is a service %q", s.Name)
		}
	}
}

// Values of params, wherever they come from, are one argument or one variable, and
// nothing that is executed or looked up.
func TestNoValueIsMoreThanAValue(t *testing.T) {
	c := harness.New(t)
	cfg := registrySite(c)
	c.Start(cfg)
	values := []string{"a b", "a\nb", "a\x00b", "{env.HOME}", "{usher.port}", "$HOME", "`id`", "a;id", "../a", "-flag", "", strings.Repeat("a", 1000), `a\`, "***"}
	for _, value := range values {
		body, _ := json.Marshal(map[string]any{"template": "web", "params": map[string]string{"WHO": value}})
		if status, _, text := registryCall(c, "PUT", "bad", string(body), ""); status != http.StatusBadRequest {
			t.Errorf("PUT %q: %d %s", value, status, text)
		}
	}
	m := mustCall(t, c, http.StatusCreated, "PUT", "hello", `{"template":"web","params":{"WHO":"world"},"hosts":["hello.example.net"]}`, "")
	for _, value := range values[:len(values)-1] {
		body, _ := json.Marshal(map[string]any{"params": map[string]string{"WHO": value}})
		if status, _, text := registryCall(c, "PATCH", "hello", string(body), m.ETag); status != http.StatusBadRequest {
			t.Errorf("PATCH %q: %d %s", value, status, text)
		}
		if r := at(c, "hello.example.net", "/", "Usher-Param-SIZE", value); r.Err == nil && value != "" && r.Status != http.StatusBadRequest {
			t.Errorf("request %q: %d %s", value, r.Status, r.UsherError())
		}
	}
	// A param that is not for requests has no effect there.
	if r := at(c, "hello.example.net", "/env", "Usher-Param-WHO", "mallory"); variable(r, "WHO") != "world" {
		t.Errorf("%d %q", r.Status, variable(r, "WHO"))
	}
	for _, body := range []string{
		`{"service":{"backend":{"type":"process","command":"/bin/sh"}}}`, `{"template":"web","service":{"backend":{"type":"process","command":"/bin/sh"}},"params":{"WHO":"a"}}`,
		`{"template":"web","params":{"WHO":"a"},"command":"/bin/sh"}`, `{"template":"../web"}`, `{"template":"web","params":{"WHO":"a","command":"/bin/sh"}}`,
	} {
		if status, _, text := registryCall(c, "PUT", "bad", body, ""); status != http.StatusBadRequest && status != http.StatusForbidden {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
	for _, name := range []string{"a..b", "A", "a%2fb", "..", "%2e%2e", "a b", strings.Repeat("a", 64), "-a"} {
		if status, _, text := registryCall(c, "PUT", name, `{"template":"web","params":{"WHO":"a"}}`, ""); status < 300 || status > 499 {
			t.Errorf("name %q: %d %s", name, status, text)
		}
	}
	// All that was stored lies where it belongs.
	files, err := filepath.Glob(filepath.Join(c.Dir, "data", "caddy", "usher", "registry", "services", "*"))
	if err != nil || len(files) != 1 || filepath.Base(files[0]) != "hello.json" {
		t.Errorf("%v, %v", files, err)
	}
}

// An owner sees and changes services of its own, and defines nothing whole.
func TestOwnersAreKeptApart(t *testing.T) {
	c := harness.New(t)
	c.Start(registrySite(c, "owner_limit 2", "allow backend process"))
	call := func(user, method, path, body string, header ...string) harness.Response {
		h := http.Header{"Content-Type": {"application/json"}}
		if user != "" {
			req := &http.Request{Header: h}
			req.SetBasicAuth(user, "secret")
		}
		for k := 0; k < len(header); k += 2 {
			h.Set(header[k], header[k+1])
		}
		return c.Do(harness.Request{Method: method, Path: "/manage/services" + path, Header: h, Body: strings.NewReader(body)})
	}
	want := func(r harness.Response, status int) {
		t.Helper()
		if r.Err != nil || r.Status != status {
			t.Errorf("%d %v %s, want %d", r.Status, r.Err, r.Body, status)
		}
	}
	definition := `{"template":"web","params":{"WHO":"a"},"hosts":["shop.example.net"]}`
	want(call("", "GET", "", ""), http.StatusUnauthorized)
	want(call("ann", "PUT", "/shop", definition), http.StatusCreated)
	want(call("bob", "GET", "/shop", ""), http.StatusNotFound)
	want(call("bob", "GET", "/shop/revisions", ""), http.StatusNotFound)
	for _, r := range []harness.Response{
		call("bob", "PUT", "/shop", definition, "If-Match", "*"), call("bob", "PATCH", "/shop", `{}`, "If-Match", "*"),
		call("bob", "DELETE", "/shop", "", "If-Match", "*"), call("bob", "POST", "/shop/rollback", `{}`, "If-Match", "*"),
	} {
		if r.Status != http.StatusForbidden && r.Status != http.StatusNotFound {
			t.Errorf("%d %s", r.Status, r.Body)
		}
	}
	want(call("bob", "PUT", "/other", definition), http.StatusConflict) // the host is Ann's
	want(call("bob", "PUT", "/other", `{"service":{"backend":{"type":"process","command":"/bin/true"}}}`), http.StatusForbidden)
	want(call("bob", "PUT", "/other?owner=ann", `{"template":"web","params":{"WHO":"a"}}`), http.StatusCreated)
	if r := call("bob", "GET", "", ""); !strings.Contains(r.Body, `"owner":"bob"`) || strings.Contains(r.Body, "ann") {
		t.Errorf("%s", r.Body)
	}
	want(call("bob", "PUT", "/second", `{"template":"web","params":{"WHO":"a"}}`), http.StatusCreated)
	want(call("bob", "PUT", "/third", `{"template":"web","params":{"WHO":"a"}}`), http.StatusTooManyRequests)
	want(call("ann", "DELETE", "/shop", "", "If-Match", "*"), http.StatusNoContent)
	want(call("bob", "POST", "/shop/rollback", `{}`), http.StatusForbidden)
	// A page of another site, in the browser of one who is logged in.
	want(call("ann", "POST", "/shop/rollback", `{}`, "Sec-Fetch-Site", "cross-site"), http.StatusForbidden)
	want(call("ann", "POST", "/shop/rollback", `{}`, "Origin", "https://evil.example"), http.StatusForbidden)
	want(call("ann", "POST", "/shop/rollback", `{}`), http.StatusOK)
}

// Certificates are made for the hosts of services that there are, and for no others.
func TestCertificatesAreForHostsOfServices(t *testing.T) {
	c := harness.New(t)
	cfg := registrySite(c)
	cfg.Global = "on_demand_tls {\n\tpermission usher apps.example.com\n}"
	_, port, _ := strings.Cut(c.TLSAddr, ":")
	cfg.Sites = fmt.Sprintf("https://:%s {\n\ttls internal {\n\t\ton_demand\n\t}\n\tusher {http.request.host}\n}\n", port)
	c.Start(cfg)
	mustCall(t, c, http.StatusCreated, "PUT", "hello", `{"template":"web","params":{"WHO":"world"},"hosts":["hello.example.net"]}`, "")
	shake := func(host string) error {
		d := tls.Dialer{Config: &tls.Config{ServerName: host, InsecureSkipVerify: true}}
		conn, err := d.DialContext(t.Context(), "tcp", c.TLSAddr)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	for host, want := range map[string]bool{
		"hello.example.net": true, "HELLO.example.net": true, "hello.apps.example.com": true,
		"other.example.net": false, "other.apps.example.com": false, "hello.example.com": false, "x.hello.apps.example.com": false, "hello": false, "example.net": false,
	} {
		if err := shake(host); (err == nil) != want {
			t.Errorf("%s: %v", host, err)
		}
	}
	mustCall(t, c, http.StatusNoContent, "DELETE", "hello", "", "*")
	certificates, err := os.ReadDir(filepath.Join(c.Dir, "data", "caddy", "certificates", "local"))
	if err != nil || len(certificates) != 2 {
		t.Errorf("%d certificates, %v", len(certificates), err)
	}
}

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

// made is a service that was made while Caddy runs, as the API shows it.
type made struct {
	Name       string `json:"name"`
	Origin     string `json:"origin"`
	Owner      string `json:"owner"`
	Revision   int    `json:"revision"`
	ETag       string `json:"etag"`
	InForce    int    `json:"in_force"`
	State      string `json:"state"`
	Trouble    string `json:"trouble"`
	Shadowed   bool   `json:"shadowed"`
	Definition struct {
		Template string            `json:"template"`
		Params   map[string]string `json:"params"`
		Hosts    []string          `json:"hosts"`
	} `json:"definition"`
	FellBack *struct{ Reason string } `json:"fell_back"`
}

// registrySite has a template with params, a registry, and places that find services
// by a label of the host, by the whole host and by a header.
func registrySite(c *harness.Caddy, options ...string) harness.Config {
	template := fmt.Sprintf(`template web {
	%s
	concurrency 4
	idle_timeout 1m
	start_attempts 2
	param WHO ^[a-z]{1,20}$ env
	param SIZE one_of small large env request default small
	param code ^[a-z]+$ default good
	max_services 5
}
registry {
	allow template web
	%s
}`, c.Backend("-exit-while", c.Path("fail-")+"{param.code}"), strings.Join(options, "\n\t"))
	return harness.Config{
		Usher: template,
		Site: `@label header_regexp Host ^[a-z0-9-]+\.apps\.example\.com
@header header X-Service *
handle @label {
	usher {http.request.host.labels.3}
}
handle @header {
	usher {http.request.header.X-Service} {
		from ^team-
	}
}
handle /manage/* {
	uri strip_prefix /manage
	basic_auth {
		ann $2a$04$DgrmTpBTpUvcRQ9kahyfFu8S3Nxn.JnOCiFZFpyOcEIOQeuusgtVO
		bob $2a$04$DgrmTpBTpUvcRQ9kahyfFu8S3Nxn.JnOCiFZFpyOcEIOQeuusgtVO
	}
	usher_registry {
		owner {http.auth.user.id}
	}
}
handle {
	usher {http.request.host}
}`,
	}
}

// registryCall makes a call of the admin API with a condition.
func registryCall(c *harness.Caddy, method, path, body, ifMatch string) (int, made, string) {
	req, err := http.NewRequest(method, "http://"+c.AdminAddr+"/usher/services/"+path, strings.NewReader(body))
	if err != nil {
		return 0, made{}, err.Error()
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if ifMatch != "" {
		req.Header.Set("If-Match", ifMatch)
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, made{}, err.Error()
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	var m made
	_ = json.Unmarshal(b, &m)
	return res.StatusCode, m, string(b)
}

// must makes a call that has to be answered with that status.
func mustCall(t *testing.T, c *harness.Caddy, status int, method, path, body, ifMatch string) made {
	t.Helper()
	got, m, text := registryCall(c, method, path, body, ifMatch)
	if got != status {
		t.Fatalf("%s %s: %d, want %d: %s", method, path, got, status, text)
	}
	return m
}

// variable is the value of a variable of the instance that has answered at /env.
func variable(r harness.Response, name string) string {
	for line := range strings.Lines(r.Body) {
		if value, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), name+"="); ok {
			return value
		}
	}
	return ""
}

// at sends a request to a host.
func at(c *harness.Caddy, host, path string, header ...string) harness.Response {
	h := http.Header{}
	for k := 0; k < len(header); k += 2 {
		h.Set(header[k], header[k+1])
	}
	return c.Do(harness.Request{Path: path, Host: host, Header: h})
}

func TestAServiceMadeWhileCaddyRuns(t *testing.T) {
	c := harness.New(t)
	c.Start(registrySite(c))
	if r := at(c, "hello.apps.example.com", "/"); r.Status != http.StatusNotFound || r.UsherError() != "unknown_service" {
		t.Fatalf("an unknown service: %d %s %s", r.Status, r.UsherError(), r.Body)
	}
	m := mustCall(t, c, http.StatusCreated, "PUT", "hello", `{"template":"web","params":{"WHO":"world"},"hosts":["hello.example.net"]}`, "")
	if m.Revision != 1 || m.ETag == "" || m.Origin != "run_time" {
		t.Fatalf("%+v", m)
	}
	for _, host := range []string{"hello.apps.example.com", "hello.example.net", "HELLO.Example.net"} {
		if r := at(c, host, "/env"); r.Status != 200 || variable(r, "WHO") != "world" {
			t.Fatalf("%s: %d %q %s", host, r.Status, r.Body, r.UsherError())
		}
	}
	// Not by a header that the operator's pattern does not let through, nor by another host.
	if r := at(c, "other.example.net", "/", "X-Service", "hello"); r.Status != http.StatusNotFound {
		t.Fatalf("by header: %d", r.Status)
	}
	if r := at(c, "hello", "/"); r.Status != http.StatusNotFound {
		t.Fatalf("by name in place of a host: %d", r.Status)
	}
	pid := at(c, "hello.example.net", "/").Header.Get("X-Pid")
	mustCall(t, c, http.StatusPreconditionRequired, "PUT", "hello", `{"template":"web","params":{"WHO":"moon"}}`, "")
	mustCall(t, c, http.StatusPreconditionFailed, "PUT", "hello", `{"template":"web","params":{"WHO":"moon"}}`, `"1-x"`)
	next := mustCall(t, c, http.StatusOK, "PATCH", "hello", `{"params":{"WHO":"moon"}}`, m.ETag)
	if next.Revision != 2 || len(next.Definition.Hosts) != 1 {
		t.Fatalf("%+v", next)
	}
	harness.Eventually(t, soon, func() bool {
		r := at(c, "hello.example.net", "/env")
		return r.Status == 200 && variable(r, "WHO") == "moon" && r.Header.Get("X-Pid") != pid
	}, "the new revision does not serve")
	back := mustCall(t, c, http.StatusOK, "POST", "hello/rollback", `{}`, next.ETag)
	if back.Revision != 3 || back.Definition.Params["WHO"] != "***" { // it is a variable, which may be a secret
		t.Fatalf("%+v", back)
	}

	// It survives a reload, and Caddy.
	c.MustReload(registrySite(c, "keep_revisions 5"))
	if got := shown(c, "hello"); got.Revision != 3 || got.FellBack != nil {
		t.Fatalf("after a reload: %+v", got)
	}
	c.Kill()
	c.Start(registrySite(c))
	if r := at(c, "hello.example.net", "/env"); r.Status != 200 || variable(r, "WHO") != "world" {
		t.Fatalf("after a restart: %d %q", r.Status, r.Body)
	}
	mustCall(t, c, http.StatusNoContent, "DELETE", "hello", "", back.ETag)
	if r := at(c, "hello.example.net", "/"); r.Status != http.StatusNotFound {
		t.Fatalf("deleted: %d", r.Status)
	}
	c.AwaitProcesses(0, soon)
	again := mustCall(t, c, http.StatusOK, "POST", "hello/rollback", `{}`, "")
	if r := at(c, "hello.example.net", "/"); r.Status != 200 || again.Revision != 4 {
		t.Fatalf("brought back: %d %+v", r.Status, again)
	}
}

// shown is what a GET says of a service; nothing, if it says that there is none.
func shown(c *harness.Caddy, name string) made {
	var got struct{ Made made }
	_, _, text := registryCall(c, "GET", name, "", "")
	_ = json.Unmarshal([]byte(text), &got)
	return got.Made
}

func TestARevisionThatCannotBeStartedGivesWayToTheOneBefore(t *testing.T) {
	c := harness.New(t)
	c.Start(registrySite(c))
	first := mustCall(t, c, http.StatusCreated, "PUT", "hello", `{"template":"web","params":{"WHO":"good"},"hosts":["hello.example.net"]}`, "")
	at(c, "hello.example.net", "/")
	c.Open("fail-bad")
	bad := mustCall(t, c, http.StatusOK, "PATCH", "hello", `{"params":{"WHO":"bad","code":"bad"}}`, first.ETag)
	// Requests are served all the time.
	harness.Eventually(t, soon, func() bool {
		if r := at(c, "hello.example.net", "/env"); r.Status != 200 || variable(r, "WHO") != "good" {
			t.Fatalf("%d %q %s", r.Status, r.Body, r.UsherError())
		}
		got := shown(c, "hello")
		return got.FellBack != nil && got.InForce == 1 && got.Revision == bad.Revision && strings.Contains(got.FellBack.Reason, "exit status 3")
	}, "the service does not say that it fell back")
	c.Kill()
	c.Start(registrySite(c))
	if r := at(c, "hello.example.net", "/env"); r.Status != 200 || variable(r, "WHO") != "good" {
		t.Fatalf("after a restart: %d %q", r.Status, r.Body)
	}
}

func TestAfterTwoRevisionsThatCannotBeStartedTheOneThatServedIsInForce(t *testing.T) {
	c := harness.New(t)
	c.Start(registrySite(c))
	first := mustCall(t, c, http.StatusCreated, "PUT", "hello", `{"template":"web","params":{"WHO":"good"},"hosts":["hello.example.net"]}`, "")
	at(c, "hello.example.net", "/")
	c.Open("fail-bad")
	bad := mustCall(t, c, http.StatusOK, "PATCH", "hello", `{"params":{"WHO":"bad","code":"bad"}}`, first.ETag)
	// One made of the same, and one that is not.
	bad = mustCall(t, c, http.StatusOK, "PATCH", "hello", `{"hosts":["hello.example.net","hallo.example.net"]}`, bad.ETag)
	mustCall(t, c, http.StatusOK, "PATCH", "hello", `{"params":{"WHO":"worse"}}`, bad.ETag)
	harness.Eventually(t, soon, func() bool {
		if r := at(c, "hello.example.net", "/env"); r.Status != 200 || variable(r, "WHO") != "good" {
			t.Fatalf("%d %q %s", r.Status, r.Body, r.UsherError())
		}
		got := shown(c, "hello")
		return got.FellBack != nil && got.InForce == 1 && got.Revision == 4
	}, "the first revision is not in force")
}

func TestAServiceThatWentBackHasTheHostsOfWhatServes(t *testing.T) {
	c := harness.New(t)
	c.Start(registrySite(c))
	first := mustCall(t, c, http.StatusCreated, "PUT", "hello", `{"template":"web","params":{"WHO":"good"},"hosts":["hello.example.net"]}`, "")
	at(c, "hello.example.net", "/")
	c.Open("fail-bad")
	mustCall(t, c, http.StatusOK, "PATCH", "hello", `{"params":{"WHO":"bad","code":"bad"},"hosts":["new.example.net"]}`, first.ETag)
	harness.Eventually(t, soon, func() bool {
		r := at(c, "hello.example.net", "/env")
		return r.Status == 200 && variable(r, "WHO") == "good"
	}, "the host of the revision that serves leads nowhere")
	if r := at(c, "new.example.net", "/"); r.Status != http.StatusNotFound {
		t.Errorf("the host of the one that failed: %d", r.Status)
	}
}

func TestAServiceOfTheConfigurationGoesBeforeOneOfItsName(t *testing.T) {
	c := harness.New(t)
	c.Start(registrySite(c))
	mustCall(t, c, http.StatusCreated, "PUT", "hello", `{"template":"web","params":{"WHO":"made"},"hosts":["hello.example.net"]}`, "")
	cfg := registrySite(c)
	cfg.Usher += "\nservice hello {\n" + c.Backend() + "\n}"
	c.MustReload(cfg)
	if r := at(c, "hello.example.net", "/"); r.Status != http.StatusNotFound {
		t.Fatalf("shadowed: %d", r.Status)
	}
	mustCall(t, c, http.StatusConflict, "PUT", "hello", `{"template":"web","params":{"WHO":"other"}}`, "*")
	c.MustReload(registrySite(c))
	if r := at(c, "hello.example.net", "/env"); r.Status != 200 || variable(r, "WHO") != "made" {
		t.Fatalf("no longer shadowed: %d %q", r.Status, r.Body)
	}
}

func TestParamsOfRequestsMakeServicesOfTheirOwn(t *testing.T) {
	c := harness.New(t)
	c.Start(registrySite(c))
	for _, name := range []string{"one", "two", "three"} {
		mustCall(t, c, http.StatusCreated, "PUT", name, `{"template":"web","params":{"WHO":"me"},"hosts":["`+name+`.example.net"]}`, "")
	}
	small, large := at(c, "one.example.net", "/env"), at(c, "one.example.net", "/env", "Usher-Param-SIZE", "large")
	if variable(small, "SIZE") != "small" || variable(large, "SIZE") != "large" || small.Header.Get("X-Pid") == large.Header.Get("X-Pid") {
		t.Fatalf("%q %q", small.Body, large.Body)
	}
	if r := at(c, "one.example.net", "/env", "Usher-Param-SIZE", "huge"); r.Status != http.StatusBadRequest || r.UsherError() != "bad_param" {
		t.Fatalf("%d %s", r.Status, r.UsherError())
	}
	if r := at(c, "two.example.net", "/env", "Usher-Param-SIZE", "large"); r.Status != 200 {
		t.Fatalf("%d %s", r.Status, r.UsherError())
	}
	// Five of the template are there, and all that a request has made run.
	if r := at(c, "three.example.net", "/", "Usher-Param-SIZE", "large"); r.Status != http.StatusTooManyRequests || r.UsherError() != "too_many_services" {
		t.Fatalf("%d %s", r.Status, r.UsherError())
	}
	if r := at(c, "three.example.net", "/env"); r.Status != 200 || variable(r, "SIZE") != "small" {
		t.Fatalf("%d %s", r.Status, r.UsherError())
	}
}

// A storage that does not work is an operator's business: its owner learns that the
// change was not made, and the log why. What cannot be read is named.
func TestAStorageThatFailsIsNamedToOperators(t *testing.T) {
	c := harness.New(t)
	c.Start(registrySite(c))
	services := filepath.Join(c.Dir, "data", "caddy", "usher", "registry", "services")
	m := mustCall(t, c, http.StatusCreated, "PUT", "hello", `{"template":"web","params":{"WHO":"a"},"hosts":["hello.example.net"]}`, "")
	if err := errors.Join(os.Rename(services, services+".away"), os.WriteFile(services, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	header := http.Header{}
	(&http.Request{Header: header}).SetBasicAuth("ann", "secret")
	r := c.Do(harness.Request{Method: "PUT", Path: "/manage/services/mine", Header: header, Body: strings.NewReader(`{"template":"web","params":{"WHO":"a"}}`)})
	if r.Status != http.StatusServiceUnavailable || strings.Contains(r.Body, c.Dir) || !strings.Contains(c.RawLog(), "a service could not be changed at run time") {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	if status, _, text := registryCall(c, "PATCH", "hello", `{"params":{"WHO":"b"}}`, m.ETag); status != http.StatusServiceUnavailable || !strings.Contains(text, c.Dir) {
		t.Errorf("%d %s", status, text)
	}
	if r := at(c, "hello.example.net", "/env"); r.Status != 200 || variable(r, "WHO") != "a" {
		t.Errorf("%d %q", r.Status, r.Body)
	}
	if err := errors.Join(os.Remove(services), os.Rename(services+".away", services), os.WriteFile(filepath.Join(services, "torn.json"), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, soon, func() bool {
		status, _, _ := registryCall(c, "PATCH", "hello", `{"params":{"WHO":"b"}}`, m.ETag)
		return status == http.StatusOK
	}, "changes are made again")
	c.Kill()
	c.Start(registrySite(c))
	if log := c.RawLog(); !strings.Contains(log, "mend its record in the storage") || !strings.Contains(log, `"service":"torn"`) {
		t.Error("the log does not name what cannot be read")
	}
}

// A storage that is not there any more, because its directory is not mounted, takes no
// service away.
func TestAStorageThatVanishesTakesNoServiceAway(t *testing.T) {
	c := harness.New(t)
	c.Start(registrySite(c))
	m := mustCall(t, c, http.StatusCreated, "PUT", "hello", `{"template":"web","params":{"WHO":"a"},"hosts":["hello.example.net"]}`, "")
	stored := filepath.Join(c.Dir, "data", "caddy", "usher", "registry")
	if err := os.Rename(stored, stored+".away"); err != nil {
		t.Fatal(err)
	}
	if status, _, text := registryCall(c, "PATCH", "hello", `{"params":{"WHO":"b"}}`, m.ETag); status != http.StatusServiceUnavailable || !strings.Contains(text, "is gone from the storage") {
		t.Errorf("%d %s", status, text)
	}
	c.MustReload(registrySite(c, "keep_revisions 5"))
	if r := at(c, "hello.example.net", "/env"); r.Status != 200 || variable(r, "WHO") != "a" {
		t.Errorf("%d %q", r.Status, r.Body)
	}
	if err := errors.Join(os.RemoveAll(stored), os.Rename(stored+".away", stored)); err != nil {
		t.Fatal(err)
	}
	mustCall(t, c, http.StatusOK, "PATCH", "hello", `{"params":{"WHO":"b"}}`, m.ETag)
}

// The error routes of a site answer for a service that there is not, as for all other
// errors of Usher's own.
func TestErrorRoutesAnswerForAnUnknownService(t *testing.T) {
	c := harness.New(t)
	cfg := registrySite(c)
	cfg.Site += "\nhandle_errors {\n\trespond \"sorry: {http.usher.error}\" {err.status_code}\n}"
	c.Start(cfg)
	if r := at(c, "nothing.example.net", "/"); r.Status != http.StatusNotFound || r.Body != "sorry: unknown_service" || r.UsherError() != "unknown_service" {
		t.Errorf("%d %s %q", r.Status, r.UsherError(), r.Body)
	}
}

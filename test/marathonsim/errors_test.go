package marathonsim_test

import (
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/marathonsim"
)

func TestErrorsAreInMarathonsWords(t *testing.T) {
	s := start(t, quick())
	s.createCmd("/idle", "sleep 1000", 0, "")
	s.settled("/idle", 0)
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string // the whole body, or its beginning if it ends in ...
	}{
		{"GET", "/v2/apps/none", "", 404, `{"message":"App '/none' does not exist"}`},
		{"PATCH", "/v2/apps/none", `{"instances":1}`, 404, `{"message":"App '/none' does not exist"}`},
		{"DELETE", "/v2/apps/none", "", 404, `{"message":"App '/none' does not exist"}`},
		{"POST", "/v2/apps/none/restart", "", 404, `{"message":"App '/none' does not exist"}`},
		{"PUT", "/v2/apps/none", `{"instances":1}`, 422, `{"message":"Object is not valid","details":[{"path":"/","errors":["AppDefinition must either contain one of 'cmd' or 'args', and/or a 'container'."]}]}`},
		{"POST", "/v2/apps", `{"id":"/idle","cmd":"true"}`, 409, `{"message":"An app with id [/idle] already exists."}`},
		{"POST", "/v2/apps", `{"id":"/a/tasks","cmd":"true"}`, 422, `{"message":"Object is not valid","details":[{"path":"/id"...`},
		{"PATCH", "/v2/apps/idle", `{"instances":`, 400, `{"message":"Invalid JSON","details":"...`},
		{"PATCH", "/v2/apps/idle", ``, 400, `{"message":"Please specify data in JSON format","details":"...`},
		{"PATCH", "/v2/apps/idle", `{"instances":"one"}`, 422, `{"message":"Invalid JSON","details":[{"path":"/instances","errors":["error.expected.jsnumber"]}]}`},
		{"PATCH", "/v2/apps/idle", `{"instances":-1}`, 422, `{"message":"Object is not valid","details":[{"path":"/instances"...`},
		{"DELETE", "/v2/apps/idle/tasks/idle.instance-1-2._app.1", "", 404, `{"message":"Task 'idle.instance-1-2._app.1' does not exist"}`},
		{"DELETE", "/v2/apps/idle/tasks/idle.instance-1-2._app.1?scale=true", "", 404, `{"message":"Path '/idle' does not exist"}`},
		{"DELETE", "/v2/apps/idle/tasks?scale=true&wipe=true", "", 400, `{"message":"You cannot use scale and wipe at the same time."}`},
		{"POST", "/v2/tasks/delete", `{"ids":["nonsense"]}`, 400, `{"message":"Invalid task id 'nonsense'. [...`},
		{"DELETE", "/v2/deployments/none", "", 404, `{"message":"DeploymentPlan none does not exist"}`},
		{"DELETE", "/v2/queue/idle/delay", "", 404, `{"message":"Application /idle not found in tasks queue."}`},
		{"GET", "/v2/nothing", "", 500, `{"message":"URI not found"}`},
	} {
		a := s.call(c.method, c.path, c.body)
		prefix, partial := strings.CutSuffix(c.want, "...")
		if a.status != c.status || !(a.body == c.want || partial && strings.HasPrefix(a.body, prefix)) {
			t.Errorf("%s %s %s\n got %d %s\nwant %d %s", c.method, c.path, c.body, a.status, a.body, c.status, c.want)
		}
	}

	// Ids of what is gone are no error, and lead to a deployment of nothing.
	gone := s.want(200, "POST", "/v2/tasks/delete?scale=true", `{"ids":["idle.instance-1-2._app.1"]}`)
	if gone.str("deploymentId") == "" {
		t.Errorf("delete of what is gone: %s", gone.body)
	}
}

func TestOldVersionsHaveOtherErrors(t *testing.T) {
	cfg := quick()
	cfg.Profile = "1.4"
	s := start(t, cfg)
	s.createCmd("/idle", "sleep 1000", 0, "")
	if a := s.get("/v2/nothing"); a.status != 404 || a.str("message") != "URI not found: v2/nothing" {
		t.Errorf("unknown address: %d %s", a.status, a.body)
	}
	if a := s.call("PATCH", "/v2/apps/idle", `{"instances":"one"}`); a.status != 400 {
		t.Errorf("wrong type: %d %s", a.status, a.body)
	}
}

func TestAnswersCarryMarathonsHeaders(t *testing.T) {
	s := start(t, quick())
	lead := s.leader()
	a, err := s.try(lead, "GET", "/v2/apps", "")
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"X-Marathon-Leader": s.URLs()[lead], "X-Frame-Options": "DENY", "Cache-Control": "no-cache, no-store, must-revalidate",
		"Pragma": "no-cache", "Expires": "0", "Content-Type": "application/json",
	} {
		if a.header.Get(k) != v {
			t.Errorf("%s is %q, want %q", k, a.header.Get(k), v)
		}
	}
	if ping, _ := s.try(lead, "GET", "/ping", ""); ping.body != "pong" || !strings.HasPrefix(ping.header.Get("Content-Type"), "text/plain") {
		t.Errorf("ping: %v %s", ping.header, ping.body)
	}
	if ping, _ := s.try(lead, "GET", "/ping", "", "Accept", "application/json"); ping.body != `"pong"` {
		t.Errorf("ping as JSON: %s", ping.body)
	}
}

func TestCredentialsAreAskedFor(t *testing.T) {
	cfg := quick()
	cfg.Auth.User, cfg.Auth.Password = "usher", "secret"
	s := start(t, cfg)
	for _, path := range []string{"/ping", "/v2/apps"} {
		if a := s.get(path); a.status != 401 || a.header.Get("WWW-Authenticate") != `Basic realm="Mesosphere"` {
			t.Errorf("%s without credentials: %d %v", path, a.status, a.header)
		}
	}
	const basic = "Basic dXNoZXI6c2VjcmV0" // usher:secret
	if a := s.call("GET", "/v2/apps", "", "Authorization", basic); a.status != 200 {
		t.Errorf("with credentials: %d", a.status)
	}

	s.SetAuth(marathonsim.Auth{Token: "t2"})
	if a := s.call("GET", "/v2/apps", "", "Authorization", "token=t1"); a.status != 401 {
		t.Errorf("with an old token: %d", a.status)
	}
	if a := s.call("GET", "/v2/apps", "", "Authorization", "token=t2"); a.status != 200 {
		t.Errorf("with a token: %d", a.status)
	}
}

func TestDeniedAppsAreForbiddenAndNotListed(t *testing.T) {
	cfg := quick()
	cfg.Auth.Denied = []string{"/secret/"}
	s := start(t, cfg)
	if err := s.UpdateApp("/secret/a", `{}`, false); err == nil {
		t.Error("the operator is denied as well: there is one authorisation for all")
	}
	s.SetAuth(marathonsim.Auth{})
	s.createCmd("/secret/a", "sleep 1000", 0, "")
	s.createCmd("/open", "sleep 1000", 0, "")
	s.SetAuth(marathonsim.Auth{Denied: []string{"/secret/"}})
	if a := s.get("/v2/apps/secret/a"); a.status != 403 {
		t.Errorf("a denied app: %d %s", a.status, a.body)
	}
	if a := s.get("/v2/apps"); len(a.list("apps")) != 1 || a.str("apps.0.id") != "/open" {
		t.Errorf("the list: %s", a.body)
	}
}

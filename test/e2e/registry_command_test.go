package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

// keep writes a file beside Caddy's configuration, and returns its name.
func keep(t *testing.T, c *harness.Caddy, name, text string) string {
	t.Helper()
	name = c.Path(name)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// wantUsher runs `caddy usher`, and wants an exit status and words.
func wantUsher(t *testing.T, c *harness.Caddy, status int, says string, args ...string) string {
	t.Helper()
	out, got := usher(c, args...)
	if got != status || !strings.Contains(out, says) {
		t.Fatalf("%s: status %d, want %d with %q:\n%s", strings.Join(args, " "), got, status, says, out)
	}
	return out
}

func TestCommandsMakeAndChangeServices(t *testing.T) {
	c := harness.New(t)
	c.Start(registrySite(c))
	first := keep(t, c, "services.caddyfile", `service hello {
	template web
	param WHO world
	hosts hello.example.net
}
service other {
	template web
	param WHO other
	hosts other.example.net
}`)
	out := wantUsher(t, c, 0, "hello is created: revision 1. It is asleep: the next request starts it.", "apply", "-f", first)
	if !strings.Contains(out, "other is created") {
		t.Fatal(out)
	}
	for host, who := range map[string]string{"hello.example.net": "world", "other.example.net": "other"} {
		if r := at(c, host, "/env"); r.Status != 200 || variable(r, "WHO") != who {
			t.Fatalf("%s: %d %q %s", host, r.Status, r.Body, r.UsherError())
		}
	}
	wantUsher(t, c, 0, "hello is unchanged: revision 1. It is in force: 1 ready.", "apply", "-f", first)
	wantUsher(t, c, 5, "exists already", "apply", "-f", first, "--create-only", "hello")

	// When apply has ended, the new revision serves.
	second := keep(t, c, "hello.json", `{"template":"web","params":{"WHO":"moon"},"hosts":["hello.example.net"]}`)
	wantUsher(t, c, 0, "hello is changed: revision 2. It is in force", "apply", "-f", second, "hello", "--owner", "ann")
	if r := at(c, "hello.example.net", "/env"); variable(r, "WHO") != "moon" {
		t.Fatalf("%d %q", r.Status, r.Body)
	}
	wantUsher(t, c, 0, `"WHO": "***"`, "get", "hello")
	wantUsher(t, c, 5, "has changed", "apply", "-f", first, "hello", "--if-match", `"1-x"`)

	out = wantUsher(t, c, 0, "run time", "list")
	if !strings.Contains(out, "ann") {
		t.Errorf("the owner is missing:\n%s", out)
	}
	wantUsher(t, c, 0, "the admin API", "show", "hello")
	wantUsher(t, c, 0, "template web, WHO=***", "history", "hello")
	wantUsher(t, c, 0, "hello is as in revision 1: revision 3. It is in force", "rollback", "hello", "1")
	if r := at(c, "hello.example.net", "/env"); variable(r, "WHO") != "world" {
		t.Fatalf("%d %q", r.Status, r.Body)
	}
	wantUsher(t, c, 0, "hello is deleted", "delete", "hello")
	if r := at(c, "hello.example.net", "/"); r.Status != http.StatusNotFound {
		t.Fatalf("deleted: %d", r.Status)
	}
	wantUsher(t, c, 0, "hello is brought back: revision 4", "rollback", "hello")
	wantUsher(t, c, 4, "there is no service", "delete", "nothing")
	wantUsher(t, c, 5, "no template", "apply", "-f", keep(t, c, "wrong.json", `{"wrong":{"template":"nothing"}}`))
}

func TestApplySaysThatARevisionGaveWay(t *testing.T) {
	c := harness.New(t)
	cfg := registrySite(c)
	cfg.Usher = strings.Replace(cfg.Usher, "concurrency 4", "concurrency 4\n\toverlap off", 1)
	c.Start(cfg)
	wantUsher(t, c, 0, "created", "apply", "-f", keep(t, c, "good.json", `{"hello":{"template":"web","params":{"WHO":"good"},"hosts":["hello.example.net"]}}`))
	if r := at(c, "hello.example.net", "/"); r.Status != 200 {
		t.Fatal(r.Status, r.Body)
	}
	c.Open("fail-bad")
	// The instance stops before the next one starts. While no request waits, one failure
	// proves little.
	bad := keep(t, c, "bad.json", `{"hello":{"template":"web","params":{"WHO":"worse","code":"bad"},"hosts":["hello.example.net"]}}`)
	wantUsher(t, c, 6, "It is asleep, and its last start failed. The next request starts it again. exit status 3", "apply", "-f", bad)
	if r := at(c, "hello.example.net", "/env"); r.Status != 200 || variable(r, "WHO") != "good" {
		t.Fatalf("%d %q", r.Status, r.Body)
	}

	c.MustReload(registrySite(c))
	bad = keep(t, c, "bad.json", `{"hello":{"template":"web","params":{"WHO":"bad","code":"bad"},"hosts":["hello.example.net"]}}`)
	out := wantUsher(t, c, 6, "so revision 1 is in force again", "apply", "-f", bad)
	if !strings.Contains(out, "exit status 3") {
		t.Errorf("the reason is missing:\n%s", out)
	}
	if r := at(c, "hello.example.net", "/env"); r.Status != 200 || variable(r, "WHO") != "good" {
		t.Fatalf("%d %q", r.Status, r.Body)
	}
	wantUsher(t, c, 0, "revision 3 could not be started: ", "list")
	wantUsher(t, c, 0, "Fell back:", "show", "hello")
	wantUsher(t, c, 0, "failed: ", "history", "hello")

	// What was missing is there now, and the same file is a new try.
	c.Shut("fail-bad")
	wantUsher(t, c, 0, "hello is tried again: revision 3. It is in force", "apply", "-f", bad)
	if r := at(c, "hello.example.net", "/env"); r.Status != 200 || variable(r, "WHO") != "bad" {
		t.Fatalf("%d %q", r.Status, r.Body)
	}
}

func TestEditChangesAServiceAndKeepsItsSecrets(t *testing.T) {
	c := harness.New(t)
	c.Start(registrySite(c))
	edit := func(says string) {
		t.Helper()
		cmd := exec.Command(harness.Build(t).Caddy, "usher", "edit", "hello", "--address", c.AdminAddr)
		cmd.Dir, cmd.Env = c.Dir, append(os.Environ(), "VISUAL=sed -i s/hello.example/moon.example/", "TMPDIR="+c.Dir)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), says) {
			t.Fatalf("%v, want %q:\n%s", err, says, out)
		}
	}
	wantUsher(t, c, 0, "created", "apply", "-f", keep(t, c, "hello.json", `{"hello":{"template":"web","params":{"WHO":"world"},"hosts":["hello.example.net"]}}`))
	edit("hello is changed: revision 2.")
	// What was shown as *** is what it was.
	if r := at(c, "moon.example.net", "/env"); r.Status != 200 || variable(r, "WHO") != "world" {
		t.Fatalf("%d %q", r.Status, r.Body)
	}
	edit("hello is unchanged: nothing was sent.")
}

func TestListHasServicesThatDoNotRunAsTheirDefinitionsSay(t *testing.T) {
	c := harness.New(t)
	c.Start(registrySite(c))
	wantUsher(t, c, 0, "created", "apply", "-f", keep(t, c, "hello.json", `{"hello":{"template":"web","params":{"WHO":"world"}}}`))
	cfg := registrySite(c)
	cfg.Usher += "\nservice hello {\n" + c.Backend() + "\n}"
	c.MustReload(cfg)
	out := wantUsher(t, c, 0, "the configuration has a service of that name", "list")
	if !strings.Contains(out, "NOT IN FORCE") {
		t.Error(out)
	}
	wantUsher(t, c, 5, "in the configuration", "apply", "-f", c.Path("hello.json"))
}

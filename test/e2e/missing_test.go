package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

// lacking are services that this machine lacks something for, by name: their
// backends, and what the reason has to say.
func lacking(c *harness.Caddy) map[string][2]string {
	return map[string][2]string{
		"command":    {c.Command("", c.Path("late")), c.Path("late") + " does not exist"},
		"directory":  {c.BackendWith("dir " + c.Path("no-dir")), c.Path("no-dir") + " does not exist"},
		"user":       {c.BackendWith("user no-such-user"), "no-such-user"},
		"env-file":   {c.BackendWith("env_file " + c.Path("no-env")), c.Path("no-env")},
		"file":       {c.BackendWith("env SECRET {file." + c.Path("no-secret") + "}"), c.Path("no-secret")},
		"token":      {"backend marathon /web {\nurl http://127.0.0.1:1\ntoken_file " + c.Path("no-token") + "\n}", c.Path("no-token")},
		"ca":         {"backend marathon /web {\nurl https://127.0.0.1:1\nca_file " + c.Path("no-ca") + "\n}", c.Path("no-ca")},
		"kubeconfig": {"backend kubernetes deployment/web {\nkubeconfig " + c.Path("no-kube") + "\n}", c.Path("no-kube")},
	}
}

func site(services map[string][2]string, web string) string {
	var b strings.Builder
	for name, s := range services {
		fmt.Fprintf(&b, "handle /%s* {\n%s\n}\n", name, harness.Usher(name, s[0]))
	}
	return b.String() + "handle {\n" + web + "\n}"
}

func TestAMissingCommandOrFileDoesNotKeepCaddyFromStarting(t *testing.T) {
	c := newCaddy(t)
	services := lacking(c)
	c.Start(harness.Config{Site: site(services, webBlock(c, nil))})
	wantOK(t, c.Get("/"))
	for name, s := range services {
		st := c.Service(name)
		if st.State != "failing" || !strings.Contains(fmt.Sprint(st.LastError), s[1]) {
			t.Errorf("%s is %s, last error %v; want %q", name, st.State, st.LastError, s[1])
		}
		r := c.Get("/" + name)
		if r.Status != 503 || r.Header.Get("Usher-Error") != "start_failed" {
			t.Errorf("%s: a request gets %d %s", name, r.Status, r.Header.Get("Usher-Error"))
		}
	}

	// An unrelated change can be loaded, and what is missing stays missing.
	c.MustReload(harness.Config{Site: site(services, webBlock(c, nil, "max_waiting 7"))})
	if st := c.Service("user"); st.State != "failing" {
		t.Errorf("after a reload user is %s", st.State)
	}
	// One more that lacks something cannot.
	services["other"] = [2]string{c.Command("", c.Path("never")), ""}
	err := c.Reload(harness.Config{Site: site(services, webBlock(c, nil))})
	if err == nil || !strings.Contains(err.Error(), "service other") || !strings.Contains(err.Error(), "never does not exist") {
		t.Errorf("a reload that introduces it: %v", err)
	}
	wantOK(t, c.Get("/"))
}

func TestAServiceRecoversWhenWhatItLackedAppears(t *testing.T) {
	c := newCaddy(t)
	services := lacking(c)
	for name := range services {
		if name != "command" && name != "env-file" && name != "directory" {
			delete(services, name)
		}
	}
	c.Start(harness.Config{Site: site(services, webBlock(c, nil))})
	if err := os.Symlink(c.App(), c.Path("late")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(c.Path("no-dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.Path("no-env"), []byte("A=1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name := range services {
		harness.Eventually(t, soon, func() bool { return c.Get("/"+name).Status == 200 }, name+" serves")
	}
	// The same configuration is the same revision now: nothing is replaced.
	before := c.Journal().Starts()
	c.MustReload(harness.Config{Site: site(services, webBlock(c, nil, "max_waiting 7"))})
	for name := range services {
		wantOK(t, c.Get("/"+name))
	}
	if after := c.Journal().Starts(); after != before {
		t.Errorf("%d more were started by a reload", after-before)
	}
}

func TestAReloadAndValidateRefuseWhatThisMachineLacks(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil))
	for name, s := range lacking(c) {
		cfg := harness.Config{Site: site(map[string][2]string{name: s}, webBlock(c, nil))}
		if err := c.Reload(cfg); err == nil || !strings.Contains(err.Error(), "service "+name) || !strings.Contains(err.Error(), s[1]) {
			t.Errorf("reload with %s: %v", name, err)
		}
		if out, status := c.RunConfig(cfg, "validate"); status == 0 || !strings.Contains(out, "service "+name) || !strings.Contains(out, s[1]) {
			t.Errorf("validate with %s: status %d: %s", name, status, out)
		}
	}
	harness.Eventually(t, soon, func() bool { return c.Get("/").Status == 200 }, "what was there before serves on")
}

func TestRestartGivesInstancesTheNewSecret(t *testing.T) {
	c := newCaddy(t)
	secret := c.Path("secret")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(secret, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	c.Start(harness.Config{Site: harness.Usher("web", c.BackendWith("env SECRET {file."+secret+"}"))})
	wantOK(t, c.Get("/"))
	write("second")
	c.Post("web/restart", "")
	harness.Eventually(t, soon, func() bool { return strings.Contains(c.Get("/env").Body, "SECRET=second") }, "the new secret")
	// It is what the file says, so a reload changes nothing.
	before := c.Journal().Starts()
	c.MustReload(harness.Config{Site: harness.Usher("web", c.BackendWith("env SECRET {file."+secret+"}"), "max_waiting 7")})
	wantOK(t, c.Get("/"))
	if after := c.Journal().Starts(); after != before {
		t.Errorf("a reload started %d more", after-before)
	}
	if err := os.Remove(secret); err != nil {
		t.Fatal(err)
	}
	if r := c.Admin("POST", "/usher/services/web/restart", ""); r.Status/100 == 2 || !strings.Contains(r.Body, secret) {
		t.Errorf("a restart without the file: %d %s", r.Status, r.Body)
	}
	wantOK(t, c.Get("/"))
}

package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

func TestAChangedEnvFileReplacesTheInstancesAtAReload(t *testing.T) {
	c := newCaddy(t)
	path := c.Path("web.env")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Caddy takes an equal configuration for no change at all.
	cfg := func(change string) harness.Config {
		return harness.Config{Site: harness.Usher("web", c.BackendWith("env_file "+path), "instances 0 1") + "\nheader X-Load " + change}
	}
	variable := func(want string) {
		t.Helper()
		harness.Eventually(t, soon, func() bool {
			r := c.Get("/env")
			return r.Status == 200 && strings.Contains(r.Body, want)
		}, "an instance has %s", want)
	}
	write("GREETING='good morning'\n")
	c.Start(cfg("1"))
	variable("GREETING=good morning")
	first := c.Service("web").InstanceList[0].ID

	c.MustReload(cfg("2"))
	variable("GREETING=good morning")
	if now := c.Service("web").InstanceList[0].ID; now != first {
		t.Errorf("nothing has changed, and instance %s was replaced by %s", first, now)
	}
	write("GREETING='good evening'\n")
	c.MustReload(cfg("3"))
	variable("GREETING=good evening")

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := c.Reload(cfg("4")); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "create it") {
		t.Errorf("a reload without the file: %v", err)
	}
	variable("GREETING=good evening")
	if shown := c.Admin("GET", "/usher/services/web", "").Body; strings.Contains(shown, "evening") {
		t.Errorf("the admin API shows a value: %s", shown)
	}
}

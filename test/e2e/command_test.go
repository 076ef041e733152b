package e2e

import (
	"bufio"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

// usher runs `caddy usher` against the running Caddy.
func usher(c *harness.Caddy, args ...string) (output string, status int) {
	return c.Run(append(append([]string{"usher"}, args...), "--address", c.AdminAddr)...)
}

func TestCommandsOperateAService(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil))
	want := func(line, says string, status int) {
		t.Helper()
		out, got := usher(c, strings.Fields(line)...)
		if got != status || !strings.Contains(out, says) {
			t.Errorf("%s: status %d, want %d with %q:\n%s", line, got, status, says, out)
		}
	}
	want("list", "asleep", 0)
	want("explain web", "no request has come", 0)
	want("wake web", "web wakes up.", 0)
	c.AwaitState("web", "awake", soon)
	want("explain web", "asked for by an operator", 0)
	want("show web", c.Service("web").InstanceList[0].ID, 0)
	want("suspend web --reason moving", "web is suspended.", 0)
	want("wake web", "resume it first", 5)
	if r := c.Get("/"); !strings.Contains(r.Body, "moving") {
		t.Errorf("the reason is not told: %s", r.Body)
	}
	want("show web", "suspended (moving)", 0)
	want("explain web", "nothing, until it is resumed", 0)
	want("resume web", "web is resumed.", 0)
	wantOK(t, c.Get("/"))
	harness.Eventually(t, soon, func() bool { return c.Service("web").Slots.InUse == 0 }, "the end of the request")
	want("explain web", "if no request comes", 0)
	want("sleep web", "web goes to sleep.", 0)
	c.AwaitProcesses(0, soon)
	want("show missing", "there is no service missing", 4)
	want("show", "accepts 1 arg", 1)
	want("dance", "unknown", 1)
	if out, status := c.Run("usher", "list", "--address", c.SpareAddr); status != 1 || !strings.Contains(out, "does not answer") {
		t.Errorf("without Caddy: status %d: %s", status, out)
	}

	// As for Caddy's own commands the address may come from the configuration.
	if out, status := c.Run("usher", "list", "--config", c.Path("Caddyfile"), "--adapter", "caddyfile"); status != 0 || !strings.Contains(out, "web") {
		t.Errorf("with --config: status %d: %s", status, out)
	}
}

func TestCommandWatchPrintsWhatHappensAcrossAReload(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil))
	cmd := exec.Command(harness.Build(t).Caddy, "usher", "watch", "web", "--json", "--address", c.AdminAddr)
	cmd.Dir = c.Dir
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	lines := bufio.NewScanner(stdout)
	until := func(event, to string) {
		t.Helper()
		for lines.Scan() {
			var e struct {
				Event string
				Data  struct{ To, State any }
			}
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Fatalf("%v: %s", err, lines.Text())
			}
			if e.Event == event && (e.Data.To == to || e.Data.State == to) {
				return
			}
		}
		t.Fatalf("it ended before %s %s", event, to)
	}
	until("service", "asleep")
	wantOK(t, c.Get("/"))
	until("state", "awake")
	c.MustReload(web(c, nil, "max_waiting 7"))
	until("service", "awake")
	c.Post("web/sleep", "")
	until("state", "asleep")
}

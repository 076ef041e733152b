// Package e2e tests Usher from outside: the real Caddy, real processes, real
// clients. Tests of a guarantee of the contract carry its number.
package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// soon is the time for what has to happen by itself in a moment. It
// runs out only if something is wrong.
var soon = harness.Slow(15 * time.Second)

// atOnce is the bound for what the contract wants done in milliseconds. It
// leaves room for a busy machine, and none for a poll or a time-out.
var atOnce = harness.Slow(400 * time.Millisecond)

// newCaddy makes a Caddy for a test that may run beside others.
func newCaddy(t *testing.T) *harness.Caddy {
	t.Helper()
	t.Parallel()
	return harness.New(t)
}

// args is the command line of an instance.
func args(a ...string) []string { return a }

// web is a configuration with one service, web, run by the test app.
func web(c *harness.Caddy, args []string, options ...string) harness.Config {
	return harness.Config{Site: webSite(c, args, options...)}
}

// webSite is the site of web: an access log and the service.
func webSite(c *harness.Caddy, args []string, options ...string) string {
	return "log\n" + webBlock(c, args, options...)
}

func webBlock(c *harness.Caddy, args []string, options ...string) string {
	return harness.Usher("web", append([]string{c.Backend(args...)}, options...)...)
}

// startVanished starts a service whose program is there when the
// configuration is loaded, and gone when it is to be started. It returns the
// path of the program.
func startVanished(t *testing.T, c *harness.Caddy, site string, options ...string) string {
	t.Helper()
	program := c.Path("program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.Start(harness.Config{Site: site + "\n" + harness.Usher("web", append([]string{c.Command("", program)}, options...)...)})
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	return program
}

// hold is the path of a request that stays inside until c.Open(gate).
func hold(c *harness.Caddy, gate string) string { return "/hold?gate=" + c.Path(gate) }

// inside waits until n requests in all have entered an instance.
func inside(t *testing.T, c *harness.Caddy, n int) {
	t.Helper()
	harness.Eventually(t, soon, func() bool { return len(c.Journal().Of("begin")) == n }, "%d requests have entered", n)
}

// wantOK checks for an answer of an instance.
func wantOK(t *testing.T, r harness.Response) {
	t.Helper()
	if r.Err != nil || r.Status != http.StatusOK {
		t.Errorf("status %d (%s), error %v, body %q", r.Status, r.UsherError(), r.Err, r.Body)
	}
}

func wantAllOK(t *testing.T, all []harness.Response) {
	t.Helper()
	if bad := harness.Failed(all); len(bad) > 0 {
		t.Errorf("%d of %d failed, the first with status %d (%s), error %v, body %q",
			len(bad), len(all), bad[0].Status, bad[0].UsherError(), bad[0].Err, bad[0].Body)
	}
}

// wantRefusal checks for everything that each error of Usher's own carries.
func wantRefusal(t *testing.T, r harness.Response, code string) {
	t.Helper()
	if r.Err != nil || r.Status != http.StatusServiceUnavailable || r.UsherError() != code {
		t.Errorf("want a 503 with %s, got status %d, Usher-Error %q, error %v, body %q",
			code, r.Status, r.UsherError(), r.Err, r.Body)
		return
	}
	if after, err := strconv.Atoi(r.Header.Get("Retry-After")); err != nil || after < 1 {
		t.Errorf("%s: Retry-After is %q, want whole seconds from 1", code, r.Header.Get("Retry-After"))
	}
	if got := r.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("%s: Cache-Control is %q, want no-store", code, got)
	}
}

// problem is the body of an error as RFC 9457 wants it.
type problem struct {
	Title      string   `json:"title"`
	Status     int      `json:"status"`
	Detail     string   `json:"detail"`
	Code       string   `json:"code"`
	Service    string   `json:"service"`
	RetryAfter int      `json:"retry_after"`
	WaitedMS   *float64 `json:"waited_ms"`
}

// askProblem sends a GET and decodes the problem that is the answer.
func askProblem(t *testing.T, c *harness.Caddy, path string) (harness.Response, problem) {
	t.Helper()
	r := c.Do(harness.Request{Path: path, Header: http.Header{"Accept": {"application/problem+json"}}})
	var p problem
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/problem+json") {
		t.Errorf("Content-Type %q", r.Header.Get("Content-Type"))
	}
	if err := json.Unmarshal([]byte(r.Body), &p); err != nil {
		t.Errorf("%v: %s", err, r.Body)
	}
	return r, p
}

// onlyPID returns the process id of the only process.
func onlyPID(t *testing.T, c *harness.Caddy) int {
	t.Helper()
	procs := c.Processes()
	if len(procs) != 1 {
		t.Fatalf("%d processes run, want one: %+v", len(procs), procs)
	}
	return procs[0].PID
}

//go:build linux

package cluster

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

// A session that began at one member goes on at its instance at all others, also
// at one that has come later.
func TestG16ASessionKeyLeadsToTheSameInstanceAtAllMembers(t *testing.T) {
	w := newTown(t, 3, short, "instances 3 3", "concurrency 3", "scale queue", "balance random", "affinity key {http.response.header.Session}")
	w.start()
	for _, c := range w.caddys {
		c.AwaitReady("web", 3, soon)
	}
	home := make(map[string]string)
	for k := range 30 {
		key := fmt.Sprint("session-", k)
		r := w.caddys[k%3].Get("/login?key=" + key)
		wantAllOK(t, []harness.Response{r})
		home[key] = r.Body
	}
	goesHome := func(c *harness.Caddy, key string) bool {
		r := c.Do(harness.Request{Path: "/", Header: http.Header{"Session": {key}}})
		wantAllOK(t, []harness.Response{r})
		return r.Body == home[key]
	}
	check := func(c *harness.Caddy, who string) {
		t.Helper()
		// What was placed a moment ago is told within milliseconds.
		harness.Eventually(t, soon, func() bool { return c.Service("web").SessionKeys == len(home) }, "%s knows all keys", who)
		for key := range home {
			if !goesHome(c, key) {
				t.Errorf("%s: %s is not at home", who, key)
			}
		}
	}
	for k, c := range w.caddys {
		check(c, fmt.Sprint("member ", k))
	}
	k := (w.leader() + 1) % 3
	w.stop(k)
	w.startOne(k)
	w.caddys[k].AwaitReady("web", 3, soon)
	check(w.caddys[k], "one that came later")
}

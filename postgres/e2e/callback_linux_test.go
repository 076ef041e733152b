package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/postgres/pgserver"
	"github.com/caddy-usher/usher/test/harness"
)

// A Caddy accepts a request, executes it, and is killed while it sends the callback.
// Another one sends that.
func TestACallbackIsSentByAnotherCaddyIfTheFirstOneIsKilled(t *testing.T) {
	t.Parallel()
	db := pgserver.Start(t, pgserver.Options{})
	h := harness.NewHook(t)
	caddys := harness.Together(t, 2)
	first, second := caddys[0], caddys[1]
	callback := h.Option("allow_private " + h.URL + "/hook")
	h.Hold()
	first.Start(web(first, db, callback))
	task := accepted(t, later(first, "/work/again?d=1ms", "hello", harness.HookHeader, h.URL+"/hook/1"))
	ends(t, first, task, "done")
	lost := h.Await(task, 1)
	second.Start(web(second, db, callback))
	first.Kill()
	h.Answer(0)
	killed := time.Now()
	sent := h.Await(task, 2)
	t.Logf("the callback came %v after its Caddy was killed", time.Since(killed).Round(time.Millisecond))
	if sent != lost || sent.Type != "task.done" || sent.Path != "/hook/1" || sent.Data.Status != 200 || sent.Data.Attempts != 1 {
		t.Errorf("the callback was %+v, and is %+v", lost, sent)
	}
	ends(t, second, task, "done")
	if r := second.Get(task.URL + "/result"); r.Status != 200 || r.Body != "hello" {
		t.Errorf("the result is status %d, error %v, %q", r.Status, r.Err, r.Body)
	}
	// It was taken, so it does not come again.
	harness.Eventually(t, harness.Slow(10*time.Second), func() bool {
		r := second.Admin("GET", "/usher/tasks?service=callback:again&state=done", "")
		return r.Status == 200 && strings.Contains(r.Body, lost.ID)
	}, "the callback is done")
}

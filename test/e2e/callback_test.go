package e2e

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

func TestACallbackTellsOfTheEndOfATask(t *testing.T) {
	h := harness.NewHook(t)
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 1", "concurrency 1", asyncBlock("attempts 1", h.Option("allow_private "+h.URL+"/hook"))))
	url := h.URL + "/hook/1"
	done := accepted(t, later(c, "POST", "/echo?x", "hello", harness.HookHeader, url))
	got := h.Await(done, 1)
	if d := got.Data; got.Type != "task.done" || got.Path != "/hook/1" || d.State != "done" || d.Status != 200 || d.Size != 5 || d.Service != "web" || d.Attempts != 1 {
		t.Errorf("the callback is %+v", got)
	}
	if !strings.HasPrefix(got.Data.URL, "http://") || !strings.HasSuffix(got.Data.URL, done.URL) || got.Data.Result != got.Data.URL+"/result" {
		t.Errorf("its links are %s and %s, the task is at %s", got.Data.URL, got.Data.Result, done.URL)
	}
	resp, err := http.Get(got.Data.Result)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "hello" {
		t.Errorf("the result is %q, error %v", body, err)
	}
	dead := accepted(t, later(c, "GET", "/abort", "", harness.HookHeader, url))
	if got := h.Await(dead, 1); got.Type != "task.dead" || got.Data.Reason == "" || got.Data.Result != "" {
		t.Errorf("the callback is %+v", got)
	}
	running := accepted(t, later(c, "GET", hold(c, "gate"), "", harness.HookHeader, url))
	waits := accepted(t, later(c, "GET", "/", "", harness.HookHeader, url))
	silent := accepted(t, later(c, "GET", "/", ""))
	if r := c.Do(harness.Request{Method: "DELETE", Path: waits.URL}); r.Status != http.StatusNoContent {
		t.Errorf("cancelling: status %d", r.Status)
	}
	if got := h.Await(waits, 1); got.Type != "task.cancelled" {
		t.Errorf("the callback is %+v", got)
	}
	c.Open("gate")
	h.Await(running, 1)
	ends(t, c, silent.URL, "done")
	if out, _ := usher(c, "tasks", "list", "-s", "callback:web"); strings.Count(out, h.URL) != 4 {
		t.Errorf("the callbacks in the list of tasks:\n%s", out)
	}
	for _, s := range []harness.Task{done, dead, running, waits} {
		if n := len(h.Of(s)); n != 1 {
			t.Errorf("there are %d callbacks of task %+v", n, s)
		}
	}
	if len(h.Of(silent)) != 0 {
		t.Error("there is a callback that no client has asked for")
	}
}

func TestACallbackComesAgainUntilItIsTaken(t *testing.T) {
	h := harness.NewHook(t)
	c := newCaddy(t)
	cfg := web(c, nil, asyncBlock(h.Option("allow_private "+h.URL)))
	c.Start(cfg)
	h.Answer(http.StatusServiceUnavailable)
	s := accepted(t, later(c, "GET", "/", "", harness.HookHeader, h.URL+"/x"))
	first := h.Await(s, 1)
	c.Kill()
	h.Answer(http.StatusFound)
	c.Start(cfg)
	h.Await(s, 2)
	h.Answer(0)
	last := h.Await(s, 3)
	if first.ID == "" || first.ID != last.ID || first != last {
		t.Errorf("the first callback is %+v, the last one %+v", first, last)
	}
	harness.Eventually(t, soon, func() bool {
		out, _ := usher(c, "tasks", "list", "-s", "callback:web", "--state", "done")
		return strings.Contains(out, first.ID)
	}, "the callback is done")
}

func TestACallbackGoesNowhereElse(t *testing.T) {
	h := harness.NewHook(t)
	c := newCaddy(t)
	public := strings.Replace(h.URL, "127.0.0.1", "localhost", 1) + "/public"
	c.Start(web(c, nil, asyncBlock(h.Option("allow "+public, "allow_private "+h.URL+"/hook"))))
	for _, url := range []string{
		h.URL, h.URL + "/hooks", h.URL + "/hook/../x", h.URL + "/hook%2f..", strings.Replace(h.URL, "://", "://127.0.0.1@", 1) + "/hook", "https" + strings.TrimPrefix(h.URL, "http") + "/hook", "/hook", "",
	} {
		if r := later(c, "POST", "/echo", "x", harness.HookHeader, url); r.Status != http.StatusUnprocessableEntity || !strings.Contains(r.Body, harness.HookHeader) {
			t.Errorf("%q: status %d, %s", url, r.Status, r.Body)
		}
	}
	s := accepted(t, later(c, "POST", "/echo", "x", harness.HookHeader, public, "Idempotency-Key", "k"))
	if r := later(c, "POST", "/echo", "x", harness.HookHeader, h.URL+"/hook", "Idempotency-Key", "k"); r.Status != http.StatusUnprocessableEntity {
		t.Errorf("another callback under the same key: status %d", r.Status)
	}
	harness.Eventually(t, soon, func() bool {
		out, _ := usher(c, "tasks", "list", "-s", "callback:web")
		return strings.Contains(out, "not public")
	}, "the callback is not sent, because its address is not public")
	if n := len(h.Of(s)); n != 0 {
		t.Errorf("%d callbacks were sent to an address that is not public", n)
	}
	other := harness.New(t)
	other.Start(web(other, nil, "async"))
	if r := later(other, "POST", "/echo", "x", harness.HookHeader, h.URL); r.Status != http.StatusUnprocessableEntity || !strings.Contains(r.Body, "sends no callbacks") {
		t.Errorf("a service without callbacks: status %d, %s", r.Status, r.Body)
	}
}

package e2e

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

const (
	hookKey    = "a key of thirty-two bytes, 0123!"
	hookHeader = "Usher-Callback"
)

// told is a callback as a receiver gets it.
type told struct {
	id, path string
	Type     string `json:"type"`
	Data     stored `json:"data"`
}

// hook receives callbacks. While status is not 0 it answers with it.
type hook struct {
	*httptest.Server
	mu     sync.Mutex
	status int
	all    []told
}

func newHook(t *testing.T) *hook {
	h := new(hook)
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // Caddy was killed
		}
		one := told{id: r.Header.Get("webhook-id"), path: r.URL.Path}
		if err := json.Unmarshal(body, &one); err != nil || r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("a callback: %v, %s %v %s", err, r.Method, r.Header, body)
		}
		mac := hmac.New(sha256.New, []byte(hookKey))
		fmt.Fprintf(mac, "%s.%s.%s", one.id, r.Header.Get("webhook-timestamp"), body)
		if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); r.Header.Get("webhook-signature") != want {
			t.Errorf("the signature is %q, want %q", r.Header.Get("webhook-signature"), want)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.all = append(h.all, one)
		if h.status != 0 {
			w.WriteHeader(h.status)
		}
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hook) answer(status int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status = status
}

// of returns the callbacks that tell of a task.
func (h *hook) of(s stored) (found []told) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, one := range h.all {
		if one.Data.ID == s.ID {
			found = append(found, one)
		}
	}
	return found
}

// tells waits for n callbacks of a task, and returns the latest.
func (h *hook) tells(t *testing.T, s stored, n int) (latest told) {
	t.Helper()
	harness.Eventually(t, 2*soon, func() bool {
		all := h.of(s)
		if len(all) < n {
			return false
		}
		latest = all[len(all)-1]
		return true
	}, "there are %d callbacks of task %s", n, s.ID)
	return latest
}

// callbacks is the option callback.
func callbacks(lines ...string) string {
	secret := "secret whsec_" + base64.StdEncoding.EncodeToString([]byte(hookKey))
	return "callback {\n" + secret + "\n" + strings.Join(lines, "\n") + "\n}"
}

func TestACallbackTellsOfTheEndOfATask(t *testing.T) {
	h := newHook(t)
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 1", "concurrency 1", asyncBlock("attempts 1", callbacks("allow_private "+h.URL+"/hook"))))
	url := h.URL + "/hook/1"
	done := accepted(t, later(c, "POST", "/echo?x", "hello", hookHeader, url))
	got := h.tells(t, done, 1)
	if d := got.Data; got.Type != "task.done" || got.path != "/hook/1" || d.State != "done" || d.Status != 200 || d.Size != 5 || d.Service != "web" || d.Attempts != 1 {
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
	dead := accepted(t, later(c, "GET", "/abort", "", hookHeader, url))
	if got := h.tells(t, dead, 1); got.Type != "task.dead" || got.Data.Reason == "" || got.Data.Result != "" {
		t.Errorf("the callback is %+v", got)
	}
	running := accepted(t, later(c, "GET", hold(c, "gate"), "", hookHeader, url))
	waits := accepted(t, later(c, "GET", "/", "", hookHeader, url))
	silent := accepted(t, later(c, "GET", "/", ""))
	if r := c.Do(harness.Request{Method: "DELETE", Path: waits.URL}); r.Status != http.StatusNoContent {
		t.Errorf("cancelling: status %d", r.Status)
	}
	if got := h.tells(t, waits, 1); got.Type != "task.cancelled" {
		t.Errorf("the callback is %+v", got)
	}
	c.Open("gate")
	h.tells(t, running, 1)
	ends(t, c, silent.URL, "done")
	if out, _ := usher(c, "tasks", "list", "-s", "callback:web"); strings.Count(out, h.URL) != 4 {
		t.Errorf("the callbacks in the list of tasks:\n%s", out)
	}
	for _, s := range []stored{done, dead, running, waits} {
		if n := len(h.of(s)); n != 1 {
			t.Errorf("there are %d callbacks of task %+v", n, s)
		}
	}
	if len(h.of(silent)) != 0 {
		t.Error("there is a callback that no client has asked for")
	}
}

func TestACallbackComesAgainUntilItIsTaken(t *testing.T) {
	h := newHook(t)
	c := newCaddy(t)
	cfg := web(c, nil, asyncBlock(callbacks("allow_private "+h.URL)))
	c.Start(cfg)
	h.answer(http.StatusServiceUnavailable)
	s := accepted(t, later(c, "GET", "/", "", hookHeader, h.URL+"/x"))
	first := h.tells(t, s, 1)
	c.Kill()
	h.answer(http.StatusFound)
	c.Start(cfg)
	h.tells(t, s, 2)
	h.answer(0)
	last := h.tells(t, s, 3)
	if first.id == "" || first.id != last.id || first != last {
		t.Errorf("the first callback is %+v, the last one %+v", first, last)
	}
	harness.Eventually(t, soon, func() bool {
		out, _ := usher(c, "tasks", "list", "-s", "callback:web", "--state", "done")
		return strings.Contains(out, first.id)
	}, "the callback is done")
}

func TestACallbackGoesNowhereElse(t *testing.T) {
	h := newHook(t)
	c := newCaddy(t)
	public := strings.Replace(h.URL, "127.0.0.1", "localhost", 1) + "/public"
	c.Start(web(c, nil, asyncBlock(callbacks("allow "+public, "allow_private "+h.URL+"/hook"))))
	for _, url := range []string{
		h.URL, h.URL + "/hooks", h.URL + "/hook/../x", h.URL + "/hook%2f..", strings.Replace(h.URL, "://", "://127.0.0.1@", 1) + "/hook", "https" + strings.TrimPrefix(h.URL, "http") + "/hook", "/hook", "",
	} {
		if r := later(c, "POST", "/echo", "x", hookHeader, url); r.Status != http.StatusUnprocessableEntity || !strings.Contains(r.Body, hookHeader) {
			t.Errorf("%q: status %d, %s", url, r.Status, r.Body)
		}
	}
	s := accepted(t, later(c, "POST", "/echo", "x", hookHeader, public, "Idempotency-Key", "k"))
	if r := later(c, "POST", "/echo", "x", hookHeader, h.URL+"/hook", "Idempotency-Key", "k"); r.Status != http.StatusUnprocessableEntity {
		t.Errorf("another callback under the same key: status %d", r.Status)
	}
	harness.Eventually(t, soon, func() bool {
		out, _ := usher(c, "tasks", "list", "-s", "callback:web")
		return strings.Contains(out, "not public")
	}, "the callback is not sent, because its address is not public")
	if n := len(h.of(s)); n != 0 {
		t.Errorf("%d callbacks were sent to an address that is not public", n)
	}
	other := harness.New(t)
	other.Start(web(other, nil, "async"))
	if r := later(other, "POST", "/echo", "x", hookHeader, h.URL); r.Status != http.StatusUnprocessableEntity || !strings.Contains(r.Body, "sends no callbacks") {
		t.Errorf("a service without callbacks: status %d, %s", r.Status, r.Body)
	}
}

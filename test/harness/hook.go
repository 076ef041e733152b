package harness

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
	"time"
)

// HookHeader is the header of a request that names where its callback goes.
const HookHeader = "Usher-Callback"

// hookKey signs the callbacks of all tests.
const hookKey = "a key of thirty-two bytes, 0123!"

// A Task is a stored request as clients see it.
type Task struct {
	ID       string `json:"id"`
	Service  string `json:"service"`
	State    string `json:"state"`
	Reason   string `json:"reason"`
	Attempts int    `json:"attempts"`
	Progress *int   `json:"progress"`
	Status   int    `json:"status"`
	Size     int    `json:"size"`
	URL      string `json:"url"`
	Result   string `json:"result"`
}

// A Callback is one that a Hook has received.
type Callback struct {
	ID   string `json:"-"` // its Webhook-Id
	Path string `json:"-"`
	Type string `json:"type"`
	Data Task   `json:"data"`
}

// A Hook receives callbacks. One with a wrong signature fails the test.
type Hook struct {
	*httptest.Server

	t      testing.TB
	mu     sync.Mutex
	status int
	held   bool
	all    []Callback
}

// NewHook starts a receiver, which answers 200. It ends with the test.
func NewHook(t testing.TB) *Hook {
	h := &Hook{t: t}
	h.Server = httptest.NewServer(http.HandlerFunc(h.receive))
	t.Cleanup(h.Close)
	return h
}

// Option is the option callback of a service that may call this and other receivers.
func (h *Hook) Option(lines ...string) string {
	secret := "secret whsec_" + base64.StdEncoding.EncodeToString([]byte(hookKey))
	return "callback {\n" + secret + "\n" + strings.Join(lines, "\n") + "\n}"
}

// Answer lets it answer with this status from now on; 0 is 200.
func (h *Hook) Answer(status int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status, h.held = status, false
}

// Hold lets it give no answer from now on: what sends a callback waits until it gives
// up.
func (h *Hook) Hold() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held = true
}

func (h *Hook) receive(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // Caddy was killed
	}
	c := Callback{ID: r.Header.Get("webhook-id"), Path: r.URL.Path}
	if err := json.Unmarshal(body, &c); err != nil || r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" {
		h.t.Errorf("a callback: %v, %s %v %s", err, r.Method, r.Header, body)
	}
	mac := hmac.New(sha256.New, []byte(hookKey))
	fmt.Fprintf(mac, "%s.%s.%s", c.ID, r.Header.Get("webhook-timestamp"), body)
	if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); r.Header.Get("webhook-signature") != want {
		h.t.Errorf("the signature is %q, want %q", r.Header.Get("webhook-signature"), want)
	}
	h.mu.Lock()
	h.all = append(h.all, c)
	status, held := h.status, h.held
	h.mu.Unlock()
	if held {
		<-r.Context().Done()
		return
	}
	if status != 0 {
		w.WriteHeader(status)
	}
}

// Of returns the callbacks that tell of a task.
func (h *Hook) Of(task Task) (found []Callback) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.all {
		if c.Data.ID == task.ID {
			found = append(found, c)
		}
	}
	return found
}

// Await waits for n callbacks of a task, and returns the latest.
func (h *Hook) Await(task Task, n int) (latest Callback) {
	h.t.Helper()
	Eventually(h.t, Slow(30*time.Second), func() bool {
		all := h.Of(task)
		if len(all) < n {
			return false
		}
		latest = all[len(all)-1]
		return true
	}, "there are %d callbacks of task %s", n, task.ID)
	return latest
}

package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/postgres/pgserver"
	"github.com/caddy-usher/usher/test/harness"
)

// web is a Caddy with one service, whose requests are stored in the database.
func web(c *harness.Caddy, db *pgserver.Server, options ...string) harness.Config {
	async := "async {\n" + strings.Join(append(options, store(db, c)), "\n") + "\n}"
	return harness.Config{Site: harness.Usher("again", c.Backend(), "instances 0 2", async)}
}

// later sends a request that is to be stored.
func later(c *harness.Caddy, path, body string, header ...string) harness.Response {
	h := http.Header{"Prefer": {"respond-async"}}
	for k := 0; k < len(header); k += 2 {
		h.Set(header[k], header[k+1])
	}
	return c.Do(harness.Request{Method: "POST", Path: path, Header: h, Body: strings.NewReader(body)})
}

// accepted checks for the answer to a request that was stored.
func accepted(t *testing.T, r harness.Response) (task harness.Task) {
	t.Helper()
	if r.Err != nil || r.Status != http.StatusAccepted {
		t.Fatalf("status %d, error %v, body %q; want 202", r.Status, r.Err, r.Body)
	}
	if err := json.Unmarshal([]byte(r.Body), &task); err != nil {
		t.Fatalf("%v: %s", err, r.Body)
	}
	return task
}

// look returns the status of a task.
func look(t *testing.T, c *harness.Caddy, task harness.Task) (now harness.Task) {
	t.Helper()
	r := c.Get(task.URL)
	if err := json.Unmarshal([]byte(r.Body), &now); r.Err != nil || err != nil {
		t.Fatalf("status %d, errors %v, %v: %s", r.Status, r.Err, err, r.Body)
	}
	return now
}

// ends waits until a task has ended.
func ends(t *testing.T, c *harness.Caddy, task harness.Task, state string) {
	t.Helper()
	var now harness.Task
	harness.Eventually(t, harness.Slow(time.Minute), func() bool {
		now = look(t, c, task)
		return now.State == state
	}, "task %s is %s, it is %+v", task.URL, state, &now)
}

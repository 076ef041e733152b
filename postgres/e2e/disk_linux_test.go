package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/postgres/pgserver"
	"github.com/caddy-usher/usher/test/harness"
)

// While the disk of the database is full, requests are refused with the reason, and what
// is stored can be read. When there is room again, all goes on by itself.
func TestG15_AFullDiskOfTheDatabaseLosesNothing(t *testing.T) {
	t.Parallel()
	db := pgserver.Start(t, pgserver.Options{Disk: 150 << 20})
	c := harness.New(t)
	c.Start(web(c, db))
	var all []harness.Task
	for k := range 3 {
		all = append(all, accepted(t, later(c, fmt.Sprintf("/work/again?d=1ms&n=%d", k), "small")))
	}
	for _, task := range all {
		ends(t, c, task, "done")
	}
	db.Fill(1 << 20)
	body := strings.Repeat("x", 100_000)
	refused := harness.Response{}
	for k := 0; refused.Status == 0; k++ {
		if k == 100 {
			t.Fatal("all requests are stored, and the disk is full")
		}
		r := later(c, fmt.Sprintf("/work/again?d=1ms&large=%d", k), body)
		if r.Err == nil && r.Status == http.StatusServiceUnavailable {
			refused = r
			break
		}
		all = append(all, accepted(t, r))
	}
	if !strings.Contains(refused.Body, "No space left on device") || refused.Header.Get("Retry-After") == "" {
		t.Errorf("the header is %v, the body %s", refused.Header, refused.Body)
	}
	for _, task := range all[:3] {
		if now := look(t, c, task); now.State != "done" {
			t.Errorf("on the full disk the task is %+v", now)
		}
		if r := c.Get(task.URL + "/result"); r.Status != http.StatusOK || r.Body != "small" {
			t.Errorf("on the full disk a result is status %d, error %v, %q", r.Status, r.Err, r.Body)
		}
	}
	db.Empty()
	harness.Eventually(t, harness.Slow(30*time.Second), func() bool {
		r := later(c, "/work/again?d=1ms&after", body)
		if r.Status == http.StatusAccepted {
			all = append(all, accepted(t, r))
		}
		return r.Status == http.StatusAccepted
	}, "requests are stored again")
	for _, task := range all {
		ends(t, c, task, "done")
	}
	t.Logf("%d requests were stored, of which %d before there was no room", len(all), len(all)-1)
}

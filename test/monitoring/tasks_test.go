package monitoring

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/async/file"
	"github.com/caddy-usher/usher/test/harness"
)

// storeOf is the directory of the store of a Caddy.
func storeOf(c *harness.Caddy) string {
	return c.Path(filepath.Join("data", "caddy", "usher", "tasks"))
}

// longAgo is how old the tasks are that keep writes.
const longAgo = 7 * time.Hour

// keep stores requests of services, before c is started, that were accepted long ago.
func keep(t *testing.T, c *harness.Caddy, path string, services ...string) {
	t.Helper()
	s, err := file.Open(storeOf(c), file.Options{Now: func() time.Time { return time.Now().Add(-longAgo) }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, service := range services {
		n := async.NewTask{Queue: service, Request: async.Request{Method: "POST", URI: path, Host: "localhost"}, Keep: time.Hour}
		if _, _, err := s.Put(t.Context(), n, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAlertsAndPanelsOfStoredRequestsTellWhatTheyAreMeantFor(t *testing.T) {
	t.Parallel()
	program(t, "prometheus") // nothing is worth starting without it
	_, expressions := panels(t)
	c := harness.New(t)
	// Of old and resting, one is executed if it can be, and the other one waits.
	keep(t, c, "/hold?gate="+c.Path("gate"), "stuck", "old", "old", "resting", "resting")
	route := func(name, backend string, options ...string) string {
		return "handle /" + name + "* {\nuri strip_prefix /" + name + "\n" +
			harness.Usher(name, backend, "concurrency 1", "async {\nwhen always\n"+strings.Join(options, "\n")+"\n}") + "\n}\n"
	}
	site := route("well", c.Backend()) +
		route("stuck", c.Command("", "/bin/sh", "-c", "exit 3")) +
		route("old", c.Backend()) +
		route("full", c.Backend(), "max_tasks 1") +
		route("dead", c.Backend(), "attempts 1") +
		route("resting", c.Backend())
	c.Start(harness.Config{Global: "metrics", Site: site})
	c.Post("resting/suspend", `{"reason": "it rests"}`)
	store := func(path string) harness.Response {
		return c.Do(harness.Request{Method: "POST", Path: path})
	}
	if r := store("/full/hold?gate=" + c.Path("gate")); r.Status != 202 {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	harness.Eventually(t, soon, func() bool {
		return c.Service("old").Slots.InUse == 1 && c.Service("full").Slots.InUse == 1 && c.Service("stuck").State == "failing"
	}, "the tasks that can run do, and stuck is failing")
	p := startPrometheus(t, c, without(deployed(t, "prometheus", "usher.rules.yml")))
	again := func() {
		store("/well/")
		store("/full/")
		store("/dead/status?code=503")
	}
	p.fires(map[string][]string{
		"UsherTasksDead": {"dead"}, "UsherTasksStuck": {"stuck"}, "UsherTasksOld": {"old"}, "UsherTasksRefused": {"full"},
		"UsherServiceFailing": {"stuck"},
	}, again)
	p.shows(expressions, nil, again)
	harness.Eventually(t, soon, func() bool {
		all, err := p.query(expressions["Tasks by state, {{state}}"])
		if err != nil {
			t.Fatal(err)
		}
		states := make(map[string]float64)
		for _, s := range all {
			states[s.Metric["state"]] = s.value()
		}
		// Running are those of old, full and perhaps resting.
		return states["running"]+states["pending"] == 6 && states["dead"] > 0
	}, "the panel of states has all tasks")
	c.Open("gate")
}

// A store whose records are damaged cannot be read.
func TestTheAlertOfAStoreThatCannotBeReadFires(t *testing.T) {
	t.Parallel()
	program(t, "prometheus")
	c := harness.New(t)
	keep(t, c, "/", "web")
	db, err := bbolt.Open(filepath.Join(storeOf(c), "tasks.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		tasks := tx.Bucket([]byte("tasks"))
		k, _ := tasks.Cursor().First()
		return tasks.Put(k, []byte("damaged"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	c.Start(harness.Config{Global: "metrics", Site: harness.Usher("web", c.Backend(), "async")})
	p := startPrometheus(t, c, without(deployed(t, "prometheus", "usher.rules.yml")))
	p.fires(map[string][]string{"UsherTaskStoreDown": {""}}, func() {})
}

// Package e2emarathon tests the Marathon backend from outside: the real Caddy,
// a simulated Marathon that starts real processes, real clients. It looks at
// what clients see, at what Usher's admin API says, and at the simulator's own
// books.
package e2emarathon

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/marathonsim"
)

func TestMain(m *testing.M) { harness.Main(m) }

var (
	soakFor  = flag.Duration("soak", 8*time.Second, "how long the soak goes on; two minutes is a whole one")
	soakSeed = flag.Uint64("seed", 0, "the seed of the soak; 0 draws one")
	outage   = flag.Duration("outage", 30*time.Second, "how long there is no Marathon at all")
)

// soon is the time for what has to happen by itself in a moment.
var soon = harness.Slow(10 * time.Second)

// town is a Caddy and a Marathon.
type town struct {
	*harness.Caddy
	t   *testing.T
	sim *marathonsim.Sim
}

// brisk is a Marathon that takes its steps in the order and with the delays
// of a real one, but smaller ones.
func brisk() marathonsim.Config {
	return marathonsim.Config{
		OfferInterval: 50 * time.Millisecond, ReviveInterval: 20 * time.Millisecond,
		LaunchDelay: marathonsim.Range{Min: 20 * time.Millisecond, Max: 100 * time.Millisecond},
		ElectionGap: marathonsim.Range{Min: 500 * time.Millisecond, Max: time.Second},
		NodeRestart: time.Second, AbdicateDelay: 50 * time.Millisecond,
	}
}

// newTown makes both, for a test that may run beside others.
func newTown(t *testing.T, cfg marathonsim.Config) *town {
	t.Helper()
	t.Parallel()
	sim, err := marathonsim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	w := &town{Caddy: harness.New(t), t: t, sim: sim}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for line := range strings.Lines(w.RawLog()) {
			if strings.Contains(line, `"logger":"usher"`) || strings.Contains(line, `"logger":"http.log.error`) {
				t.Log(strings.TrimSpace(line))
			}
		}
		t.Logf("seed %d; the simulator's journal:", sim.Seed)
		entries := sim.Journal(0)
		for _, e := range entries[max(0, len(entries)-150):] {
			t.Logf("%s %-10s %s %s: %s", e.Time.Format("15:04:05.000"), e.Kind, e.App, e.ID, e.Text)
		}
	})
	return w
}

// app makes an app that runs the test app. Fields are further ones of its
// definition, each with a comma in front.
func (w *town) app(id string, fields string, args ...string) {
	w.t.Helper()
	cmd := fmt.Sprintf("USHER_INSTANCE=$MESOS_TASK_ID APP_JOURNAL=%s exec %s %s", w.Path("journal"), w.App(), strings.Join(args, " "))
	text, err := json.Marshal(cmd)
	if err != nil {
		w.t.Fatal(err)
	}
	def := fmt.Sprintf(`{"id":%q,"cmd":%s,"instances":0,"cpus":0.1,"mem":16,"backoffSeconds":1,"taskKillGracePeriodSeconds":5%s}`, id, text, fields)
	if err := w.sim.CreateApp(json.RawMessage(def)); err != nil {
		w.t.Fatal(err)
	}
}

// backend is the option backend for an app.
func (w *town) backend(app string, options ...string) string {
	options = append([]string{"url " + strings.Join(w.sim.URLs(), " ")}, options...)
	return "backend marathon " + app + " {\n\t" + strings.Join(options, "\n\t") + "\n}"
}

// web is a configuration with one service, web, on the app /web.
func (w *town) web(options ...string) harness.Config {
	return harness.Config{Site: "log\n" + harness.Usher("web", append([]string{w.backend("/web")}, options...)...)}
}

// running returns the ids of the tasks of an app whose processes run.
func (w *town) running(app string) []string {
	var ids []string
	for _, t := range w.sim.Tasks() {
		if t.App == app && t.PID != 0 {
			ids = append(ids, t.ID)
		}
	}
	return ids
}

func (w *town) awaitTasks(app string, n int) {
	w.t.Helper()
	harness.Eventually(w.t, soon, func() bool { return len(w.running(app)) == n }, "%d tasks of %s run", n, app)
}

// awaitBooks waits until Usher and the simulator agree.
func (w *town) awaitBooks(name, app string, timeout time.Duration) {
	w.t.Helper()
	var said string
	agree := harness.WaitFor(timeout, func() bool {
		s := w.Service(name)
		said = fmt.Sprintf("usher: %+v, the simulator: %v", s.Instances, w.running(app))
		want := make(map[string]bool)
		for _, id := range w.running(app) {
			want[id] = true
		}
		for _, i := range s.InstanceList {
			id, _, _ := strings.Cut(i.ID, "~")
			if i.State != "ready" || !want[id] {
				return false
			}
			delete(want, id)
		}
		return len(want) == 0 && s.Waiting == 0
	})
	if !agree {
		w.t.Errorf("the books differ after %s: %s", timeout, said)
	}
}

// never checks what Usher must not have done: order something by force.
func (w *town) never() {
	w.t.Helper()
	for _, e := range w.sim.Journal(0) {
		if e.Kind == "request" && strings.Contains(e.Text, "force=true") && !strings.Contains(e.Text, "DELETE /v2/deployments/") {
			w.t.Errorf("by force: %s", e.Text)
		}
	}
}

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
	if len(all) == 0 {
		t.Error("no request was made")
	}
}

// wantFewCut checks what a load has seen while Marathon itself stopped tasks:
// it says that a task is to end when it tells the task, so a request can be on
// its way into it, and is then not sent to another one. Only that may show, once
// for each client and stop at most.
func wantFewCut(t *testing.T, all []harness.Response, most int) {
	t.Helper()
	for k, r := range harness.Failed(all) {
		if r.Status != http.StatusBadGateway || k >= most {
			t.Errorf("status %d (%s), error %v, body %q", r.Status, r.UsherError(), r.Err, r.Body)
		}
	}
}

// wantFrom checks that only tasks of an app have answered.
func wantFrom(t *testing.T, all []harness.Response, prefix string) {
	t.Helper()
	wrong := make(map[string]int)
	for _, r := range all {
		if who := r.Header.Get("X-Instance"); r.Status == http.StatusOK && !strings.HasPrefix(who, prefix) {
			wrong[who]++
		}
	}
	if len(wrong) > 0 {
		t.Errorf("in place of %s have answered: %v", prefix, wrong)
	}
}

package e2emarathon

import (
	"encoding/json"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/marathonsim"
)

// lastError is what the admin API says about the latest failure.
func (w *town) lastError(name string) string {
	text, err := json.Marshal(w.Service(name).LastError)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

func (w *town) awaitWords(name string, words ...string) {
	w.t.Helper()
	harness.Eventually(w.t, soon, func() bool {
		said := w.lastError(name)
		for _, word := range words {
			if !strings.Contains(said, word) {
				return false
			}
		}
		return true
	}, "the last error says %q", words)
}

func TestSomebodyElsesDeploymentIsAwaitedAndNamed(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/web", "")
	w.Start(w.web())
	id, release, err := w.sim.Lock("/web")
	if err != nil {
		t.Fatal(err)
	}
	waits := w.Send(harness.Request{})
	w.awaitWords("web", "another deployment holds the app", id)
	release()
	wantOK(t, waits.Wait(t, soon))
	w.never()
}

func TestAnAppThatFailsIsReportedAndComesBackWhenAskedFor(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/web", `,"backoffSeconds":3,"backoffFactor":4`)
	w.sim.Inject(marathonsim.Fault{Kind: marathonsim.FaultCrash, App: "/web"})
	w.Start(w.web("idle_timeout 1m", "scale queue"))
	r := w.Do(harness.Request{Header: http.Header{"Accept": {"application/problem+json"}}})
	if r.UsherError() != "start_failed" || !strings.Contains(r.Body, "exit status 1") {
		t.Errorf("status %d, %s: %s", r.Status, r.UsherError(), r.Body)
	}
	w.awaitWords("web", "exit status 1", "held back by Marathon", "Marathon starts the next task")
	w.sim.ClearFaults()
	// Marathon would wait 12 s and more; a person need not.
	began := time.Now()
	harness.Eventually(t, soon, func() bool {
		w.Post("web/wake", "")
		return harness.WaitFor(500*time.Millisecond, func() bool { return w.Service("web").State == "awake" })
	}, "it is awake")
	if took := time.Since(began); took > harness.Slow(8*time.Second) {
		t.Errorf("it took %v", took)
	}
	wantOK(t, w.Get("/"))
	if s := w.Service("web"); s.Instances.Ready != 1 {
		t.Errorf("%+v", s)
	}
}

func TestNoMatchingOfferIsReportedWithWhatIsMissing(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/web", "")
	w.sim.Inject(marathonsim.Fault{Kind: marathonsim.FaultStarved, App: "/web", Resource: "cpus"})
	w.Start(w.web("wait_timeout 30s"))
	waits := w.Send(harness.Request{})
	w.awaitWords("web", "no matching offer", "cpus")
	w.sim.ClearFaults()
	wantOK(t, waits.Wait(t, 30*time.Second))
}

func TestAnAppThatIsMissingOrForbidden(t *testing.T) {
	w := newTown(t, brisk())
	w.Start(w.web("idle_timeout 1m", "scale queue"))
	r := w.Get("/")
	if r.UsherError() != "start_failed" || !strings.Contains(r.Body, "does not exist") {
		t.Errorf("status %d, %s: %s", r.Status, r.UsherError(), r.Body)
	}
	w.app("/web", "")
	harness.Eventually(t, soon, func() bool { return w.Get("/").Status == http.StatusOK }, "it serves once the app is there")
	w.sim.SetAuth(marathonsim.Auth{Denied: []string{"/web"}})
	w.awaitWords("web", "does not allow")
	wantOK(t, w.Get("/")) // what runs, runs
	w.sim.SetAuth(marathonsim.Auth{})
	harness.Eventually(t, soon, func() bool { return w.lastError("web") == "null" }, "all is well again")
}

func TestAPortThatIsUsedAgainNeverAnswersForAnotherApp(t *testing.T) {
	cfg := brisk()
	cfg.Agents, cfg.Ports = 1, 6
	w := newTown(t, cfg)
	w.app("/web", "")
	w.app("/other", "")
	w.sim.Inject(marathonsim.Fault{Kind: marathonsim.FaultPortsReused})
	w.Start(w.web("instances 0 2", "concurrency 4", "idle_timeout 200ms", "scale queue {\n\tdown_window 100ms\n}"))
	var all []harness.Response
	for k := range 6 {
		load := w.Load(6, "/sleep?d=5ms")
		harness.Eventually(t, soon, func() bool { return w.Service("web").Instances.Ready > 0 && load.Len() > 20 }, "it serves")
		if k%2 == 1 {
			for _, id := range w.running("/web")[:1] {
				w.sim.KillTask(id)
			}
		}
		if err := w.sim.UpdateApp("/other", map[string]int{"instances": 3}, true); err != nil {
			t.Fatal(err)
		}
		harness.WaitFor(500*time.Millisecond, func() bool { return len(w.running("/other")) == 3 })
		all = append(all, load.Stop()...)
		w.awaitTasks("/web", 0)
		if err := w.sim.UpdateApp("/other", map[string]int{"instances": 0}, true); err != nil {
			t.Fatal(err)
		}
	}
	wantFrom(t, all, "web.")
	if len(all) == 0 {
		t.Error("no request was made")
	}
}

// The worst of it: the task ends between two requests, another app has its
// port before the next one comes, and no event tells.
func TestAPortThatIsUsedAgainUnnoticedNeverAnswersForAnotherApp(t *testing.T) {
	cfg := brisk()
	cfg.Agents, cfg.Ports = 1, 1
	w := newTown(t, cfg)
	w.app("/web", `,"backoffSeconds":3`)
	w.app("/other", "")
	w.Start(w.web("idle_timeout 1m", "scale queue"))
	wantOK(t, w.Get("/"))
	w.sim.Inject(marathonsim.Fault{Kind: marathonsim.FaultEventLost})
	w.awaitCalm("/web")
	before := w.task("/web")
	w.sim.KillTask(before.ID)
	if err := w.sim.UpdateApp("/other", map[string]int{"instances": 1}, true); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, soon, func() bool {
		conn, err := net.Dial("tcp", net.JoinHostPort(before.IP, strconv.Itoa(before.Ports[0])))
		if err == nil {
			conn.Close()
		}
		return err == nil && len(w.running("/other")) == 1
	}, "the other app listens where the task was")
	if s := w.Service("web"); s.Instances.Ready != 1 {
		t.Fatalf("it was noticed: %+v", s.Instances)
	}
	get := w.Send(harness.Request{})
	post := w.Send(harness.Request{Method: http.MethodPost, Path: "/echo", Body: strings.NewReader("a body")})
	harness.Eventually(t, soon, func() bool { return w.Service("web").Instances.Ready == 0 }, "now it is noticed")
	w.sim.ClearFaults()
	if err := w.sim.UpdateApp("/other", map[string]int{"instances": 0}, true); err != nil {
		t.Fatal(err)
	}
	both := []harness.Response{get.Wait(t, 3*soon), post.Wait(t, 3*soon)}
	wantAllOK(t, both)
	wantFrom(t, both, "web.")
	if both[1].Body != "a body" {
		t.Errorf("the body came as %q", both[1].Body)
	}
	for _, e := range w.Journal().Of("begin") {
		if strings.HasPrefix(e.Instance, "other.") {
			t.Errorf("the other app has seen %s", e.Path)
		}
	}
}

// task returns the only task of an app that runs.
func (w *town) task(app string) marathonsim.TaskRecord {
	w.t.Helper()
	var found []marathonsim.TaskRecord
	for _, t := range w.sim.Tasks() {
		if t.App == app && t.PID != 0 {
			found = append(found, t)
		}
	}
	if len(found) != 1 {
		w.t.Fatalf("of %s run %v", app, found)
	}
	return found[0]
}

// awaitCalm waits until Usher reads an app at its slow pace again.
func (w *town) awaitCalm(app string) {
	w.t.Helper()
	harness.Eventually(w.t, 3*soon, func() bool {
		for _, e := range w.sim.Journal(0) {
			if e.Kind == "request" && strings.HasSuffix(e.Text, "/v2/apps"+app) && w.sim.Now().Sub(e.Time) < 3*time.Second {
				return false
			}
		}
		return true
	}, "all is calm")
}

package e2emarathon

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/marathonsim"
)

func TestColdStartServesTheRequestThatCausedItAndThenSleepsAgain(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/web", "")
	w.Start(w.web("idle_timeout 500ms", "scale queue"))
	w.AwaitState("web", "asleep", soon)
	for range 2 {
		r := w.Get("/")
		wantOK(t, r)
		if ids := w.running("/web"); len(ids) != 1 || r.Header.Get("X-Instance") != ids[0] {
			t.Errorf("%s has answered, %v run", r.Header.Get("X-Instance"), ids)
		}
		w.awaitTasks("/web", 0)
		w.AwaitState("web", "asleep", soon)
	}
	w.never()
}

func TestABurstOnAColdApp(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/web", "")
	w.Start(w.web("instances 0 3", "scale queue", "concurrency 50", "max_waiting 2000"))
	var all []*harness.Pending
	for range 1000 {
		all = append(all, w.Send(harness.Request{Path: "/sleep?d=5ms"}))
	}
	var done []harness.Response
	for _, p := range all {
		done = append(done, p.Wait(t, 30*time.Second))
	}
	wantAllOK(t, done)
	if n := w.Journal().MaxInside(); n > 50 {
		t.Errorf("%d requests were inside a task with 50 slots", n)
	}
	w.awaitBooks("web", "/web", soon)
	if n := len(w.running("/web")); n != 3 {
		t.Errorf("%d tasks run", n)
	}
	w.never()
}

func TestFromZeroToThreeAndBackUnderLoad(t *testing.T) {
	w := newTown(t, brisk())
	// Its check takes a while to be content, so each scaling holds the app.
	w.app("/web", `,"healthChecks":[{"protocol":"MESOS_TCP","portIndex":0,"delaySeconds":1,"intervalSeconds":1,"gracePeriodSeconds":10}]`)
	w.Start(w.web("instances 0 3", "concurrency 4", "idle_timeout 1s", "drain_timeout 20s", "scale queue {\n\tdown_window 500ms\n}"))
	load := w.Load(11, "/sleep?d=20ms")
	w.AwaitReady("web", 3, soon)
	wantAllOK(t, load.Stop())

	// One request stays inside; of the three tasks the other two have to go.
	held := w.Send(harness.Request{Path: "/hold?gate=" + w.Path("gate")})
	w.awaitTasks("/web", 1)
	keeper := w.running("/web")
	w.Open("gate")
	r := held.Wait(t, soon)
	wantOK(t, r)
	if !slices.Contains(keeper, r.Header.Get("X-Instance")) {
		t.Errorf("%s had a request inside, and %v was kept", r.Header.Get("X-Instance"), keeper)
	}
	w.awaitTasks("/web", 0)
	w.AwaitState("web", "asleep", soon)
	// No task had a request inside when it was told to end.
	inside := make(map[string]int)
	for _, e := range w.Journal() {
		switch e.Event {
		case "begin":
			inside[e.Instance]++
		case "end":
			inside[e.Instance]--
		case "term":
			if inside[e.Instance] > 0 {
				t.Errorf("%s was stopped with %d requests inside", e.Instance, inside[e.Instance])
			}
		}
	}
	w.never()
}

func TestAWakeInsideTheKillGracePeriodIsServedByTheNextTask(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/web", "")
	w.sim.Inject(marathonsim.Fault{Kind: marathonsim.FaultSlowTerm, App: "/web", Delay: 1500 * time.Millisecond})
	w.Start(w.web("idle_timeout 300ms", "scale queue"))
	first := w.Get("/")
	wantOK(t, first)
	harness.Eventually(t, soon, func() bool {
		for _, e := range w.sim.Journal(0) {
			if e.Kind == "kill" {
				return true
			}
		}
		return false
	}, "the task is told to end")
	second := w.Get("/")
	wantOK(t, second)
	if second.Header.Get("X-Instance") == first.Header.Get("X-Instance") {
		t.Error("the dying task was given a request")
	}
	if n := len(w.running("/web")); n != 1 {
		t.Errorf("%d tasks run", n)
	}
	w.never()
}

func TestSeveralServicesShareACluster(t *testing.T) {
	w := newTown(t, brisk())
	var site strings.Builder
	for k := range 5 {
		w.app(fmt.Sprintf("/prod/s%d", k), "")
		fmt.Fprintf(&site, "handle /s%d/* {\n\turi strip_prefix /s%d\n%s\n}\n", k, k,
			harness.Usher(fmt.Sprintf("s%d", k), w.backend(fmt.Sprintf("/prod/s%d", k))))
	}
	w.Start(harness.Config{Site: site.String()})
	var wg sync.WaitGroup
	for k := range 5 {
		wg.Go(func() {
			r := w.Get(fmt.Sprintf("/s%d/", k))
			if !strings.HasPrefix(r.Header.Get("X-Instance"), fmt.Sprintf("prod_s%d.", k)) {
				t.Errorf("s%d: status %d, %q has answered, %v", k, r.Status, r.Header.Get("X-Instance"), r.Err)
			}
		})
	}
	wg.Wait()
}

func TestAddressesOfTasks(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/host", `,"portDefinitions":[{"port":0,"name":"admin"},{"port":0,"name":"http"}]`, "-addr", "$HOST:$PORT1")
	w.app("/own", `,"networks":[{"mode":"container","name":"dcos"}],"container":{"type":"MESOS","portMappings":[{"containerPort":8080,"name":"http"}]}`, "-addr", "$MESOS_CONTAINER_IP:8080")
	w.Start(harness.Config{Site: "handle /own {\n" + harness.Usher("own", w.backend("/own")) + "\n}\nhandle {\n" +
		harness.Usher("host", w.backend("/host", "port_name http")) + "\n}"})
	for path, prefix := range map[string]string{"/": "host.", "/own": "own."} {
		r := w.Get(path)
		wantOK(t, r)
		if !strings.HasPrefix(r.Header.Get("X-Instance"), prefix) {
			t.Errorf("%s: %q has answered", path, r.Header.Get("X-Instance"))
		}
	}
}

package marathon

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

const (
	patch1  = `PATCH /v2/apps/web {"instances":1}`
	patch0  = `PATCH /v2/apps/web {"instances":0}`
	killOne = `POST /v2/tasks/delete?scale=true {"ids":["web.instance-%s._app.1"]}`
)

func TestAStartIsAPatchAndIsReportedBeforeItIsDone(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	b := at(t, m)
	b.scale(1)
	if all := b.history(); all[len(all)-1].Desired != 1 {
		t.Errorf("desired is %d when the order is done", all[len(all)-1].Desired)
	}
	b.scale(1)
	wantChanges(t, m, patch1)
}

func TestAStopNamesItsVictims(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 3, []string{running("a", 31001), running("b", 31002), running("c", 31003)}
	b := at(t, m)
	b.scale(1, id("a"), id("c"))
	wantChanges(t, m, `POST /v2/tasks/delete?scale=true {"ids":["`+id("a")+`","`+id("c")+`"]}`)
	all := b.history()
	last := all[len(all)-1]
	for _, name := range []string{"a", "c"} {
		if !phase(name, scaler.PhaseStopping)(last) {
			t.Errorf("%s is told to stop, but is not reported so", name)
		}
	}
	if last.Desired != 1 || !phase("b", scaler.PhaseReady)(last) {
		t.Errorf("%+v", last)
	}
	// They go on running for a while, and are not stopped again.
	b.scale(1, id("a"), id("c"))
	b.scale(0, id("b"))
	if got := m.changes(); len(got) != 2 || got[1] != patch0 {
		t.Errorf("%v", got)
	}
}

func TestATaskIsReplacedWithoutTouchingTheNumber(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 2, []string{running("a", 31001), running("b", 31002)}
	b := at(t, m)
	b.scale(2, id("a"))
	wantChanges(t, m, `POST /v2/tasks/delete {"ids":["`+id("a")+`"]}`)
}

func TestAnOrderThatDoesNotKnowWhatRunsStopsNothing(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	b := at(t, m)
	m.set(func() { m.instances, m.tasks, m.version = 2, []string{running("a", 31001), running("b", 31002)}, 1 })
	b.scale(1)
	wantChanges(t, m)
	all := b.history()
	if last := all[len(all)-1]; len(last.Instances) != 2 || last.Desired != 2 {
		t.Errorf("it is told what there is: %+v", last)
	}
}

func TestNothingIsScaledDownInPartWhileSomethingIsQueued(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 3, []string{running("a", 31001), running("b", 31002)}
	m.queue = `{"count":1,"delay":{"timeLeftSeconds":0,"overdue":true},"since":"2024-01-02T03:04:05Z","app":{"id":"/web"}}`
	b := at(t, m)
	for _, err := range []error{b.order(2), b.order(2, id("a"))} {
		wantFailure(t, err, scaler.ReasonUnschedulable, false, "queued")
	}
	wantChanges(t, m)
	b.scale(0, id("a"), id("b"))
	wantChanges(t, m, patch0)
}

func TestAScaleUpOfOnesOwnIsGivenUpForTheNext(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	b := at(t, m)
	b.scale(1)
	m.set(func() { m.deployments = []string{"d1"} })
	m.rule(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return r.Method == http.MethodPatch && len(m.deployments) > 0 && locked(w, m.deployments...)
	})
	b.scale(3)
	wantChanges(t, m, patch1, `PATCH /v2/apps/web {"instances":3}`, `DELETE /v2/deployments/d1?force=true`, `PATCH /v2/apps/web {"instances":3}`)
	// Also when the demand is gone, and the deployment would never end.
	m.set(func() { m.deployments = []string{"d2"} })
	b.scale(0)
	if got := m.changes(); got[len(got)-1] != patch0 || got[len(got)-2] != `DELETE /v2/deployments/d2?force=true` {
		t.Errorf("%v", got)
	}
	for _, c := range m.changes() {
		if strings.Contains(c, "force") && !strings.HasPrefix(c, "DELETE /v2/deployments/d") {
			t.Errorf("forced: %s", c)
		}
	}
}

func TestAScaleDownOfOnesOwnIsAwaited(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 1, []string{running("a", 31001)}
	b := at(t, m)
	b.scale(0, id("a"))
	m.set(func() { m.deployments = []string{"d1"} })
	refused := make(chan struct{}, 100)
	m.rule(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		if r.Method != http.MethodPatch || len(m.deployments) == 0 {
			return false
		}
		refused <- struct{}{}
		return locked(w, m.deployments...)
	})
	done := make(chan error, 1)
	go func() { done <- b.order(1) }()
	<-refused
	m.set(func() { m.deployments, m.tasks = nil, nil })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantChanges(t, m, patch0, patch1, patch1)
}

func TestSomebodyElsesDeploymentIsNeverForced(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks, m.deployments = 1, []string{running("a", 31001)}, []string{"theirs"}
	b := at(t, m)
	m.rule(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return change(r) && len(m.deployments) > 0 && locked(w, m.deployments...)
	})
	// A stop is not urgent.
	began := time.Now()
	wantFailure(t, b.order(0, id("a")), scaler.ReasonConflict, false, "theirs", "not forced")
	if took := time.Since(began); took > patienceDown {
		t.Errorf("it took %v", took)
	}
	if a, _ := instance(b.history()[0], "a"); a.Phase == scaler.PhaseStopping {
		t.Error("what was not stopped is reported as stopping")
	}
	// A start waits for it a while, says so meanwhile, and goes on when it ends.
	done := make(chan error, 1)
	go func() { done <- b.order(2) }()
	r := b.await("why", func(r scaler.Report) bool { return r.Trouble != nil })
	wantFailure(t, r.Trouble, scaler.ReasonConflict, false, "theirs")
	m.set(func() { m.deployments = nil })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.await("no trouble", func(r scaler.Report) bool { return r.Trouble == nil && r.Desired == 2 })
	for _, c := range m.changes() {
		if strings.Contains(c, "force") || strings.HasPrefix(c, "DELETE") {
			t.Errorf("forced: %s", c)
		}
	}
}

func TestAStartThatCannotGoOnSaysWhoIsInTheWay(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.deployments = []string{"theirs"}
	b := at(t, m)
	m.rule(func(w http.ResponseWriter, r *http.Request, _ int) bool { return change(r) && locked(w, "theirs") })
	began := time.Now()
	wantFailure(t, b.order(1), scaler.ReasonConflict, false, "theirs")
	if took := time.Since(began); took < patienceUp || took > patienceUp+5*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestAChangeWhoseAnswerIsLostIsNotMadeTwice(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(http.ResponseWriter){
		"reset": func(w http.ResponseWriter) {
			c, _, _ := w.(http.Hijacker).Hijack()
			c.Close()
		},
		"500":       func(w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) },
		"truncated": func(w http.ResponseWriter) { w.Header().Set("Content-Length", "100"); fmt.Fprint(w, `{"ver`) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMasters(t, 3)
			b := at(t, m)
			once := true
			m.rule(func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if r.Method != http.MethodPatch || !once {
					return false
				}
				once = false
				m.set(func() { m.instances, m.version, m.deployments = 1, m.version+1, []string{"lost"} })
				lose(w)
				return true
			})
			b.scale(1)
			wantChanges(t, m, patch1)
			// The deployment is known to be one's own.
			m.rule(func(w http.ResponseWriter, r *http.Request, _ int) bool {
				m.mu.Lock()
				defer m.mu.Unlock()
				return r.Method == http.MethodPatch && len(m.deployments) > 0 && locked(w, m.deployments...)
			})
			b.scale(2)
			if got := m.changes(); !slices.Contains(got, `DELETE /v2/deployments/lost?force=true`) {
				t.Errorf("%v", got)
			}
		})
	}
}

func TestAChangeThatWasCertainlyNotMadeGoesToTheNextMember(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 3)
	b := at(t, m)
	m.rule(func(w http.ResponseWriter, r *http.Request, node int) bool {
		if change(r) && node != 2 {
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, "<html>Could not determine the current leader</html>")
			return true
		}
		return false
	})
	m.nodes[0].Listener.Close() // refuses
	b.scale(1)
	if m.instances != 1 {
		t.Errorf("%d instances: %v", m.instances, m.changes())
	}
}

func TestAnOrderThatWasNotCarriedOutIsGivenAgain(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	b := at(t, m)
	fails := 1
	m.rule(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodPatch || fails == 0 {
			return false
		}
		fails--
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	b.scale(1)
	wantChanges(t, m, patch1, patch1)
}

func TestTooManyDeploymentsIsNoLackOfRights(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	b := at(t, m)
	m.rule(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if !change(r) {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"message":"Max number (100) of running deployments is achieved. Wait for existing deployments to complete or cancel one using force=true parameter."}`)
		return true
	})
	wantFailure(t, b.order(1), scaler.ReasonQuota, false, "too many running deployments")
}

func TestAnOlderMarathonIsScaledByPut(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	b := at(t, m)
	m.rule(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		switch r.Method {
		case http.MethodPatch:
			w.WriteHeader(http.StatusMethodNotAllowed)
			return true
		case http.MethodPut:
			m.mu.Lock()
			defer m.mu.Unlock()
			m.instances = 1
			m.accept(w)
			return true
		}
		return false
	})
	b.scale(1)
	if got := m.changes(); len(got) != 2 || !strings.HasPrefix(got[1], "PUT /v2/apps/web ") || strings.Contains(got[1], "force") {
		t.Errorf("%v", got)
	}
}

func TestWhyNothingStartsIsSaid(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances = 1
	m.queue = `{"count":2,"pod":{"id":"/web"}},{"count":1,"delay":{"timeLeftSeconds":0,"overdue":true},"since":"2024-01-02T03:04:05Z",
		"processedOffersSummary":{"processedOffersCount":123,"unusedOffersCount":123,"rejectSummaryLastOffers":[
			{"reason":"UnfulfilledRole","declined":0,"processed":123},{"reason":"InsufficientCpus","declined":75,"processed":123},{"reason":"InsufficientPorts","declined":48,"processed":48}]},
		"app":{"id":"/web"}}`
	b := at(t, m)
	r := b.await("trouble", func(r scaler.Report) bool { return r.Trouble != nil })
	wantFailure(t, r.Trouble, scaler.ReasonUnschedulable, false, "no free ports, not enough cpus", "75 of 123")

	// A launch back-off, and the last word of the task that failed.
	m.set(func() {
		m.queue = `{"count":1,"delay":{"timeLeftSeconds":42,"overdue":false},"since":"2024-01-02T03:04:05Z","app":{"id":"/web"}}`
		m.failure = fmt.Sprintf(`{"appId":"/web","host":"h","message":"Command exited with status 7","state":"TASK_FAILED","taskId":%q,"timestamp":"2024-01-02T03:04:05Z"}`, id("x"))
	})
	r = b.await("the back-off", func(r scaler.Report) bool { return r.Trouble != nil && strings.Contains(r.Trouble.Detail, "status 7") })
	wantFailure(t, r.Trouble, scaler.ReasonCrashLoop, false, "42s", "exit status 7")
	if n := m.count(http.MethodDelete, "/v2/queue"); n != 0 {
		t.Error("the delay is cleared without a request to do so")
	}
	// A start by hand skips the delay.
	b.r.SkipBackoff()
	eventually(t, func() bool { return m.count(http.MethodDelete, "/v2/queue/web/delay") == 1 }, "the delay is cleared")
	// A start that succeeds ends it.
	m.set(func() { m.queue, m.tasks = "", []string{running("a", 31001)} })
	b.await("the task", phase("a", scaler.PhaseReady))
	if err := b.r.Confirm(t.Context(), id("a")); err != nil {
		t.Fatal(err)
	}
	b.await("no trouble", func(r scaler.Report) bool { return r.Trouble == nil })
}

func TestTheDelayOfAChangedAppIsCleared(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances = 1
	m.queue = `{"count":1,"delay":{"timeLeftSeconds":42,"overdue":false},"since":"2024-01-02T03:04:05Z","app":{"id":"/web"}}`
	at(t, m)
	m.awaitStream(1)
	m.set(func() { m.version, m.config = 1, 1 })
	m.event("/web")
	eventually(t, func() bool { return m.count(http.MethodDelete, "/v2/queue/web/delay") == 1 }, "the delay is cleared")
}

func TestADeploymentThatScalesThisAppAloneIsKnownFromItsSteps(t *testing.T) {
	for steps, want := range map[string]bool{
		`[{"actions":[{"action":"ScaleApplication","app":"/a"}]}]`:                                                       true,
		`[{"actions":[{"type":"ScaleApplication","app":"/a"}]}]`:                                                         true, // 1.1.1 and before
		`[[{"action":"ScaleApplication","app":"/a"}]]`:                                                                   true, // before 1.0
		`[[{"action":"ScaleApplication","app":"/a"}],[{"action":"ScaleApplication","app":"/b"}]]`:                        false,
		`[{"actions":[{"action":"ScaleApplication","app":"/a"},{"action":"ScaleApplication","app":"/b"}]}]`:              false,
		`[{"actions":[{"action":"ScaleApplication","app":"/a"}]},{"actions":[{"action":"StopApplication","app":"/a"}]}]`: false,
		`[]`: false,
	} {
		var d deploymentJSON
		if err := json.Unmarshal([]byte(`{"id":"d","steps":`+steps+`}`), &d); err != nil {
			t.Fatal(err)
		}
		if got := scalesOnly(d, "/a"); got != want {
			t.Errorf("%s: %v", steps, got)
		}
	}
}

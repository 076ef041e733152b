package marathon

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

func TestWhatRunsIsAdopted(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 2, []string{
		running("a", 31001), running("b", 31002), task1("old", "TASK_FAILED", 0, ""),
		task1("c", "TASK_STAGING", 31003, ""),
	}
	m.failure = `{"appId":"/web","host":"h","message":"Command exited with status 1","state":"TASK_FAILED","taskId":"` + id("old") + `","timestamp":"2024-01-02T03:04:05.678Z","version":"x"}`
	r := at(t, m).history()[0]
	if len(r.Instances) != 3 || r.Desired != 2 || r.Trouble != nil {
		t.Fatalf("%+v", r)
	}
	a, _ := instance(r, "a")
	if a.Network != "tcp" || a.Address != "127.0.0.1:31001" || a.Phase != scaler.PhaseReady || a.Since.IsZero() {
		t.Errorf("%+v", a)
	}
	if c, _ := instance(r, "c"); c.Address != "" || c.Phase != scaler.PhaseStarting {
		t.Errorf("a task that is staged has ports, but does not run: %+v", c)
	}
}

func TestAnEventIsAReasonToReadAndNothingElse(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	b := at(t, m)
	m.awaitStream(1)
	// The watch is calm, and would not look for a long time.
	eventually(t, func() bool {
		b.r.app.mu.Lock()
		defer b.r.app.mu.Unlock()
		return b.r.app.calm && time.Since(b.r.app.kicked) > closeLook
	}, "the watch is calm")
	before := m.count(http.MethodGet, "/v2/apps/web")
	m.event("/other")
	m.set(func() { m.instances, m.tasks = 1, []string{running("a", 31001)} })
	m.event("/web")
	b.await("the task", phase("a", scaler.PhaseReady))
	// An event that names no app, or is too long to read, concerns all apps.
	m.set(func() { m.tasks = []string{running("a", 31001), running("b", 31002)} })
	m.raw("event: x\r\ndata: {broken\r\n\r\n")
	b.await("the second task", phase("b", scaler.PhaseReady))
	m.set(func() { m.tasks = []string{running("a", 31001), running("b", 31002), running("c", 31003)} })
	m.raw("event: api_post_event\r\ndata: {\"x\":\"" + strings.Repeat("y", longestEvent+1) + "\"}\r\n\r\n")
	b.await("the third task", phase("c", scaler.PhaseReady))
	if n := m.count(http.MethodGet, "/v2/apps/web") - before; n > 40 {
		t.Errorf("%d reads for four events", n)
	}
}

func TestWhatWasMissedWhileNobodyListenedIsReadWhenSomebodyDoes(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 2)
	b := at(t, m)
	m.awaitStream(1)
	m.set(func() {
		m.instances, m.tasks = 1, []string{running("a", 31001)}
		for s := range m.subscribers {
			close(s)
			delete(m.subscribers, s)
		}
	})
	b.await("the task", phase("a", scaler.PhaseReady))
	m.awaitStream(1)
}

func TestATaskThatFailsEndsWithItsReason(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 1, []string{running("a", 31001)}
	b := at(t, m)
	m.awaitStream(1)
	m.set(func() {
		m.tasks = []string{task1("a", "TASK_FAILED", 0, "")}
		m.failure = fmt.Sprintf(`{"appId":"/web","host":"10.0.0.7","message":"Command exited with status 3","state":"TASK_FAILED","taskId":%q,"timestamp":"2024-01-02T03:04:09Z"}`, id("a"))
	})
	m.event("/web")
	b.await("no task", gone("a"))
	var ended []scaler.Instance
	for _, r := range b.history() {
		if i, ok := instance(r, "a"); ok && i.Phase == scaler.PhaseEnded {
			ended = append(ended, i)
		}
	}
	if len(ended) != 1 || ended[0].Failure == nil || ended[0].Failure.Short != "exit status 3" || !strings.Contains(ended[0].Failure.Detail, "10.0.0.7") {
		t.Errorf("it is reported as ended once, with its reason: %+v", ended)
	}
	// A task that was never seen alive is a failed start, too.
	m.set(func() {
		m.tasks = nil
		m.failure = fmt.Sprintf(`{"appId":"/web","host":"10.0.0.7","message":"Command exited with status 4","state":"TASK_FAILED","taskId":%q,"timestamp":"2024-01-02T03:05:09Z"}`, id("quick"))
	})
	m.event("/web")
	eventually(t, func() bool {
		for _, r := range b.history() {
			if i, ok := instance(r, "quick"); ok {
				return i.Phase == scaler.PhaseEnded && i.Failure.Short == "exit status 4"
			}
		}
		return false
	}, "the failure between two reads is reported")
}

func TestATaskThatSomebodyStopsIsNoFailure(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 2, []string{running("a", 31001), running("b", 31002)}
	b := at(t, m)
	m.awaitStream(1)
	m.set(func() { m.tasks, m.instances, m.version = []string{running("b", 31002)}, 1, 1 })
	m.event("/web")
	b.await("no task", gone("a"))
	var phases []scaler.Phase
	for _, r := range b.history() {
		if i, ok := instance(r, "a"); ok {
			if i.Failure != nil {
				t.Errorf("%v", i.Failure)
			}
			if n := len(phases); n == 0 || phases[n-1] != i.Phase {
				phases = append(phases, i.Phase)
			}
		}
	}
	if got := fmt.Sprint(phases); got != fmt.Sprint([]scaler.Phase{scaler.PhaseReady, scaler.PhaseStopping, scaler.PhaseEnded}) {
		t.Errorf("phases %s: it is on its way out before it is gone", got)
	}
}

func TestATaskThatADeploymentReplacesIsNoFailure(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 1, []string{running("a", 31001)}
	b := at(t, m)
	m.awaitStream(1)
	// It was killed and forgotten between two reads, and the deployment ends.
	m.set(func() { m.tasks, m.deployments = []string{running("b", 31002)}, []string{"d1"} })
	m.event("/web")
	b.await("the new one", phase("b", scaler.PhaseReady))
	m.set(func() { m.deployments = nil })
	b.await("the old one is gone", gone("a"))
	for _, r := range b.history() {
		if i, ok := instance(r, "a"); ok && i.Failure != nil {
			t.Fatalf("%+v", i)
		}
	}
}

func TestAnAnswerThatIsBehindTakesNothingAway(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.version, m.tasks = 1, 5, []string{running("a", 31001)}
	b := at(t, m)
	m.awaitStream(1)
	// An older version of the app, and then an older list of its tasks.
	m.set(func() { m.instances, m.version, m.tasks = 0, 4, nil })
	m.event("/web")
	reads := m.count(http.MethodGet, "/v2/apps/web")
	eventually(t, func() bool { return m.count(http.MethodGet, "/v2/apps/web") > reads+2 }, "it is read again")
	b.await("the task, untouched", func(r scaler.Report) bool {
		a, ok := instance(r, "a")
		return ok && !a.Unhealthy && r.Desired == 1
	})
	m.set(func() { m.instances, m.version = 1, 5 })
	m.event("/web")
	b.await("no new request for a task that is not on the list", func(r scaler.Report) bool {
		a, ok := instance(r, "a")
		return ok && a.Unhealthy
	})
	m.set(func() { m.tasks = []string{running("a", 31001)} })
	b.await("the task", func(r scaler.Report) bool {
		a, ok := instance(r, "a")
		return ok && !a.Unhealthy && a.Phase == scaler.PhaseReady
	})
	for _, r := range b.history() {
		if a, ok := instance(r, "a"); !ok || a.Phase == scaler.PhaseEnded {
			t.Fatalf("it ended in between: %+v", r)
		}
	}
}

func TestAnOutageIsReportedAndTakesNothingAway(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 2)
	m.instances, m.tasks = 1, []string{running("a", 31001)}
	b := at(t, m)
	down := true
	m.rule(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		if down {
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, "Could not determine the current leader")
		}
		return down
	})
	m.raw("data: {\r\n\r\n")
	b.r.app.kick()
	r := b.await("trouble", func(r scaler.Report) bool { return r.Trouble != nil })
	if _, ok := instance(r, "a"); !ok || r.Desired != 1 || r.Trouble.Reason != scaler.ReasonPlatform {
		t.Errorf("%+v, %v", r, r.Trouble)
	}
	m.set(func() { down = false })
	b.await("no trouble", func(r scaler.Report) bool { return r.Trouble == nil && len(r.Instances) == 1 })
}

func TestAnAppThatIsNotThere(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.missing = true
	b := at(t, m)
	r := b.await("trouble", func(r scaler.Report) bool { return r.Trouble != nil })
	wantFailure(t, r.Trouble, scaler.ReasonNotFound, true, "/web", "create it")
	wantFailure(t, b.order(1), scaler.ReasonNotFound, true, "/web")

	m.awaitStream(1)
	m.set(func() { m.missing, m.instances, m.tasks = false, 1, []string{running("a", 31001)} })
	m.event("/web")
	b.await("the app", func(r scaler.Report) bool { return r.Trouble == nil && phase("a", scaler.PhaseReady)(r) })
	// Deleted, its tasks get nothing new and may finish what they have.
	m.set(func() { m.missing = true })
	m.event("/web")
	b.await("the end of the app", phase("a", scaler.PhaseStopping))
	// Made again, it has other tasks.
	m.set(func() { m.missing, m.tasks, m.version = false, []string{running("n", 31001)}, 9 })
	m.event("/web")
	b.await("the new task", func(r scaler.Report) bool {
		return r.Trouble == nil && phase("n", scaler.PhaseReady)(r) && gone("a")(r)
	})
}

func TestWhoIsRefusedIsToldForGood(t *testing.T) {
	t.Parallel()
	for status, words := range map[int]string{http.StatusUnauthorized: "refuses the credentials", http.StatusForbidden: "does not allow"} {
		m := newMasters(t, 2)
		m.rule(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			w.WriteHeader(status)
			fmt.Fprint(w, `{"message":"no"}`)
			return true
		})
		b := start(t, &Backend{URLs: m.urls()})
		r := b.await("trouble", func(r scaler.Report) bool { return r.Trouble != nil })
		wantFailure(t, r.Trouble, scaler.ReasonForbidden, true, words)
		wantFailure(t, b.order(1), scaler.ReasonForbidden, true, words)
		b.close()
	}
}

func TestATaskOutOfSightServesButIsNotCounted(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 1, []string{running("a", 31001)}
	b := at(t, m)
	m.awaitStream(1)
	m.set(func() {
		m.tasks = []string{task1("a", "TASK_UNREACHABLE", 31001, ""), running("b", 31002)}
	})
	m.event("/web")
	r := b.await("both", func(r scaler.Report) bool { return len(r.Instances) == 2 })
	a, _ := instance(r, "a")
	if !a.Extra || a.Phase != scaler.PhaseReady || a.Address != "127.0.0.1:31001" || a.Failure != nil {
		t.Errorf("%+v", a)
	}
	if nb, _ := instance(r, "b"); nb.Extra {
		t.Errorf("%+v", nb)
	}
	// It comes back, and two run where one is wanted.
	m.set(func() { m.tasks = []string{running("a", 31001), running("b", 31002)} })
	m.event("/web")
	b.await("both counted", func(r scaler.Report) bool {
		a, _ := instance(r, "a")
		return len(r.Instances) == 2 && !a.Extra && r.Desired == 1
	})
	b.scaleInTime(1, id("a"))
	wantChanges(t, m, `PATCH /v2/apps/web {"instances":2}`, `POST /v2/tasks/delete?scale=true {"ids":["`+id("a")+`"]}`)
	if m.instances != 1 {
		t.Errorf("%d instances are wanted", m.instances)
	}
}

func TestATaskThatWasLetGoAndComesBackIsAnotherInstance(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 1, []string{task1("a", "TASK_UNREACHABLE", 31001, ""), running("b", 31002)}
	b := at(t, m)
	m.awaitStream(1)
	b.scale(1, id("a"))
	wantChanges(t, m)
	b.await("its end", phase("a", scaler.PhaseStopping))
	m.set(func() { m.tasks = []string{running("a", 31001), running("b", 31002)} })
	m.event("/web")
	b.await("its return", func(r scaler.Report) bool {
		return phase(id("a")+"~1", scaler.PhaseReady)(r) && gone("a")(r)
	})
	b.scaleInTime(1, id("a")+"~1")
	wantChanges(t, m, `PATCH /v2/apps/web {"instances":2}`, `POST /v2/tasks/delete?scale=true {"ids":["`+id("a")+`"]}`)
}

// upgraded is an app whose task a was followed by b, of a later version of the app. The
// list that is read has the tasks. It returns both as they are reported then.
func upgraded(t *testing.T, deployments, tasks []string) (m *masters, b *bench, older, newer scaler.Instance) {
	t.Helper()
	m = newMasters(t, 1)
	m.instances, m.tasks = 1, []string{running("a", 31001)}
	b = at(t, m)
	m.awaitStream(1)
	m.set(func() { m.config, m.version, m.deployments, m.tasks = 3, 3, deployments, tasks })
	m.event("/web")
	b.await("both", func(r scaler.Report) bool {
		older, _ = instance(r, "a")
		newer, _ = instance(r, "b")
		return len(r.Instances) == 2
	})
	return m, b, older, newer
}

// later is the task b of a later version of the app.
func later() string {
	return strings.ReplaceAll(running("b", 31002), `"version":"`+stamp(0), `"version":"`+stamp(3))
}

func TestAnUpgradeCountsTheNewAndServesWithTheOld(t *testing.T) {
	t.Parallel()
	_, _, older, newer := upgraded(t, []string{"upgrade"}, []string{running("a", 31001), later()})
	if !older.Extra || newer.Extra || older.Phase != scaler.PhaseReady {
		t.Errorf("old %+v, new %+v", older, newer)
	}
}

// A task that an upgrade has replaced is off the list at once, and believed to be
// gone only later. Until then it must not cost its successor the place, nor the app
// one more task.
func TestATaskOffTheListIsNotCountedBesideItsSuccessor(t *testing.T) {
	t.Parallel()
	m, b, older, newer := upgraded(t, nil, []string{later()})
	if !older.Extra || !older.Unhealthy || newer.Extra {
		t.Errorf("old %+v, new %+v", older, newer)
	}
	// An order that was given before that was known stops one, and starts none.
	b.scale(1, id("b"))
	wantChanges(t, m, `POST /v2/tasks/delete {"ids":["`+id("b")+`"]}`)
}

// The list can be behind the end of an upgrade, and show both tasks when nothing is at
// work any more. The old one is not counted then either, and what an order says of them
// waits until the list is right.
func TestAListThatIsBehindTheEndOfAnUpgradeCostsTheNewTaskNothing(t *testing.T) {
	t.Parallel()
	m, b, older, newer := upgraded(t, nil, []string{running("a", 31001), later()})
	if !older.Extra || newer.Extra {
		t.Errorf("old %+v, new %+v", older, newer)
	}
	if err := b.order(1, id("b")); !errors.Is(err, scaler.ErrLater) {
		t.Errorf("the order for the new one is not postponed: %v", err)
	}
	wantChanges(t, m)
	// Both run on: now the old one is one too many.
	b.await("the old one, counted", func(r scaler.Report) bool {
		a, _ := instance(r, "a")
		return len(r.Instances) == 2 && !a.Extra
	})
	b.scale(1, id("a"))
	wantChanges(t, m, `PATCH /v2/apps/web {"instances":2}`, `POST /v2/tasks/delete?scale=true {"ids":["`+id("a")+`"]}`)
}

func TestMarathonsChecksCountOnlyAgainstATask(t *testing.T) {
	t.Parallel()
	result := func(s string) string { return `,"healthCheckResults":[` + s + `]` }
	for name, tc := range map[string]struct {
		results   string
		phase     scaler.Phase
		unhealthy bool
	}{
		"alive":         {`{"alive":true,"consecutiveFailures":0,"firstSuccess":"2024-01-02T03:04:05Z","lastSuccess":"2024-01-02T03:04:05Z"}`, scaler.PhaseReady, false},
		"none yet":      {``, scaler.PhaseStarting, false},
		"not yet alive": {`{"alive":false,"consecutiveFailures":0,"lastFailure":"2024-01-02T03:04:05Z"}`, scaler.PhaseStarting, false},
		"dead":          {`{"alive":false,"consecutiveFailures":2,"firstSuccess":"2024-01-02T03:04:05Z","lastSuccess":"2024-01-02T03:04:05Z","lastFailure":"2024-01-02T03:04:15Z"}`, scaler.PhaseStarting, true},
	} {
		m := newMasters(t, 1)
		m.extra = `,"healthChecks":[{"protocol":"MESOS_HTTP","path":"/"}]`
		m.instances, m.tasks = 1, []string{task1("a", "TASK_RUNNING", 31001, result(tc.results))}
		b := at(t, m)
		a, _ := instance(b.history()[0], "a")
		if a.Phase != tc.phase || a.Unhealthy != tc.unhealthy {
			t.Errorf("%s: %+v", name, a)
		}
		if err := b.r.Confirm(t.Context(), id("a")); (err != nil) != tc.unhealthy {
			t.Errorf("%s: confirm: %v", name, err)
		}
		b.close()
	}
}

func TestAProbeIsConfirmedByAReadThatBeganLater(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 1, []string{running("a", 31001)}
	b := at(t, m)
	if err := b.r.Confirm(t.Context(), id("a")); err != nil {
		t.Fatal(err)
	}
	// The task has gone, its port is another one's, and no event says so.
	m.set(func() { m.tasks = []string{task1("a", "TASK_KILLED", 31001, "")} })
	if err := b.r.Confirm(t.Context(), id("a")); err == nil || errors.Is(err, scaler.ErrNotYet) {
		t.Errorf("a port that is not the task's any more: %v", err)
	}
	if err := b.r.Confirm(t.Context(), "missing"); err == nil {
		t.Error("a task that is not known")
	}
	// Without an answer from Marathon nothing is confirmed.
	m.set(func() { m.tasks = []string{running("b", 31002)} })
	m.awaitStream(1)
	m.event("/web")
	b.await("the next task", phase("b", scaler.PhaseReady))
	m.rule(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	if err := b.r.Confirm(t.Context(), id("b")); err == nil {
		t.Error("confirmed without an answer")
	}
}

func TestATaskThatRefusedConnectionsIsNotTakenBackOnAnOldAnswer(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 1, []string{running("a", 31001)}
	b := at(t, m)
	if err := b.r.Confirm(t.Context(), id("a")); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, func() bool { return b.r.Confirm(t.Context(), id("a")) == nil }, "it is taken back")
	if took := time.Since(began); took < vanishAfter {
		t.Errorf("after %v: an answer can be behind by %v", took, vanishAfter)
	}
	// Nor is a task that Mesos has lost: its port may belong to another one.
	m.set(func() { m.tasks = []string{task1("b", "TASK_UNREACHABLE", 31002, "")} })
	if err := b.r.Confirm(t.Context(), id("b")); err == nil {
		t.Error("confirmed out of sight")
	}
}

func TestATaskIsVouchedForByAReadThatBeganLater(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 2)
	m.instances, m.tasks = 1, []string{running("a", 31001)}
	b := at(t, m)
	m.awaitStream(1)
	vouch := func(name string) (took time.Duration, err error) {
		began := time.Now()
		err = b.r.Verify(t.Context(), id(name))
		return time.Since(began), err
	}
	if _, err := vouch("a"); err != nil {
		t.Error(err)
	}
	// Out of sight, it is where it was.
	m.set(func() { m.tasks = []string{task1("a", "TASK_UNREACHABLE", 31001, "")} })
	if _, err := vouch("a"); err != nil {
		t.Error(err)
	}
	// While Marathon cannot be reached, the last known state holds.
	m.set(func() { m.tasks = []string{running("a", 31001)} })
	b.r.app.kick()
	down := true
	m.rule(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		if down {
			w.WriteHeader(http.StatusInternalServerError)
		}
		return down
	})
	if took, err := vouch("a"); err != nil || took > vouchWait+time.Second {
		t.Errorf("%v, after %v", err, took)
	}
	b.await("trouble", func(r scaler.Report) bool { return r.Trouble != nil })
	if took, err := vouch("a"); err != nil || took > vouchWait {
		t.Errorf("in the midst of an outage: %v, after %v", err, took)
	}
	// A member that fails once is no reason not to ask another one.
	m.set(func() { down, m.tasks = false, nil })
	if _, err := vouch("a"); err == nil {
		t.Error("its port may be another one's, and no event says so")
	}
	if _, err := vouch("missing"); err == nil {
		t.Error("a task that is not known")
	}
}

func TestAnAppThatIsDeletedVouchesForNobody(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 1, []string{running("a", 31001)}
	b := at(t, m)
	m.set(func() { m.missing = true })
	if err := b.r.Verify(t.Context(), id("a")); err == nil {
		t.Error("its tasks are being stopped")
	}
}

func TestATaskWhoseFailureIsOnRecordHasEndedWhateverTheListSays(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 1, []string{running("a", 31001)}
	m.failure = fmt.Sprintf(`{"appId":"/web","host":"10.0.0.7","message":"","state":"TASK_UNREACHABLE","taskId":%q,"timestamp":"2024-01-02T03:04:09Z"}`, id("a"))
	b := at(t, m)
	b.await("it is back", phase("a", scaler.PhaseReady))
	m.awaitStream(1)
	m.set(func() {
		m.failure = fmt.Sprintf(`{"appId":"/web","host":"10.0.0.7","message":"Command exited with status 3","state":"TASK_FAILED","taskId":%q,"timestamp":"2024-01-02T03:04:10Z"}`, id("a"))
	})
	m.event("/web")
	b.await("no task", gone("a"))
	if err := b.r.Confirm(t.Context(), id("a")); err == nil {
		t.Error("confirmed by a list that is behind")
	}
}

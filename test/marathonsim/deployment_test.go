package marathonsim_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/marathonsim"
)

// stubborn is an app that does not care for TERM, and so dies only when its
// grace period is over.
func (s *sim) stubborn(id string, instances int, grace string) {
	s.t.Helper()
	s.createCmd(id, "exec "+appBinary+" -ignore-term", instances, `"taskKillGracePeriodSeconds":`+grace)
}

func TestAScaleDownLocksTheAppUntilItsVictimIsDead(t *testing.T) {
	s := start(t, quick())
	s.stubborn("/a", 1, "0.7")
	address := endpoint(running(s.settled("/a", 1))[0])
	serves(t, address)
	down := s.want(200, "PATCH", "/v2/apps/a", `{"instances":0}`)

	wake := s.call("PATCH", "/v2/apps/a", `{"instances":1}`)
	want := `{"message":"App is locked by one or more deployments. Override with the option '?force=true'. View details at '/v2/deployments/<DEPLOYMENT_ID>'.","deployments":[{"id":"` + down.str("deploymentId") + `"}]}`
	if wake.status != 409 || wake.body != want {
		t.Errorf("a wake within the grace period: %d %s", wake.status, wake.body)
	}
	if refuses(address) {
		t.Error("the victim does not serve within its grace period")
	}
	if a := s.get("/v2/apps/a"); len(a.list("app.deployments")) != 1 || a.num("app.instances") != 0 {
		t.Errorf("meanwhile: %s", a.body)
	}
	eventually(t, "the lock is gone", func() bool {
		return s.call("PATCH", "/v2/apps/a", `{"instances":1}`).status == 200
	})
	if !refuses(address) {
		t.Error("the lock was released while the victim lived")
	}
	s.settled("/a", 1)
}

func TestAForcedWakeSucceedsAtOnceWithNothingRunning(t *testing.T) {
	s := start(t, quick())
	s.stubborn("/a", 1, "0.7")
	victim := running(s.settled("/a", 1))[0]
	serves(t, endpoint(victim)) // from here on it ignores TERM
	st := s.listen(s.leader(), "?event_type=deployment_success&event_type=deployment_failed")
	down := s.want(200, "PATCH", "/v2/apps/a", `{"instances":0}`)
	eventually(t, "the victim is dying", func() bool {
		return s.call("PATCH", "/v2/apps/a", `{"instances":1}`).status == 409
	})
	wake := s.want(200, "PATCH", "/v2/apps/a?force=true", `{"instances":1}`)
	eventually(t, "the wake is reported as a success", func() bool {
		for _, e := range st.of("deployment_success") {
			if e["id"] == wake.str("deploymentId") {
				return true
			}
		}
		return false
	})
	if q := s.get("/v2/queue"); len(q.list("queue")) != 0 {
		t.Errorf("something is queued: %s", q.body)
	}
	if refuses(endpoint(victim)) {
		t.Error("the victim is dead already; the test has shown nothing")
	}
	eventually(t, "the end of the scale-down is told", func() bool { return len(st.of("deployment_failed")) == 1 })
	failed := st.of("deployment_failed")
	if failed[0]["id"] != down.str("deploymentId") || failed[0]["reason"] != "The upgrade has been cancelled" {
		t.Errorf("the scale-down: %v", failed)
	}
	// The replacement comes when the victim is dead, and not before.
	eventually(t, "the replacement runs", func() bool {
		books := s.Tasks()
		if len(books) > 1 {
			t.Fatalf("the replacement was started beside the victim: %+v", books)
		}
		return len(books) == 1 && books[0].ID != victim["id"] && books[0].State == "TASK_RUNNING"
	})
}

func TestADeploymentThatCannotSucceedGoesOnUntilItIsCancelled(t *testing.T) {
	s := start(t, quick())
	s.createCmd("/a", "exec sleep 1000", 1, "")
	s.settled("/a", 1)
	remove := s.Inject(marathonsim.Fault{Kind: marathonsim.FaultNoOffers})
	up := s.want(200, "PATCH", "/v2/apps/a", `{"instances":2}`)
	list := s.get("/v2/deployments")
	for path, want := range map[string]any{
		"0.id": up.str("deploymentId"), "0.affectedApps.0": "/a", "0.steps.0.actions.0.action": "ScaleApplication",
		"0.steps.0.actions.0.app": "/a", "0.currentActions.0.action": "ScaleApplication", "0.currentStep": 1.0, "0.totalSteps": 1.0,
	} {
		if got := list.at(path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	if list.list("0.affectedPods") == nil || list.list("0.currentActions.0.readinessCheckResults") == nil {
		t.Errorf("lists that are not there: %s", list.body)
	}

	// Dropped, the app keeps its number, and the next scale check sees to it.
	drop := s.want(202, "DELETE", "/v2/deployments/"+up.str("deploymentId")+"?force=true", "")
	if drop.body != "" {
		t.Errorf("the answer has a body: %s", drop.body)
	}
	if a := s.get("/v2/apps/a"); a.num("app.instances") != 2 || len(a.list("app.deployments")) != 0 {
		t.Errorf("after the drop: %s", a.body)
	}
	remove()
	s.settled("/a", 2)

	remove = s.Inject(marathonsim.Fault{Kind: marathonsim.FaultNoOffers})
	up = s.want(200, "PATCH", "/v2/apps/a", `{"instances":3}`)
	back := s.want(200, "DELETE", "/v2/deployments/"+up.str("deploymentId"), "")
	if back.str("deploymentId") == up.str("deploymentId") {
		t.Errorf("the rollback: %s", back.body)
	}
	remove()
	if a := s.settled("/a", 2); a.num("app.instances") != 2 {
		t.Errorf("after the rollback: %s", a.body)
	}
}

func TestAForeignDeploymentHoldsTheApp(t *testing.T) {
	s := start(t, quick())
	s.createCmd("/a", "exec sleep 1000", 0, "")
	s.settled("/a", 0)
	id, release, err := s.Lock("/a")
	if err != nil {
		t.Fatal(err)
	}
	if a := s.call("PATCH", "/v2/apps/a", `{"instances":1}`); a.status != 409 || a.str("deployments.0.id") != id {
		t.Errorf("the app is not locked: %d %s", a.status, a.body)
	}
	release()
	eventually(t, "the lock is gone", func() bool { return s.call("PATCH", "/v2/apps/a", `{"instances":1}`).status == 200 })
	s.settled("/a", 1)
}

func TestAPartialScaleDownKillsARunningTaskBeforeOneThatWaits(t *testing.T) {
	s := start(t, quick())
	s.createCmd("/a", "exec sleep 1000", 2, "")
	s.settled("/a", 2)
	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultNoOffers})
	s.want(200, "PATCH", "/v2/apps/a", `{"instances":3}`)
	eventually(t, "the third waits", func() bool { return s.get("/v2/queue").num("queue.0.count") == 1 })
	s.want(200, "PATCH", "/v2/apps/a?force=true", `{"instances":2}`)
	eventually(t, "one that ran is gone, and one still waits", func() bool {
		return len(running(s.get("/v2/apps/a"))) == 1 && s.get("/v2/queue").num("queue.0.count") == 1
	})
}

func TestNamedTasksAreTheVictims(t *testing.T) {
	s := start(t, quick())
	s.createCmd("/a", "exec sleep 1000", 1, "")
	victim := running(s.settled("/a", 1))[0]["id"] // the oldest: nothing but its name speaks for it
	s.want(200, "PATCH", "/v2/apps/a", `{"instances":2}`)
	s.settled("/a", 2)
	s.want(200, "PATCH", "/v2/apps/a", `{"instances":3}`)
	s.settled("/a", 3)
	down := s.want(200, "POST", "/v2/tasks/delete?scale=true", fmt.Sprintf(`{"ids":[%q]}`, victim))
	if down.str("deploymentId") == "" || down.str("version") == "" {
		t.Errorf("the answer: %s", down.body)
	}
	a := s.settled("/a", 2)
	for _, task := range running(a) {
		if task["id"] == victim {
			t.Error("the victim lives")
		}
	}
	if a.num("app.instances") != 2 {
		t.Errorf("instances: %d", a.num("app.instances"))
	}
	// The youngest goes when no task is named.
	youngest := running(a)[0]
	for _, task := range running(a) {
		if task["startedAt"].(string) > youngest["startedAt"].(string) {
			youngest = task
		}
	}
	s.want(200, "PATCH", "/v2/apps/a", `{"instances":1}`)
	if left := running(s.settled("/a", 1)); left[0]["id"] == youngest["id"] {
		t.Error("the youngest is the one that is left")
	}
}

func TestAKilledTaskIsReplacedInTheSameInstance(t *testing.T) {
	s := start(t, quick())
	s.createCmd("/a", "exec sleep 1000", 1, "")
	before := running(s.settled("/a", 1))[0]["id"].(string)
	gone := s.want(200, "DELETE", "/v2/apps/a/tasks/"+before, "")
	if gone.str("task.id") != before {
		t.Errorf("the answer: %s", gone.body)
	}
	want := before[:len(before)-1] + "2"
	eventually(t, "the next incarnation runs", func() bool {
		r := running(s.get("/v2/apps/a"))
		return len(r) == 1 && r[0]["id"] == want
	})
	s.want(200, "DELETE", "/v2/apps/a/tasks/"+want+"?wipe=true", "")
	eventually(t, "a new instance runs", func() bool {
		r := running(s.get("/v2/apps/a"))
		return len(r) == 1 && r[0]["id"].(string)[:20] != want[:20]
	})
}

func TestAnUpgradeKeepsTheOldTasksUntilTheNewOnesAreReady(t *testing.T) {
	s := start(t, quick())
	gate := t.TempDir() + "/ready"
	s.createCmd("/a", "exec "+appBinary, 1, `"portDefinitions":[{"port":0,"name":"http"}]`)
	old := running(s.settled("/a", 1))[0]
	serves(t, endpoint(old))
	s.want(200, "PATCH", "/v2/apps/a", fmt.Sprintf(`{"cmd":%q,"readinessChecks":[{"name":"r","portName":"http","path":"/healthz","intervalSeconds":0.01,"preserveLastResponse":true}]}`,
		"exec "+appBinary+" -fail-health "+gate))
	eventually(t, "the new task is there and not ready, which can be seen", func() bool {
		d := s.get("/v2/deployments")
		return len(running(s.get("/v2/apps/a"))) == 2 && d.at("0.currentActions.0.readinessCheckResults.0.ready") == false &&
			d.num("0.currentActions.0.readinessCheckResults.0.lastResponse.status") == 503
	})
	if refuses(endpoint(old)) {
		t.Error("the old task has gone first")
	}
	touch(t, gate)
	if left := running(s.settled("/a", 1)); left[0]["id"] == old["id"] {
		t.Error("the old task is the one that is left")
	}
}

func TestTooManyDeploymentsAreForbidden(t *testing.T) {
	cfg := quick()
	cfg.MaxRunningDeployments = 1
	s := start(t, cfg)
	s.createCmd("/a", "true", 0, "")
	s.settled("/a", 0)
	s.createCmd("/b", "true", 0, "")
	s.settled("/b", 0)
	if _, _, err := s.Lock("/a"); err != nil {
		t.Fatal(err)
	}
	if a := s.call("PATCH", "/v2/apps/b", `{"instances":1}`); a.status != 403 {
		t.Errorf("one too many: %d %s", a.status, a.body)
	}
}

func TestKillAfterTheGracePeriodEndsTheWholeGroup(t *testing.T) {
	s := start(t, quick())
	s.createCmd("/a", "trap '' TERM; "+appBinary+" -ignore-term & exec sleep 1000", 1, `"taskKillGracePeriodSeconds":0.2`)
	task := running(s.settled("/a", 1))[0]
	serves(t, endpoint(task))
	began := time.Now()
	s.want(200, "PATCH", "/v2/apps/a", `{"instances":0}`)
	s.settled("/a", 0)
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("it took %s only", took)
	}
	eventually(t, "the children of the task are gone", func() bool { return refuses(endpoint(task)) })
}

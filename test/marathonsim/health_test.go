package marathonsim_test

import (
	"fmt"
	"testing"
	"time"
)

func TestMarathonsChecksTickFromTheDeploymentOn(t *testing.T) {
	cfg := quick()
	cfg.Speed = 20
	s := start(t, cfg)
	s.create("/a", 1, `"healthChecks":[{"protocol":"HTTP","path":"/healthz","portIndex":0,"intervalSeconds":60}]`)
	eventually(t, "it runs", func() bool { return s.get("/v2/apps/a").num("app.tasksRunning") == 1 })
	a := s.get("/v2/apps/a")
	if len(a.list("app.tasks.0.healthCheckResults")) != 0 || a.num("app.tasksHealthy") != 0 || a.num("app.tasksUnhealthy") != 0 || len(a.list("app.deployments")) != 1 {
		t.Errorf("before the first check: %s", a.body)
	}
	s.settled("/a", 1)
	eventually(t, "it is seen to be healthy", func() bool { a = s.get("/v2/apps/a"); return a.num("app.tasksHealthy") == 1 })
	if a.at("app.tasks.0.healthCheckResults.0.alive") != true {
		t.Errorf("after the first check: %s", a.body)
	}
	if id := a.str("app.tasks.0.healthCheckResults.0.instanceId"); id == "" || id+"._app.1" != a.str("app.tasks.0.id") {
		t.Errorf("the result is of %q", id)
	}
}

func TestATaskThatComesLateWaitsForTheNextTick(t *testing.T) {
	s := start(t, quick())
	gate := t.TempDir() + "/gate"
	s.createCmd("/a", "exec "+appBinary+" -gate "+gate, 1,
		`"healthChecks":[{"protocol":"TCP","portIndex":0,"intervalSeconds":60,"gracePeriodSeconds":0,"maxConsecutiveFailures":0}]`)
	eventually(t, "it runs", func() bool { return s.get("/v2/apps/a").num("app.tasksRunning") == 1 })
	task := running(s.get("/v2/apps/a"))[0]
	s.Advance(6 * time.Second)
	eventually(t, "the first tick has been, and was too early", func() bool { return s.get("/v2/apps/a").num("app.tasksUnhealthy") == 1 })
	touch(t, gate)
	serves(t, endpoint(task))
	if a := s.get("/v2/apps/a"); a.num("app.tasksHealthy") != 0 || len(a.list("app.deployments")) != 1 {
		t.Errorf("healthy without a tick: %s", a.body)
	}
	s.Advance(60 * time.Second)
	s.settled("/a", 1)
}

func TestTheAgentsChecksAreToldByStatusUpdates(t *testing.T) {
	s := start(t, quick())
	st := s.listen(s.leader(), "")
	s.create("/a", 1, `"healthChecks":[{"protocol":"MESOS_HTTP","path":"/healthz","portIndex":0,"delaySeconds":0.05,"intervalSeconds":0.05}]`)
	s.settled("/a", 1)
	eventually(t, "the health is told", func() bool {
		return len(st.of("health_status_changed_event")) == 1 && len(st.of("instance_health_changed_event")) == 1 &&
			len(st.of("status_update_event")) == 3 && len(st.of("add_health_check_event")) == 1
	})
	e := st.of("health_status_changed_event")[0]
	if e["alive"] != true || e["instanceId"] == nil || e["taskId"] != nil {
		t.Errorf("%v", e)
	}
}

func TestAnUnhealthyTaskIsKilledAndReplacedWithoutBackOff(t *testing.T) {
	s := start(t, quick())
	gate := t.TempDir() + "/healthy"
	touch(t, gate)
	st := s.listen(s.leader(), "")
	s.createCmd("/a", "exec "+appBinary+" -fail-health "+gate, 1, `"backoffSeconds":300,
		"healthChecks":[{"protocol":"MESOS_HTTP","path":"/healthz","portIndex":0,"delaySeconds":0,"intervalSeconds":0.05,"maxConsecutiveFailures":2}]`)
	first := s.settled("/a", 1).str("app.tasks.0.id")
	remove(t, gate)
	eventually(t, "it is killed", func() bool { return len(st.of("unhealthy_instance_kill_event")) == 1 })
	e := st.of("unhealthy_instance_kill_event")[0]
	if e["reason"] != "503 Service Unavailable" || e["taskId"] != first {
		t.Errorf("%v", e)
	}
	if e := st.of("failed_health_check_event")[0]; fmt.Sprint(e["taskId"])+"._app.1" != first {
		t.Errorf("its taskId is the id of an instance: %v", e)
	}
	touch(t, gate)
	eventually(t, "the next incarnation runs", func() bool {
		a := s.get("/v2/apps/a")
		return len(running(a)) == 1 && running(a)[0]["id"] != first &&
			a.str("app.lastTaskFailure.message") == "Task was killed since health check failed. Reason: 503 Service Unavailable"
	})
}

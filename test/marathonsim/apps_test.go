package marathonsim_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/marathonsim"
)

func TestAnAppRunsAsProcessesAndScales(t *testing.T) {
	s := start(t, quick())
	s.create("/prod/web", 1, "")
	a := s.settled("/prod/web", 1)
	task := running(a)[0]
	serves(t, endpoint(task))

	up := s.want(200, "PATCH", "/v2/apps/prod/web", `{"instances":3}`)
	if up.str("deploymentId") == "" || up.header.Get("Marathon-Deployment-Id") != up.str("deploymentId") || up.str("version") == "" {
		t.Errorf("the answer to a scaling: %v %s", up.header, up.body)
	}
	a = s.settled("/prod/web", 3)
	var addresses []string
	for _, task := range running(a) {
		addresses = append(addresses, endpoint(task))
		serves(t, endpoint(task))
	}
	slices.Sort(addresses)
	if len(slices.Compact(addresses)) != 3 {
		t.Errorf("tasks share an address: %v", addresses)
	}

	s.want(200, "PATCH", "/v2/apps/prod/web", `{"instances":0}`)
	s.settled("/prod/web", 0)
	for _, address := range addresses {
		if !refuses(address) {
			t.Errorf("%s still listens", address)
		}
	}
}

func TestAnAppLooksAsMarathonWritesIt(t *testing.T) {
	s := start(t, quick())
	s.create("/prod/web", 1, `"labels":{"USHER":"true"}`)
	a := s.settled("/prod/web", 1)

	for path, want := range map[string]any{
		"app.id": "/prod/web", "app.instances": 1.0, "app.cpus": 0.1, "app.mem": 32.0, "app.disk": 0.0, "app.executor": "",
		"app.backoffSeconds": 1.0, "app.backoffFactor": 1.15, "app.maxLaunchDelaySeconds": 300.0,
		"app.networks.0.mode": "host", "app.portDefinitions.0.protocol": "tcp", "app.requirePorts": false,
		"app.upgradeStrategy.minimumHealthCapacity": 1.0, "app.killSelection": "YOUNGEST_FIRST",
		"app.unreachableStrategy.inactiveAfterSeconds": 0.0, "app.labels.USHER": "true",
		"app.tasksStaged": 0.0, "app.tasksRunning": 1.0, "app.tasksHealthy": 0.0, "app.tasksUnhealthy": 0.0,
		"app.tasks.0.appId": "/prod/web", "app.tasks.0.state": "TASK_RUNNING",
	} {
		if got := a.at(path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	for _, path := range []string{
		"app.tasks.0.healthCheckResults", "app.tasks.0.servicePorts", "app.tasks.0.localVolumes",
		"app.tasks.0.ipAddresses", "app.tasks.0.ports", "app.deployments",
	} {
		if _, ok := a.at(path).([]any); !ok {
			t.Errorf("%s is %v, want a list", path, a.at(path))
		}
	}
	if id := a.str("app.tasks.0.id"); !regexp.MustCompile(`^prod_web\.instance-[0-9a-f-]{36}\._app\.1$`).MatchString(id) {
		t.Errorf("task id %s", id)
	}
	if _, ok := a.at("app").(map[string]any)["lastTaskFailure"]; ok {
		t.Error("lastTaskFailure is there, though nothing has failed")
	}
	if v := a.str("app.version"); v != a.str("app.versionInfo.lastScalingAt") || !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`).MatchString(v) {
		t.Errorf("version %s", v)
	}
	if all := s.get("/v2/tasks"); len(all.list("tasks.0.servicePorts")) != 1 {
		t.Errorf("GET /v2/tasks has no service ports: %s", all.body)
	}
	if list := s.get("/v2/apps"); list.at("apps.0.tasks") != nil || list.at("apps.0.deployments") == nil {
		t.Errorf("the list embeds tasks, or no deployments, unasked: %s", list.body)
	}
	if list := s.get("/v2/apps/prod/*"); list.str("*.0.id") != "/prod/web" || len(s.get("/v2/apps/test/*").list("*")) != 0 {
		t.Errorf("the apps of a group: %s", list.body)
	}
	if list := s.get("/v2/apps?embed=apps.tasks&label=USHER==true,!x"); list.status != 422 {
		t.Errorf("a bad selector: %d", list.status)
	}
	if list := s.get("/v2/apps?embed=apps.tasks&label=USHER%20in%20(true,maybe)"); len(list.list("apps.0.tasks")) != 1 {
		t.Errorf("the list with tasks: %s", list.body)
	}
	if list := s.get("/v2/apps?label=USHER!=true"); len(list.list("apps")) != 0 {
		t.Errorf("a selector that does not hold: %s", list.body)
	}
}

func TestScalingChangesTheVersionButNotTheConfiguration(t *testing.T) {
	s := start(t, quick())
	s.createCmd("/a", "exec sleep 1000", 1, "")
	before := s.settled("/a", 1)
	s.want(200, "PUT", "/v2/apps/a", `{"instances":2}`)
	after := s.settled("/a", 2)
	if before.str("app.version") == after.str("app.version") ||
		before.str("app.versionInfo.lastConfigChangeAt") != after.str("app.versionInfo.lastConfigChangeAt") {
		t.Errorf("before %v, after %v", before.at("app.versionInfo"), after.at("app.versionInfo"))
	}
	if old := running(before)[0]["id"]; running(after)[0]["id"] != old {
		t.Error("the old task was touched by a scaling")
	}
	if v := s.get("/v2/apps/a/versions"); len(v.list("versions")) != 2 {
		t.Errorf("versions: %s", v.body)
	}
}

func TestAChangeOfALabelRestarts(t *testing.T) {
	s := start(t, quick())
	s.createCmd("/a", "exec sleep 1000", 2, "")
	before := s.settled("/a", 2)
	st := s.listen(s.leader(), "?event_type=deployment_info")
	s.want(200, "PATCH", "/v2/apps/a", `{"labels":{"x":"y"}}`)
	s.renewed("/a", before)
	eventually(t, "the deployment says what it does", func() bool {
		return len(st.of("deployment_info")) == 1 && at(st.of("deployment_info")[0], "currentStep.actions.0.action") == "RestartApplication"
	})
}

func TestAChangeThatChangesNothingSucceedsAtOnce(t *testing.T) {
	cfg := quick()
	cfg.LaunchDelay = marathonsim.Range{Min: time.Hour, Max: time.Hour}
	s := start(t, cfg)
	st := s.listen(s.leader(), "?event_type=deployment_success")
	s.createCmd("/a", "sleep 1000", 0, "")
	s.settled("/a", 0)
	first := s.want(200, "PATCH", "/v2/apps/a", `{"instances":1}`)
	// The same again, while the first is still at work: no lock, no wait.
	second := s.want(200, "PUT", "/v2/apps/a", `{"instances":1}`)
	if first.str("deploymentId") == second.str("deploymentId") {
		t.Error("both have the same deployment")
	}
	eventually(t, "the second one succeeds, with no steps", func() bool {
		for _, e := range st.of("deployment_success") {
			if e["id"] == second.str("deploymentId") {
				steps, ok := at(e, "plan.steps").([]any)
				return ok && len(steps) == 0
			}
		}
		return false
	})
	if list := s.get("/v2/deployments"); len(list.list("")) != 1 || list.str("0.id") != first.str("deploymentId") {
		t.Errorf("the first is gone: %s", list.body)
	}
}

func TestSeveralAppsAreOneDeploymentInTheOrderOfTheirDependencies(t *testing.T) {
	s := start(t, quick())
	s.createCmd("/a", "exec sleep 1000", 0, `"dependencies":["/b"]`)
	s.createCmd("/b", "exec sleep 1000", 0, "")
	s.settled("/b", 0)
	s.settled("/a", 0)
	st := s.listen(s.leader(), "?event_type=deployment_step_success")
	s.want(200, "PUT", "/v2/apps", `[{"id":"/a","instances":1},{"id":"/b","instances":1}]`)
	s.settled("/a", 1)
	eventually(t, "two steps, /b first", func() bool {
		return len(st.of("deployment_step_success")) == 2
	})
	e := st.of("deployment_step_success")[0]
	if at(e, "plan.steps.0.actions.0.app") != "/b" || at(e, "plan.steps.1.actions.0.app") != "/a" {
		t.Errorf("the plan: %v", e)
	}
	if a := s.call("PATCH", "/v2/apps", `[{"id":"/a","instances":0},{"id":"/none","instances":1}]`); a.status != 404 {
		t.Errorf("a list with a missing app: %d", a.status)
	}
	s.settled("/a", 1)
}

func TestDeletingAnAppStopsIt(t *testing.T) {
	s := start(t, quick())
	s.create("/a", 1, "")
	address := endpoint(running(s.settled("/a", 1))[0])
	st := s.listen(s.leader(), "?event_type=app_terminated_event")
	s.want(200, "DELETE", "/v2/apps/a", "")
	if a := s.get("/v2/apps/a"); a.status != 404 {
		t.Errorf("it is still there: %d", a.status)
	}
	eventually(t, "the app is stopped, and that is said", func() bool {
		return refuses(address) && len(st.of("app_terminated_event")) == 1
	})
}

func TestATaskLearnsWhatItIs(t *testing.T) {
	s := start(t, quick())
	out := t.TempDir() + "/env"
	s.createCmd("/prod/web", "env > "+out+".new; mv "+out+".new "+out+"; exec sleep 1000", 1,
		`"env":{"MODE":"fast"},"labels":{"A_B":"c"},"portDefinitions":[{"port":0,"name":"http"},{"port":0,"name":"admin"}]`)
	task := running(s.settled("/prod/web", 1))[0]
	var env []byte
	eventually(t, "the task has written its environment", func() bool {
		env, _ = os.ReadFile(out)
		return env != nil
	})
	ports := []any{at(task, "ports.0"), at(task, "ports.1")}
	for _, want := range []string{
		"HOST=" + task["host"].(string), fmt.Sprintf("PORT=%v", ports[0]), fmt.Sprintf("PORT0=%v", ports[0]),
		fmt.Sprintf("PORT1=%v", ports[1]), fmt.Sprintf("PORT_ADMIN=%v", ports[1]), fmt.Sprintf("PORTS=%v,%v", ports[0], ports[1]),
		"MODE=fast", "MARATHON_APP_ID=/prod/web", "MARATHON_APP_LABELS=A_B", "MARATHON_APP_LABEL_A_B=c",
		"MARATHON_APP_RESOURCE_CPUS=0.1", "MESOS_TASK_ID=" + task["id"].(string),
	} {
		if !strings.Contains("\n"+string(env), "\n"+want+"\n") {
			t.Errorf("%s is not in the environment", want)
		}
	}
}

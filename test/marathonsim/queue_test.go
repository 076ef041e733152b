package marathonsim_test

import (
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/marathonsim"
)

func TestACrashingAppIsLaunchedMoreAndMoreSlowly(t *testing.T) {
	cfg := quick()
	cfg.Speed = 10
	s := start(t, cfg)
	gate := t.TempDir() + "/broken"
	touch(t, gate)
	s.createCmd("/a", "exec "+appBinary+" -exit-while "+gate, 1, `"backoffSeconds":4,"backoffFactor":3,"maxLaunchDelaySeconds":600`)
	var q answer
	eventually(t, "the app is in back-off", func() bool {
		q = s.get("/v2/queue")
		return q.at("queue.0.delay.overdue") == false
	})
	if q.str("queue.0.app.id") != "/a" || q.num("queue.0.count") != 1 || q.num("queue.0.delay.timeLeftSeconds") < 1 || q.str("queue.0.since") == "" {
		t.Errorf("the queue: %s", q.body)
	}
	// What has ended stays to be seen, with nothing by which it could be reached.
	var a answer
	eventually(t, "the ended task is in the list", func() bool {
		a = s.get("/v2/apps/a")
		return a.str("app.tasks.0.state") == "TASK_FAILED"
	})
	task := a.at("app.tasks.0").(map[string]any)
	if ports, ok := task["ports"].([]any); !ok || len(ports) != 0 {
		t.Errorf("ports of an ended task: %v", task["ports"])
	}
	for _, name := range []string{"startedAt", "stagedAt", "version"} {
		if _, ok := task[name]; ok {
			t.Errorf("an ended task has %s", name)
		}
	}
	if m := a.str("app.lastTaskFailure.message"); m != "Command exited with status 3" || a.str("app.lastTaskFailure.state") != "TASK_FAILED" {
		t.Errorf("lastTaskFailure: %v", a.at("app.lastTaskFailure"))
	}
	eventually(t, "the delay has grown by the factor", func() bool {
		return s.get("/v2/queue").num("queue.0.delay.timeLeftSeconds") > 6
	})

	// Scaling to nothing and back does not help, and at nothing there is
	// nothing to reset.
	s.want(200, "PATCH", "/v2/apps/a?force=true", `{"instances":0}`)
	s.settled("/a", 0)
	s.want(404, "DELETE", "/v2/queue/a/delay", "")
	s.want(200, "PATCH", "/v2/apps/a", `{"instances":1}`)
	eventually(t, "the app is in the queue again", func() bool { return s.get("/v2/queue").num("queue.0.count") == 1 })
	if q := s.get("/v2/queue"); q.at("queue.0.delay.overdue") != false {
		t.Errorf("scaling has reset the delay: %s", q.body)
	}
	remove(t, gate)
	s.want(204, "DELETE", "/v2/queue/a/delay", "")
	s.settled("/a", 1)
}

func TestAnExitWithZeroIsNoBetter(t *testing.T) {
	s := start(t, quick())
	s.createCmd("/a", "exit 0", 1, `"backoffSeconds":60`)
	eventually(t, "the app is in back-off", func() bool {
		return s.get("/v2/queue").num("queue.0.delay.timeLeftSeconds") > 50
	})
	a := s.get("/v2/apps/a")
	if a.at("app.lastTaskFailure") != nil {
		t.Errorf("an exit with 0 is a failure: %s", a.body)
	}
	s.want(200, "PATCH", "/v2/apps/a?force=true", `{"cmd":"exec sleep 1000"}`)
	s.settled("/a", 1) // a change of configuration has its own back-off
}

func TestStarvationIsToldByReason(t *testing.T) {
	s := start(t, quick())
	for _, c := range []struct{ id, extra, reason string }{
		{"/cpus", `"constraints":[]`, "InsufficientCpus"},
		{"/place", `"constraints":[["rack","CLUSTER","r7"]]`, "UnfulfilledConstraint"},
		{"/ports", `"requirePorts":true,"portDefinitions":[{"port":80}]`, "InsufficientPorts"},
	} {
		cpus := "0.1"
		if c.id == "/cpus" {
			cpus = "64"
		}
		s.want(201, "POST", "/v2/apps", `{"id":"`+c.id+`","cmd":"true","cpus":`+cpus+`,`+c.extra+`}`)
		eventually(t, c.id+" is declined for "+c.reason, func() bool {
			q := s.get("/v2/queue")
			for _, item := range q.list("queue") {
				if at(item, "app.id") != c.id {
					continue
				}
				rows := at(item, "processedOffersSummary.rejectSummaryLastOffers").([]any)
				if len(rows) != 10 || at(item, "delay.overdue") != true {
					t.Fatalf("the summary: %v", item)
				}
				for _, row := range rows {
					if n, _ := at(row, "declined").(float64); n > 0 {
						return at(row, "reason") == c.reason
					}
				}
			}
			return false
		})
		if a := s.get("/v2/apps" + c.id); len(a.list("app.tasks")) != 0 || a.num("app.tasksStaged") != 0 {
			t.Errorf("what only waits is in a list: %s", a.body)
		}
	}
	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultStarved, Resource: "mem"})
	s.createCmd("/mem", "true", 1, "")
	eventually(t, "/mem is declined", func() bool {
		return strings.Contains(s.get("/v2/queue").body, `{"reason":"InsufficientMemory","declined":2,"processed":2}`)
	})
}

func TestOffersComeOnlySoOften(t *testing.T) {
	cfg := quick()
	cfg.ReviveInterval = 400 * time.Millisecond
	s := start(t, cfg)
	s.createCmd("/a", "exec sleep 1000", 1, "")
	s.settled("/a", 1)
	began := time.Now()
	s.createCmd("/b", "exec sleep 1000", 1, "")
	s.settled("/b", 1)
	s.createCmd("/c", "exec sleep 1000", 1, "")
	s.settled("/c", 1)
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Errorf("two launches took %s only", took)
	}
}

func TestPortsComeBackToOtherApps(t *testing.T) {
	cfg := quick()
	cfg.Agents, cfg.Ports = 1, 3
	s := start(t, cfg)
	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultPortsReused})
	s.create("/a", 1, "")
	address := endpoint(running(s.settled("/a", 1))[0])
	s.want(200, "PATCH", "/v2/apps/a", `{"instances":0}`)
	s.settled("/a", 0)
	s.create("/b", 1, "")
	if got := endpoint(running(s.settled("/b", 1))[0]); got != address {
		t.Errorf("the port that was given back is %s, the next one given out %s", address, got)
	}
	serves(t, address)
}

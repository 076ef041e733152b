package marathonsim_test

import (
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/marathonsim"
)

func TestAnyNodeTakesAnyCall(t *testing.T) {
	s := start(t, quick())
	lead := s.leader()
	standby := (lead + 1) % 3
	a, err := s.try(standby, "POST", "/v2/apps", `{"id":"/a","cmd":"true","instances":0}`)
	if err != nil || a.status != 201 {
		t.Fatalf("%v %d %s", err, a.status, a.body)
	}
	own := strings.TrimPrefix(s.URLs()[standby], "http://")
	if a.header.Get("X-Marathon-Via") != "1.1 "+own || a.header.Get("X-Marathon-Leader") != s.URLs()[lead] {
		t.Errorf("headers: %v", a.header)
	}
	if a.header.Get("Location") != "/a" || a.header.Get("Marathon-Deployment-Id") != a.str("deployments.0.id") {
		t.Errorf("headers: %v", a.header)
	}
	if loop, _ := s.try(standby, "GET", "/v2/apps", "", "X-Marathon-Via", "1.1 "+own); loop.status != 502 || !strings.Contains(loop.body, "Detected proxying loop.") {
		t.Errorf("a circle: %d %s", loop.status, loop.body)
	}
}

func TestTasksSurviveTheirLeader(t *testing.T) {
	cfg := quick()
	cfg.Speed = 10
	cfg.ElectionGap = marathonsim.Range{Min: 5 * time.Second, Max: 5 * time.Second}
	cfg.NodeRestart = 10 * time.Second
	s := start(t, cfg)
	s.createCmd("/crash", "exit 1", 1, `"backoffSeconds":300`)
	s.create("/a", 2, `"healthChecks":[{"protocol":"MESOS_TCP","delaySeconds":5,"intervalSeconds":100}]`)
	before := running(s.settled("/a", 2))
	eventually(t, "/crash is in back-off", func() bool { return s.get("/v2/queue").num("queue.0.delay.timeLeftSeconds") > 100 })
	lead := s.leader()
	standby := (lead + 1) % 3
	st := s.listen(lead, "")
	if _, _, err := s.Lock("/a"); err != nil {
		t.Fatal(err)
	}
	gone, err := s.try(lead, "DELETE", "/v2/leader", "")
	if err != nil || gone.body != `{"message":"Leadership abdicated"}` {
		t.Fatalf("%v %s", err, gone.body)
	}
	eventually(t, "the stream ends", st.isEnded)
	if _, err := s.try(lead, "GET", "/ping", ""); err == nil {
		t.Error("the old leader answers")
	}
	if a, err := s.try(standby, "GET", "/v2/apps", ""); err != nil || a.status != 502 || !strings.Contains(a.body, "Could not determine the current leader") {
		t.Errorf("a standby without a leader: %v %d %s", err, a.status, a.body)
	}
	var a answer
	eventually(t, "another node leads", func() bool {
		a, err = s.try(standby, "GET", "/v2/apps/a", "")
		return err == nil && a.status == 200
	})
	if s.leader() == lead {
		t.Error("the same node leads")
	}
	after := running(a)
	if len(after) != 2 || after[0]["id"] != before[0]["id"] || after[1]["id"] != before[1]["id"] {
		t.Errorf("before %v, after %v", before, after)
	}
	if results := at(after[0], "healthCheckResults").([]any); len(results) != 0 {
		t.Errorf("health survives: %v", results)
	}
	if len(a.list("app.deployments")) != 1 {
		t.Error("the deployment is lost")
	}
	eventually(t, "back-off is forgotten, and /crash launched again", func() bool {
		a, err := s.try(standby, "GET", "/v2/apps/crash", "")
		return err == nil && strings.HasSuffix(a.str("app.tasks.0.id"), "._app.2")
	})
	eventually(t, "the old leader is back, as a standby", func() bool {
		a, err := s.try(lead, "GET", "/v2/apps", "")
		return err == nil && a.status == 200 && a.header.Get("X-Marathon-Via") != ""
	})
}

func TestWhatHappensWithoutALeaderIsToldToTheNext(t *testing.T) {
	cfg := quick()
	cfg.ElectionGap = marathonsim.Range{Min: time.Hour, Max: time.Hour}
	s := start(t, cfg)
	s.createCmd("/a", "exec sleep 1000", 1, "")
	before := running(s.settled("/a", 1))[0]["id"].(string)
	s.Abdicate()
	if !s.KillTask(before) {
		t.Fatal("there is no such task")
	}
	eventually(t, "the process is gone", func() bool { return len(s.Tasks()) == 0 })
	s.Advance(time.Hour)
	eventually(t, "the next incarnation runs", func() bool {
		a, err := s.try((s.leader()+1)%3, "GET", "/v2/apps/a", "")
		return err == nil && len(running(a)) == 1 && running(a)[0]["id"] == strings.TrimSuffix(before, "1")+"2"
	})
}

func TestNodesThatAreDownRefuse(t *testing.T) {
	s := start(t, quick())
	for n := range 3 {
		s.CrashNode(n)
	}
	for n := range 3 {
		if _, err := s.try(n, "GET", "/ping", ""); err == nil {
			t.Errorf("node %d answers", n)
		}
	}
	s.StartNode(1)
	eventually(t, "the only node leads", func() bool {
		a, err := s.try(1, "GET", "/v2/leader", "")
		return err == nil && a.status == 200 && "http://"+a.str("leader") == s.URLs()[1]
	})
}

func TestANodeThatWasCrashedStaysAwayUntilItIsStarted(t *testing.T) {
	s := start(t, quick())
	lead := s.leader()
	s.Abdicate() // it would come back by itself
	s.CrashNode(lead)
	s.Advance(time.Hour)
	eventually(t, "another node leads", func() bool { return s.Leader() >= 0 })
	s.Advance(time.Hour)
	if err := s.CreateApp(`{"id":"/a","cmd":"exec sleep 1000","instances":1}`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "work goes on", func() bool { return len(s.Tasks()) == 1 })
	if _, err := s.try(lead, "GET", "/ping", ""); err == nil {
		t.Error("it is back unasked")
	}
	s.StartNode(lead)
	eventually(t, "it is back", func() bool {
		_, err := s.try(lead, "GET", "/ping", "")
		return err == nil
	})
}

func TestFaultsOfTheAPI(t *testing.T) {
	s := start(t, quick())
	s.createCmd("/a", "exec sleep 1000", 0, "")
	s.settled("/a", 0)
	lead := s.leader()

	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultReset, Method: "PATCH", Times: 1})
	if a, err := s.try(lead, "PATCH", "/v2/apps/a", `{"instances":1}`); err == nil {
		t.Errorf("no reset: %d", a.status)
	}
	s.settled("/a", 1) // it was carried out

	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultStatus, Status: 503, Node: lead + 1, Times: 1})
	if a, _ := s.try(lead, "GET", "/v2/apps", ""); a.status != 503 {
		t.Errorf("status %d", a.status)
	}
	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultTruncate, Times: 1})
	if a, err := s.try(lead, "GET", "/v2/apps", ""); err == nil {
		t.Errorf("the whole answer: %s", a.body)
	}
	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultSlowBody, Delay: 20 * time.Millisecond, Times: 1})
	began := time.Now()
	if a, err := s.try(lead, "GET", "/v2/apps", ""); err != nil || a.str("apps.0.id") != "/a" || time.Since(began) < 150*time.Millisecond {
		t.Errorf("a slow body: %v after %s: %s", err, time.Since(began), a.body)
	}
}

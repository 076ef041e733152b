package marathonsim_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/marathonsim"
)

// Everything at once, and then peace: what Marathon says, what the agents
// say and what the operating system says must be the same in the end.
func TestAfterAnyChaosTheBooksAgree(t *testing.T) {
	cfg := quick()
	cfg.Speed = 20
	cfg.Agents, cfg.Ports = 3, 8
	s := start(t, cfg)
	for n := range 3 {
		s.create(fmt.Sprintf("/app%d", n), 1, `"backoffSeconds":0.1,"maxLaunchDelaySeconds":1,"taskKillGracePeriodSeconds":4`)
	}
	stop := s.Chaos(map[string]time.Duration{
		marathonsim.ChaosTaskDies: 3 * time.Second, marathonsim.ChaosPartition: 10 * time.Second,
		marathonsim.ChaosAgentLost: 15 * time.Second, marathonsim.ChaosAbdicate: 20 * time.Second,
		marathonsim.ChaosStandbyDown: 10 * time.Second, marathonsim.ChaosStreamsDropped: 10 * time.Second,
		marathonsim.ChaosStreamsSilent: 10 * time.Second, marathonsim.ChaosForeignLock: 5 * time.Second,
		marathonsim.ChaosOperatorScale: 2 * time.Second, marathonsim.ChaosOperatorUpgrade: 8 * time.Second,
		marathonsim.ChaosNoOffers: 15 * time.Second,
	})
	for _, f := range []marathonsim.Fault{
		{Kind: marathonsim.FaultReset, Rate: 0.05},
		{Kind: marathonsim.FaultStatus, Status: 503, Rate: 0.05},
		{Kind: marathonsim.FaultTruncate, Rate: 0.05},
		{Kind: marathonsim.FaultStale, Rate: 0.1},
		{Kind: marathonsim.FaultKillLost, Rate: 0.1},
		{Kind: marathonsim.FaultCrash, Rate: 0.1},
		{Kind: marathonsim.FaultExitZero, Rate: 0.05},
		{Kind: marathonsim.FaultIgnoreTerm, Rate: 0.1},
		{Kind: marathonsim.FaultEventLost, Rate: 0.1},
		{Kind: marathonsim.FaultEventLate, Rate: 0.1},
	} {
		s.Inject(f)
	}
	end := s.Now().Add(60 * time.Second)
	for n := 0; s.Now().Before(end); n++ {
		app := fmt.Sprintf("/v2/apps/app%d?force=%v", n%3, n%2 == 0)
		if a, err := s.try(n%len(s.URLs()), "PATCH", app, fmt.Sprintf(`{"instances":%d}`, n%4)); err == nil && a.status >= 500 && a.status < 502 {
			t.Errorf("a failure of the simulator's own: %d %s", a.status, a.body)
		}
	}
	stop()
	s.ClearFaults()
	s.Advance(30 * time.Second) // everything that was taken away is given back

	agree := func() bool {
		running := map[string]string{}
		for n := range 3 {
			a, err := s.try(n, "GET", fmt.Sprintf("/v2/apps/app%d", n), "")
			if err != nil || a.status != http.StatusOK || len(a.list("app.deployments")) != 0 || a.num("app.tasksRunning") != a.num("app.instances") {
				return false
			}
			for _, x := range a.list("app.tasks") {
				if at(x, "state") == "TASK_RUNNING" {
					running[at(x, "id").(string)] = endpoint(x.(map[string]any))
				}
			}
		}
		books := s.Tasks()
		if len(books) != len(running) {
			return false
		}
		for _, r := range books {
			if running[r.ID] == "" || r.PID == 0 || !strings.HasSuffix(running[r.ID], fmt.Sprintf(":%d", r.Ports[0])) {
				return false
			}
		}
		return true
	}
	for range 60 {
		if agree() {
			return
		}
		s.Advance(10 * time.Second)
		deadline := time.Now().Add(150 * time.Millisecond)
		for !agree() && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
	}
	t.Errorf("the books do not agree: %+v", s.Tasks())
	for n := range 3 {
		a, err := s.try(n, "GET", fmt.Sprintf("/v2/apps/app%d", n), "")
		t.Logf("%v %s", err, a.body)
	}
}

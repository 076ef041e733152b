package marathonsim_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/marathonsim"
)

// Marathon normalises the id in the path: with its leading slash or without.
func TestTheDelayOfAnAppIsResetUnderAnySpellingOfItsID(t *testing.T) {
	for _, path := range []string{"/v2/queue/t/app/delay", "/v2/queue//t/app/delay", "/v2/queue/%2Ft%2Fapp/delay"} {
		t.Run(path, func(t *testing.T) {
			s := start(t, quick())
			s.createCmd("/t/app", "exit 1", 1, `"backoffSeconds":60`)
			eventually(t, "the app is in back-off", func() bool {
				return s.get("/v2/queue").num("queue.0.delay.timeLeftSeconds") > 50
			})
			s.want(204, "DELETE", path, "")
		})
	}
}

// An instance that was launched and of which Mesos has said nothing is shown as
// TASK_STAGING, but is Provisioned: Marathon has no weight for that, and stops
// one that runs.
func TestAnInstanceThatIsOnlyProvisionedOutlivesOneThatRuns(t *testing.T) {
	for _, selection := range []string{"OLDEST_FIRST", "YOUNGEST_FIRST"} {
		t.Run(selection, func(t *testing.T) {
			s := start(t, quick())
			s.create("/a", 2, fmt.Sprintf(`"killSelection":%q`, selection))
			before := map[string]bool{}
			for _, task := range running(s.settled("/a", 2)) {
				before[task["id"].(string)] = true
			}
			s.Inject(marathonsim.Fault{Kind: marathonsim.FaultLaunchDelay, App: "/a", Delay: 2 * time.Second})
			s.want(200, "PATCH", "/v2/apps/a", `{"instances":3}`)
			eventually(t, "the third is shown as staging", func() bool {
				for _, x := range s.get("/v2/apps/a").list("app.tasks") {
					if task := x.(map[string]any); task["state"] == "TASK_STAGING" {
						return true
					}
				}
				return false
			})
			s.want(200, "PATCH", "/v2/apps/a?force=true", `{"instances":2}`)
			left := 0
			for _, task := range running(s.settled("/a", 2)) {
				if before[task["id"].(string)] {
					left++
				}
			}
			if left != 1 {
				t.Errorf("%s: %d of the two that ran are left, want 1", selection, left)
			}
		})
	}
}

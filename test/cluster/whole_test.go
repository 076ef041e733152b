//go:build linux

package cluster

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

// shownService is what the admin API says of the service web.
type shownService struct {
	State     string `json:"state"`
	Target    int    `json:"target"`
	Waiting   int    `json:"waiting"`
	Instances struct {
		Ready int `json:"ready"`
	} `json:"instances"`
	Slots struct {
		Total int `json:"total"`
		InUse int `json:"in_use"`
	} `json:"slots"`
	InstanceList []struct {
		ID    string `json:"id"`
		Slots int    `json:"slots"`
		InUse int    `json:"in_use"`
	} `json:"instance_list"`
	Why     string   `json:"why"`
	Without []string `json:"without"`
}

func shown(t *testing.T, c *harness.Caddy) (s shownService) {
	t.Helper()
	if err := json.Unmarshal([]byte(c.Admin("GET", "/usher/services/web", "").Body), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// All members show the whole: requests inside and waiting at any of them, the
// leader's target and decisions, and where the requests of all are.
func TestEachMemberShowsTheWhole(t *testing.T) {
	w := newTown(t, 3, short, "instances 1 1", "concurrency 2", "scale queue")
	w.start()
	wantAllOK(t, w.each("/"))
	var waits []*harness.Pending
	for _, c := range w.caddys {
		waits = append(waits, c.Send(harness.Request{Path: "/sleep?d=4s"}))
	}
	for k, c := range w.caddys {
		harness.Eventually(t, soon, func() bool {
			s := shown(t, c)
			return s.State == "awake" && s.Target == 1 && s.Instances.Ready == 1 && s.Waiting == 1 && s.Slots.InUse == 2 && s.Slots.Total == 2 &&
				len(s.InstanceList) == 1 && s.InstanceList[0].InUse == 2 && s.InstanceList[0].Slots == 2 && s.Why != "" && len(s.Without) == 0
		}, "%d shows the whole", k)
		if out, _ := c.Run("usher", "list", "--address", c.AdminAddr); !strings.Contains(out, "awake") {
			t.Errorf("%d lists\n%s", k, out)
		}
	}
	for _, p := range waits {
		wantAllOK(t, []harness.Response{p.Wait(t, soon)})
	}
}

// What an operator asks of any member is done, and shown by all.
func TestAnOperatorMayAskAnyMember(t *testing.T) {
	w := newTown(t, 3, short, "instances 0 2", "concurrency 2", "scale queue")
	w.start()
	w.awaitAll(w.everyone()...) // decisions are told to those that are there
	k := w.leader()
	a, b := w.caddys[(k+1)%3], w.caddys[(k+2)%3]
	a.Post("web/wake", "")
	for _, c := range w.caddys {
		c.AwaitState("web", "awake", soon)
	}
	harness.Eventually(t, soon, func() bool {
		out, _ := b.Run("usher", "explain", "web", "--address", b.AdminAddr)
		return strings.Contains(out, "an operator")
	}, "a member explains what the leader has decided")
	id := shown(t, a).InstanceList[0].ID
	if r := b.Admin("DELETE", "/usher/services/web/instances/nothing", ""); r.Status != 404 {
		t.Errorf("an instance that does not exist: %d: %s", r.Status, r.Body)
	}
	if r := b.Admin("DELETE", "/usher/services/web/instances/"+id, ""); r.Status != 200 {
		t.Errorf("%d: %s", r.Status, r.Body)
	}
	harness.Eventually(t, soon, func() bool { return !strings.Contains(a.Admin("GET", "/usher/services/web", "").Body, id) }, "it is gone")
	wantAllOK(t, w.each("/"))
	b.Post("web/sleep", "")
	for _, c := range w.caddys {
		c.AwaitState("web", "asleep", soon)
	}
}

// A Caddy that was never in its cluster sends nothing, and says why.
func TestACaddyWithoutItsClusterSaysWhyRequestsWaitInVain(t *testing.T) {
	w := newTown(t, 1, short, "instances 1 1", "wait_timeout 1s")
	w.etcd.Stop()
	w.start()
	if r := w.caddys[0].Get("/"); r.UsherError() != "wait_timeout" || !strings.Contains(r.Body, "cut off from its cluster") {
		t.Errorf("status %d (%s): %s", r.Status, r.UsherError(), r.Body)
	}
	w.etcd.Start()
	harness.Eventually(t, soon, func() bool { return w.caddys[0].Get("/").Status == 200 }, "it serves once it has its cluster")
}

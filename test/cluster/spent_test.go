//go:build linux

package cluster

import (
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

// A member has sent an instance all the requests of its life: the leader, which
// does not count them, replaces it.
func TestAnInstanceThatIsSpentAtAMemberIsReplaced(t *testing.T) {
	w := newTown(t, 2, short, "instances 1 1", "concurrency 2", "scale queue", "max_requests 5")
	w.start()
	wantAllOK(t, w.each("/"))
	c := w.caddys[1-w.leader()]
	for range 12 {
		wantAllOK(t, []harness.Response{c.Get("/")})
	}
	if n := c.Service("web").Instances.Ready; n > 1 {
		t.Errorf("%d instances are ready", n)
	}
	if n := w.caddys[0].Journal().Starts(); n < 3 {
		t.Errorf("%d instances were started for 14 requests", n)
	}
}

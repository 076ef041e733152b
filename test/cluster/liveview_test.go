//go:build linux

package cluster

import (
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/browser"
	"github.com/caddy-usher/usher/test/harness"
)

// The live view of a member shows the whole: the Caddys, and what the leader has
// decided.
func TestTheLiveViewOfAMemberShowsTheWhole(t *testing.T) {
	w := newTown(t, 2, short, "instances 0 1", "concurrency 2", "scale queue")
	b := browser.New(t)
	for k, c := range w.caddys {
		cfg := w.config(k)
		cfg.Site = "handle /status* {\n\tusher_status\n}\nhandle {\n" + cfg.Site[strings.Index(cfg.Site, "usher web"):] + "\n}"
		w.doors[k].unlock(t)
		c.Start(cfg)
	}
	k := w.leader()
	leader, member := w.caddys[k], w.caddys[1-k]
	p := b.Open(browser.Desk)
	p.Go("http://" + member.Addr + "/status")
	p.Await(soon, `document.querySelector("#cluster").innerText.startsWith("2 Caddys together")`)
	p.Await(soon, `document.querySelector("#cluster").innerText.includes("`+w.peers[k]+` (leads)")`)
	inside := leader.Send(harness.Request{Path: "/sleep?d=3s"})
	p.Await(soon, `document.querySelector("[data-name=web]").dataset.state == "awake"`)
	p.Await(soon, `document.querySelector("#inside").innerText == "1"`)
	p.Await(soon, `document.querySelector("#news").innerText.includes("0 → 1")`)
	wantAllOK(t, []harness.Response{inside.Wait(t, soon)})
	p.WantNoComplaints()
}

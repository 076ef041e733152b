package e2ebrowser

import (
	"net/http"
	"testing"

	"github.com/caddy-usher/usher/test/browser"
	"github.com/caddy-usher/usher/test/harness"
)

func TestLiveViewShowsStoredRequestsAndOperatesDeadLetters(t *testing.T) {
	c, b := start(t)
	c.Start(viewed(c, 1, "control on", "concurrency 1", "async {\nattempts 1\n}"))
	later := func(path string) {
		t.Helper()
		r := c.Do(harness.Request{Method: "POST", Path: path, Header: http.Header{"Prefer": {"respond-async"}}})
		if r.Status != http.StatusAccepted {
			t.Fatalf("status %d: %s", r.Status, r.Body)
		}
	}
	p := b.Open(browser.Desk)
	open(c, p)
	told := func(words string) {
		t.Helper()
		p.Await(soon, row(`web.querySelector(".tasks").innerText.includes(`+quoted(words)+`)`))
	}
	p.Await(soon, row(`web.querySelector(".tasks").hidden`))

	later("/early?code=503&secret=hunter2")
	later("/early?code=503")
	told("stored requests: 2 dead letters")
	later("/hold?gate=" + c.Path("gate"))
	later("/")
	told("1 running, 1 pending, the oldest for")

	p.Click("[data-name=web] h3 button")
	p.Await(soon, row(`web.querySelectorAll(".dead li").length == 2`))
	p.Await(soon, row(`[...web.querySelectorAll(".dead li")].every(e => ["POST /early", "after 1 attempt", "503"].every(w => e.innerText.includes(w)))`))
	if browser.Must[bool](p, `document.body.innerText.includes("hunter2")`) {
		t.Error("what stood in a query is shown")
	}
	c.Open("gate")
	told("2 done, 2 dead letters")
	p.Click("[data-name=web] .dead li:first-child button[aria-label^=Remove]")
	p.Await(soon, row(`web.querySelectorAll(".dead li").length == 1`))
	told("2 done, 1 dead letter")
	p.Click("[data-name=web] .dead li:first-child button[aria-label^=Retry]")
	p.Await(soon, row(`web.querySelector(".dead li")?.innerText.includes("after 2 attempts")`))
	logged := 0
	for _, e := range c.Log() {
		if e.Msg == "asked for in the live view" && e.Fields["task"] != nil {
			logged++
		}
	}
	if logged != 2 {
		t.Errorf("%d of 2 operations are in the log", logged)
	}
	clean(t, c, p)
}

// Buttons, and what they ask for, need control on.
func TestLiveViewOperatesNoTaskWithoutControl(t *testing.T) {
	c, b := start(t)
	c.Start(viewed(c, 0, "", "async {\nattempts 1\n}"))
	r := c.Do(harness.Request{Method: "POST", Path: "/early?code=503", Header: http.Header{"Prefer": {"respond-async"}}})
	if r.Status != http.StatusAccepted {
		t.Fatalf("status %d: %s", r.Status, r.Body)
	}
	p := b.Open(browser.Desk)
	open(c, p)
	p.Click("[data-name=web] h3 button")
	p.Await(soon, row(`web.querySelectorAll(".dead li").length == 1`))
	if browser.Must[int](p, `document.querySelectorAll(".dead button").length`) != 0 {
		t.Error("there are buttons that do something, without control on")
	}
	id := browser.Must[string](p, `document.querySelector(".dead code").textContent`)
	for _, do := range []string{"retry", "purge"} {
		res := c.Do(harness.Request{Method: "POST", Path: "/status?task=" + id + "&do=" + do, Header: http.Header{"Content-Type": {"application/json"}}})
		if res.Status != http.StatusForbidden {
			t.Errorf("%s: status %d: %s", do, res.Status, res.Body)
		}
	}
	clean(t, c, p)
}

package e2ebrowser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/browser"
	"github.com/caddy-usher/usher/test/harness"
)

// viewed is a configuration with a live view at /status, the service web, and
// others that get no requests.
func viewed(c *harness.Caddy, others int, view string, options ...string) harness.Config {
	var usher strings.Builder
	for k := range others {
		fmt.Fprintf(&usher, "service s%03d {\n%s\n}\n", k, c.Backend())
	}
	return harness.Config{
		Usher: usher.String(),
		Site: "handle /status* {\n\tusher_status {\n" + view + "\n}\n}\nhandle {\n" +
			harness.Usher("web", append([]string{c.Backend()}, options...)...) + "\n}",
	}
}

// open opens the live view and waits until it is live.
func open(c *harness.Caddy, p *browser.Page) {
	p.Go(origin(c) + "/status")
	p.Await(soon, `document.querySelector("#link").textContent == "live"`)
}

// row is a condition on the row of web.
func row(condition string) string {
	return `(() => { const web = document.querySelector('[data-name=web]'); return ` + condition + ` })()`
}

func TestLiveViewShowsAWakeABurstAndTheWayBackToZeroAmong500(t *testing.T) {
	c, b := start(t)
	c.Start(viewed(c, 499, "", "instances 0 4", "concurrency 5", "idle_timeout 1s", "scale queue {\ndown_window 200ms\n}"))
	p := b.Open(browser.Desk)
	open(c, p)
	p.Await(soon, `document.querySelectorAll(".service").length == 500`)
	p.Await(soon, row(`web.dataset.state == "asleep" && web.querySelector(".seats").hidden`))

	// What has not changed is not drawn: that is how it stays smooth.
	browser.Must[bool](p, `(() => {
		window.touched = new Set(), window.longest = 0
		new MutationObserver(all => all.forEach(m => touched.add(m.target.parentElement?.closest(".service")?.dataset.name ?? m.target.closest?.(".service")?.dataset.name)))
			.observe(document.querySelector("#services"), {subtree: true, childList: true, characterData: true, attributes: true})
		new PerformanceObserver(l => l.getEntries().forEach(e => { longest = Math.max(longest, e.duration) })).observe({type: "longtask"})
		return true
	})()`)

	gate := "/hold?gate=" + c.Path("gate")
	first := c.Send(harness.Request{Path: gate})
	p.Await(soon, row(`web.dataset.state == "awake" && web.querySelector("[data-is=ready]").title.includes("1 of 5 slots in use")`))
	p.Await(soon, row(`web.querySelector(".cold").textContent.includes("cold start")`))

	var burst []*harness.Pending
	for range 29 {
		burst = append(burst, c.Send(harness.Request{Path: gate}))
	}
	p.Await(soon, row(`web.querySelectorAll("[data-is=ready]").length == 4 && web.querySelector(".much").textContent == "20 of 20 slots"`))
	p.Await(soon, row(`web.querySelector(".line").textContent.includes("10 waiting")`))
	p.Await(soon, `document.querySelector("#waiting").textContent == "10" && document.querySelector("#inside").textContent == "20"`)

	c.Open("gate")
	for _, r := range append(burst, first) {
		if res := r.Wait(t, soon); res.Status != http.StatusOK {
			t.Errorf("status %d, %v", res.Status, res.Err)
		}
	}
	p.Await(soon, row(`web.dataset.state == "asleep" && web.querySelector(".target b").textContent == "0" && web.querySelector(".seats").hidden`))
	p.Await(soon, `["0 → 1", "idle for 1s", "cold start in"].every(w => document.querySelector("#news").textContent.includes(w))`)
	if drawn := browser.Must[string](p, row(`web.querySelector(".spark path:last-child").getAttribute("d")`)); !strings.HasPrefix(drawn, "M") {
		t.Errorf("no plot of the target: %q", drawn)
	}

	if touched := browser.Must[string](p, `[...touched].join(" ")`); touched != "web" {
		t.Errorf("rows were drawn anew that had not changed: %q", touched)
	}
	t.Logf("the longest task of the page, while web woke, was busy and went to sleep: %v ms", browser.Must[float64](p, `longest`))

	// Of 500 those can be found that one looks for.
	browser.Must[bool](p, `(() => { const f = document.querySelector("#filter"); f.value = "s49"; f.dispatchEvent(new Event("input")); return true })()`)
	p.Await(soon, `[...document.querySelectorAll(".service")].filter(e => !e.hidden).length == 9 && document.querySelector("#shown").textContent == "9 of 500 services"`)
	clean(t, c, p)
}

func TestLiveViewSurvivesAReloadAndTheEndOfAService(t *testing.T) {
	c, b := start(t)
	c.Start(viewed(c, 3, "title Halls"))
	p := b.Open(browser.Desk)
	open(c, p)
	p.Await(soon, `document.title == "Halls" && document.querySelectorAll(".service").length == 4`)
	c.MustReload(viewed(c, 2, "title Halls"))
	p.Await(soon, `document.querySelector("#link").textContent == "live" && document.querySelectorAll(".service").length == 3`)
	if res := c.Get("/"); res.Status != http.StatusOK {
		t.Fatalf("%+v", res)
	}
	p.Await(soon, row(`web.dataset.state == "awake"`))
	clean(t, c, p)
}

func TestLiveViewTellsWhatAPlatformSays(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: "handle_path /behind/a/prefix* {\n\tusher_status\n}\nhandle {\n" +
		harness.Usher("web", c.Backend("-exit-code", "3", "-print", `<img src=x onerror="document.title='hacked'">`)) + "\n}"})
	if res := c.Get("/"); res.Status != http.StatusServiceUnavailable {
		t.Fatalf("%+v", res)
	}
	p := b.Open(browser.Desk)
	p.Go(origin(c) + "/behind/a/prefix/")
	p.Await(soon, row(`web?.dataset.state == "failing" && web.querySelector(".trouble").textContent.includes("<img src=x")`))
	p.Await(soon, `document.title == "(1 failing) Usher" && document.querySelector("#news").textContent.includes("exit status 3")`)
	p.Click("[data-name=web] h3 button")
	p.Await(soon, row(`web.querySelector(".detail pre")?.textContent.includes("exit status 3")`))
	if browser.Must[int](p, `document.querySelectorAll("button:not([aria-pressed], [aria-expanded])").length`) != 0 {
		t.Error("there are buttons that do something, without control on")
	}
	clean(t, c, p)
}

func TestLiveViewSaysWhoHoldsThePlaceThatAStartWaitsFor(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{
		Usher: "start_limit 1",
		Site: "handle /status* {\nusher_status\n}\nhandle /hog* {\n" + harness.Usher("hog", c.Backend("-never-listen")) + "\n}\nhandle {\n" +
			harness.Usher("web", c.Backend()) + "\n}",
	})
	p := b.Open(browser.Desk)
	open(c, p)
	hog := c.Send(harness.Request{Path: "/hog"})
	c.AwaitWaiting("hog", 1)
	web := c.Send(harness.Request{Path: "/"})
	p.Await(soon, row(`web?.querySelector(".trouble").textContent.includes("The next start waits for one of 1 places to start, held by hog")`))
	if res := web.Wait(t, soon); res.Status != http.StatusOK {
		t.Errorf("%+v", res)
	}
	hog.Cancel()
	clean(t, c, p)
}

func TestLiveViewButtonsWork(t *testing.T) {
	c, b := start(t)
	c.Start(viewed(c, 2, "control on"))
	p := b.Open(browser.Desk)
	open(c, p)
	state := func(want string) {
		t.Helper()
		c.AwaitState("web", want, soon)
		p.Await(soon, row(`web.dataset.state == "`+want+`"`))
	}
	click := func(label string) { t.Helper(); p.Click(`button[aria-label="` + label + ` web"]`) }

	click("Wake")
	state("awake")
	click("Suspend")
	p.Await(soon, `document.querySelector("dialog").open && document.activeElement.id == "reason"`)
	browser.Must[bool](p, `(() => { document.activeElement.value = "moving house"; return true })()`)
	p.Click("#suspend-yes")
	state("suspended")
	shows(p, "moving house")
	if res := c.Get("/"); !strings.Contains(res.Body, "moving house") {
		t.Errorf("clients are not told: %s", res.Body)
	}
	click("Resume")
	state("asleep")
	click("Wake")
	state("awake")
	click("Sleep")
	state("asleep")
	p.WantOnlyOrigin(origin(c))
	p.WantNoComplaints()
}

func TestLiveViewButtonsAreNotForOtherSites(t *testing.T) {
	c, b := start(t)
	c.Start(viewed(c, 0, "control on"))
	target := origin(c) + "/status?service=web&do=suspend"
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<link rel="icon" href="data:,"><form id="f" method="post" enctype="text/plain" action="%s"><input name='{"reason":"' value='evil"}'></form>`, target)
	}))
	defer evil.Close()
	// Once from another site, and once from another port of the same host.
	for _, from := range []string{strings.Replace(evil.URL, "127.0.0.1", "localhost", 1), evil.URL} {
		p := b.Open(browser.Desk)
		p.Go(from)
		for _, kind := range []string{"text/plain", "application/json"} {
			_, _ = browser.Ask[bool](p, `fetch("`+target+`", {method: "POST", mode: "`+map[string]string{"text/plain": "no-cors", "application/json": "cors"}[kind]+
				`", headers: {"Content-Type": "`+kind+`"}, body: "{}"}).then(() => true, () => false)`)
		}
		browser.Must[bool](p, `(() => { document.querySelector("#f").submit(); return true })()`)
		p.Await(soon, `location.href.includes("/status") && document.body.innerText.includes("another site")`)
		asked := 0
		for _, r := range p.Requests() {
			if strings.HasPrefix(r.URL, target) && r.Method == http.MethodPost {
				asked++
				if r.Status != http.StatusForbidden && r.Status != 0 {
					t.Errorf("%s from %s is answered with %d", r.Type, from, r.Status)
				}
			}
		}
		if asked < 2 {
			t.Errorf("only %d requests were made from %s", asked, from)
		}
	}
	if s := c.Service("web"); s.State == "suspended" {
		t.Error("another site has suspended a service")
	}
}

func TestLiveViewIsBehindItsPassword(t *testing.T) {
	c, b := start(t)
	cfg := viewed(c, 1, "control on")
	hash, status := c.Run("hash-password", "--plaintext", "secret")
	if status != 0 {
		t.Fatal(hash)
	}
	cfg.Site = "basic_auth /status* {\n\tann " + strings.TrimSpace(hash) + "\n}\n" + cfg.Site
	c.Start(cfg)
	if res := c.Get("/status?format=json"); res.Status != http.StatusUnauthorized {
		t.Errorf("without the password: %d", res.Status)
	}
	p := b.Open(browser.Visitor{User: "ann", Password: "secret"})
	open(c, p)
	p.Click(`button[aria-label="Wake web"]`)
	p.Await(soon, row(`web.dataset.state == "awake"`))
	p.WantNoComplaints(http.StatusUnauthorized)
	found := false
	for _, e := range c.Log() {
		found = found || e.Msg == "asked for in the live view" && e.Fields["user"] == "ann"
	}
	if !found {
		t.Error("the log does not name the user that woke the service")
	}
}

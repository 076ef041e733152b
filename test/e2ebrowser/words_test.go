package e2ebrowser

import (
	"os"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/browser"
	"github.com/caddy-usher/usher/test/harness"
)

// failing is a service whose starts fail with status 3 while a file is there.
func failing(t *testing.T, c *harness.Caddy, options ...string) string {
	t.Helper()
	c.Open("broken")
	return harness.Usher("wiki", append([]string{c.Backend("-exit-while", c.Path("broken"))}, options...)...)
}

func TestAStartThatFailsShowsItsReasonAndGoesOnWhenItWorksAgain(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: failing(t, c, "waiting_page")})
	address := origin(c) + "/page"
	p := b.Open(browser.Visitor{})
	p.Go(address)
	shows(p, "It could not be started")
	shows(p, "exit status 3")
	if browser.Must[bool](p, `document.querySelector("progress").checkVisibility()`) {
		t.Error("there is a progress bar, and no progress")
	}
	clean(t, c, p)
	c.Shut("broken")
	arrives(t, p, address, "/page")
}

func TestWithoutScriptsAStartThatFailsShowsItsReason(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: failing(t, c, "waiting_page {\nrefresh 1s\n}")})
	p := b.Open(browser.Visitor{NoScript: true})
	p.Go(origin(c) + "/page")
	shows(p, "exit status 3")
	c.Shut("broken")
	arrives(t, p, origin(c)+"/page", "/page")
	clean(t, c, p)
}

func TestWhatAnOperatorSaysIsShown(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: harness.Usher("wiki", c.Backend(), "waiting_page")})
	c.Post("wiki/suspend", `{"reason":"moving to the new disk"}`)
	p := b.Open(browser.Visitor{})
	p.Go(origin(c) + "/page")
	shows(p, "Switched off for now")
	shows(p, "moving to the new disk")
	clean(t, c, p)
	c.Post("wiki/resume", "")
	arrives(t, p, origin(c)+"/page", "/page")
}

func TestWhoWaitsForAFreePlaceSeesHowManyAreBefore(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: harness.Usher("wiki", c.Backend(), "concurrency 1", "waiting_page")})
	inside := c.Send(harness.Request{Path: "/hold?gate=" + c.Path("first")})
	harness.Eventually(t, soon, func() bool { return len(c.Journal().Of("begin")) == 1 }, "one is inside")
	before := c.Send(harness.Request{Path: "/hold?gate=" + c.Path("second")})
	c.AwaitWaiting("wiki", 1)

	address := origin(c) + "/page?x=1"
	p := b.Open(browser.Visitor{})
	p.Go(address)
	shows(p, "Waiting for a free place")
	shows(p, "One other is before you.")
	c.Open("first")
	p.Await(soon, `!document.body.innerText.includes("before you")`)
	if got := browser.Must[string](p, `document.title`); got != "wiki" {
		t.Errorf("it is %q's turn, which comes second", got)
	}
	// A later request stands behind the visitor.
	later := c.Send(harness.Request{Path: "/hold?gate=" + c.Path("third")})
	c.AwaitWaiting("wiki", 1)
	c.Open("second")
	c.Open("third")
	arrives(t, p, address, "/page?x=1")
	for _, r := range []*harness.Pending{inside, before, later} {
		if got := r.Wait(t, soon); got.Status != 200 {
			t.Errorf("%d %v", got.Status, got.Err)
		}
	}
	clean(t, c, p)
}

func TestThePageSpeaksTheLanguageOfTheBrowser(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: harness.Usher("wiki", c.Backend("-never-listen"), "waiting_page")})
	for language, want := range map[string][2]string{
		"de-CH,de;q=0.9,en;q=0.5": {"de", "Wird gestartet"}, "fr": {"fr", "en cours"},
		"es-MX": {"es", "Iniciando"}, "zh-CN,zh;q=0.9": {"zh", "正在启动"}, "tlh,en;q=0.1": {"en", "Starting"},
	} {
		p := b.Open(browser.Visitor{Language: language, NoScript: true})
		p.Go(origin(c) + "/page?" + want[0])
		shows(p, want[1])
		if got := browser.Must[string](p, `document.documentElement.lang`); got != want[0] {
			t.Errorf("%s: the page says that it is in %q", language, got)
		}
		p.Close()
	}
}

func TestATemplateOfOnesOwn(t *testing.T) {
	c, b := start(t)
	const template = `<!doctype html><html lang="{{.Language}}"><title>Ours</title><link rel="icon" href="data:,">
<style nonce="{{.Nonce}}">p { color: rgb(1, 2, 3) }</style>
<noscript><meta http-equiv="refresh" content="{{.Refresh}};url={{.Again}}"></noscript>
<p id="mine" data-usher="status">{{.Status}}</p><p>{{.Title}} by {{.Service}}: {{.State}}</p>{{.Script}}</html>`
	if err := os.WriteFile(c.Path("waiting.html"), []byte(template), 0o644); err != nil {
		t.Fatal(err)
	}
	c.Start(harness.Config{Site: wiki(c, "waiting_page "+c.Path("waiting.html")+" {\ntitle \"Team {http.request.uri.path}\"\n}")})
	address := origin(c) + "/page"
	p := b.Open(browser.Visitor{})
	p.Go(address)
	shows(p, "Team /page by wiki: starting")
	if got := browser.Must[string](p, `getComputedStyle(document.getElementById("mine")).color`); got != "rgb(1, 2, 3)" {
		t.Errorf("its own style is not allowed: %s", got)
	}
	arrives(t, p, address, "/page")
	clean(t, c, p)

	if err := os.WriteFile(c.Path("waiting.html"), []byte(`{{.Statuss}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	err := c.Reload(harness.Config{Site: wiki(c, "waiting_page "+c.Path("waiting.html"))})
	if err == nil || !strings.Contains(err.Error(), "Statuss") {
		t.Errorf("a template that cannot be filled in is loaded: %v", err)
	}
}

// The pictures of README.md and docs/, in all the ways in which people see the page.
func TestPictures(t *testing.T) {
	if !*pictures {
		t.Skip("pictures are taken with -pictures")
	}
	c, b := start(t)
	c.Start(harness.Config{Site: wiki(c, "waiting_page {\ntitle \"Team wiki\"\n}", "scale queue {\ndown_window 1s\n}") +
		"\nhandle /broken* {\n" + strings.Replace(failing(t, c, "waiting_page {\ntitle \"Team wiki\"\n}"), "usher wiki", "usher broken", 1) + "\n}"})
	if r := c.Get("/page"); r.Status != 200 { // so that it is known how long a start takes
		t.Fatal(r.Status, r.Err)
	}
	for name, v := range map[string]browser.Visitor{"desk": browser.Desk, "phone": browser.Phone} {
		for _, dark := range []bool{false, true} {
			if dark {
				name += "-dark"
			}
			v.Dark = dark
			c.Post("wiki/sleep", "")
			harness.Eventually(t, soon, func() bool { return c.Service("wiki").State == "asleep" && c.Count() == 0 }, "it sleeps")
			p := b.Open(v)
			p.Go(origin(c) + "/page")
			p.Await(soon, `document.querySelector("progress").position > 0.45`)
			picture(p, "waiting-"+name)
			arrives(t, p, origin(c)+"/page", "/page")
			p.Go(origin(c) + "/broken")
			shows(p, "exit status 3")
			picture(p, "waiting-failed-"+name)
			p.Close()
		}
	}
}

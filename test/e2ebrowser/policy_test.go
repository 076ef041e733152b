package e2ebrowser

import (
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/browser"
	"github.com/caddy-usher/usher/test/harness"
)

// documents counts how often a page was asked for.
func documents(p *browser.Page) int {
	n := 0
	for _, r := range p.Requests() {
		if r.Type == "Document" {
			n++
		}
	}
	return n
}

func TestThePageTurnsIntoWhatWasAskedForBehindAPolicyThatForbidsItsScript(t *testing.T) {
	c, b := start(t)
	_, port, _ := strings.Cut(c.Addr, ":")
	c.Start(harness.Config{
		Site: wiki(c, "waiting_page {\nrefresh 1s\n}"),
		Sites: "http://localhost:" + port + " {\n\treverse_proxy " + c.Addr + " {\n\t\theader_up Host " + c.Addr +
			"\n\t\theader_down Content-Security-Policy \"default-src 'self'\"\n\t}\n}\n",
	})
	address := "http://localhost:" + port + "/page?x=1&list[]=2"
	p := b.Open(browser.Visitor{})
	p.Go(address)
	shows(p, "Starting")
	p.Await(soon, `document.title === "The page"`)
	if n := documents(p); n < 3 {
		t.Errorf("%d pages in 3s of waiting, with a refresh of 1s: the script was not forbidden", n)
	}
	for _, r := range p.Requests() {
		if r.Type == "Fetch" {
			t.Errorf("the script has asked for %s", r.URL)
		}
	}
	if got := browser.Must[string](p, `document.getElementById("uri").textContent`); got != "/page?x=1&list%5B%5D=2" {
		t.Errorf("the service was asked for %s", got)
	}
}

// A deferred `header` block of the site is meant for the answers of the service.
func TestAPolicyOfTheSiteDoesNotForbidTheScriptOfThePage(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: "header {\n\t-Server\n\tContent-Security-Policy \"default-src 'self'\"\n\tCache-Control \"public, max-age=600\"\n}\n" +
		wiki(c, "waiting_page {\nrefresh 1s\n}")})
	p := b.Open(browser.Visitor{})
	p.Go(origin(c) + "/page")
	shows(p, "Starting")
	arrives(t, p, origin(c)+"/page", "/page")
	if n := documents(p); n != 2 {
		t.Errorf("%d pages were asked for, want two: the script cancels the refresh of the header", n)
	}
}

func TestAPathThatBeginsWithTwoSlashesArrivesWithItsFragment(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: wiki(c, "waiting_page")})
	// The service itself sends the browser from two slashes to one.
	for path, final := range map[string]string{"//page": "/page", "//page?x=1": "/page?x=1", "/page?": "/page?"} {
		p := b.Open(browser.Visitor{})
		p.Go(origin(c) + path + "#part")
		shows(p, "Starting")
		arrives(t, p, origin(c)+final+"#part", final)
		if top := browser.Must[float64](p, `document.getElementById("part").getBoundingClientRect().top`); top < -1 || top > 100 {
			t.Errorf("%s: the part that the fragment names is at %v of the window", path, top)
		}
		clean(t, c, p)
		p.Close()
		c.Post("wiki/sleep", "")
		harness.Eventually(t, soon, func() bool { return c.Service("wiki").State == "asleep" && c.Count() == 0 }, "it sleeps again")
	}
}

package e2ebrowser

import (
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/browser"
	"github.com/caddy-usher/usher/test/harness"
)

// slowStart is how long the service takes to start in these tests.
const slowStart = "3s"

// wiki is a service that takes a while to start.
func wiki(c *harness.Caddy, options ...string) string {
	return harness.Usher("wiki", append([]string{c.Backend("-delay", slowStart)}, options...)...)
}

// arrives waits for the page asked for, and checks that it is the one.
func arrives(t *testing.T, p *browser.Page, address, uri string) {
	t.Helper()
	p.Await(soon, `document.title === "The page" && document.readyState === "complete"`)
	if got := p.URL(); got != address {
		t.Errorf("the address is %s, want %s", got, address)
	}
	if got := browser.Must[string](p, `document.getElementById("uri").textContent`); got != uri {
		t.Errorf("the service was asked for %s, want %s", got, uri)
	}
}

// askedAt is when the browser asked for it, as far as we were told in time.
func askedAt(t *testing.T, p *browser.Page) time.Time {
	t.Helper()
	for _, r := range p.Requests() {
		if r.Type == "Document" && r.Status == 200 {
			return r.Sent
		}
	}
	return time.Time{}
}

// arrivedAt is when the browser got the header of the page asked for.
func arrivedAt(t *testing.T, p *browser.Page) time.Time {
	t.Helper()
	for _, r := range p.Requests() {
		if r.Type == "Document" && r.Status == 200 {
			return r.Came
		}
	}
	t.Fatalf("the page asked for has not arrived: %+v", p.Requests())
	return time.Time{}
}

// From the moment in which Usher calls the instance ready, by its log, to the
// moment in which the browser has the header of the answer. Other work on the
// machine can make one try late; a pause that is Usher's own makes all late.
func TestThePageTurnsIntoWhatWasAskedForAsSoonAsItIsReady(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: wiki(c, "waiting_page")})
	address, uri := origin(c)+"/page?q=a%20b&x=1#part", "/page?q=a%20b&x=1"

	const bound, tries = 200 * time.Millisecond, 5
	var all []time.Duration
	for range tries {
		p := b.Open(browser.Visitor{})
		p.Go(address)
		if p.URL() != address {
			t.Errorf("the address of the waiting page is %s", p.URL())
		}
		shows(p, "Starting")
		arrives(t, p, address, uri)
		took := arrivedAt(t, p).Sub(readyAt(t, c))
		all = append(all, took)
		t.Logf("arrived %v after it was ready, asked for after %v", took, askedAt(t, p).Sub(readyAt(t, c)))

		if top := browser.Must[float64](p, `document.getElementById("part").getBoundingClientRect().top`); top < -1 || top > 100 {
			t.Errorf("the part that the fragment names is at %v of the window", top)
		}
		if got := browser.Must[string](p, `history.scrollRestoration + history.length`); got != "auto2" {
			t.Errorf("the history is not as without the waiting page: %s", got)
		}
		clean(t, c, p)
		p.Close()
		if took <= bound {
			return
		}
		c.Post("wiki/sleep", "")
		harness.Eventually(t, soon, func() bool { return c.Service("wiki").State == "asleep" && c.Count() == 0 }, "it sleeps again")
	}
	t.Errorf("arrived after %v, want %v at most once", all, bound)
}

func TestWithoutScriptsThePageAsksAgainByItself(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: wiki(c, "waiting_page {\nrefresh 1s\n}")})
	address := origin(c) + "/page?x=1#part"
	p := b.Open(browser.Visitor{NoScript: true})
	p.Go(address)
	shows(p, "Starting")
	// A browser that is told to go where it is only scrolls, if there is a
	// fragment; without scripts there is no other way than to leave it out.
	arrives(t, p, origin(c)+"/page?x=1", "/page?x=1")
	// Once per refresh, and one more for the one under way.
	if took := arrivedAt(t, p).Sub(readyAt(t, c)); took > harness.Slow(3*time.Second) {
		t.Errorf("arrived %v after it was ready, with a refresh of 1s", took)
	}
	documents := 0
	for _, r := range p.Requests() {
		if r.Type == "Document" {
			documents++
		} else if r.Type == "Fetch" {
			t.Errorf("scripts are off, and one has asked for %s", r.URL)
		}
	}
	if documents < 3 {
		t.Errorf("%d pages in 3s of waiting, with a refresh of 1s", documents)
	}
	clean(t, c, p)
}

func TestAFetchOfTheSameURLIsHeldAndGetsItsJSON(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: "header /static Content-Type text/html\nrespond /static <<HTML\n<link rel=\"icon\" href=\"data:,\"><p>static</p>\nHTML\n" + wiki(c, "waiting_page")})
	fetching := b.Open(browser.Visitor{})
	fetching.Go(origin(c) + "/static")
	waiting := b.Open(browser.Visitor{})
	waiting.Go(origin(c) + "/json?x=1")
	shows(waiting, "Starting")
	got := browser.Must[string](fetching, `fetch("/json?x=1").then(r => r.json()).then(j => j.uri)`)
	if got != "/json?x=1" {
		t.Errorf("the fetch got %q", got)
	}
	if r := fetching.Requests(); r[len(r)-1].Status != 200 {
		t.Errorf("the fetch: %+v", r[len(r)-1])
	}
	fetching.WantNoComplaints()
	waiting.Await(soon, `document.body.innerText.includes("/json?x=1")`)
}

// The page is below a prefix that the service does not know, behind a password
// that only the browser has, beside another service on the same site.
func TestBehindAPasswordAndBelowAPrefix(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: `basic_auth {
	ann $2a$04$DgrmTpBTpUvcRQ9kahyfFu8S3Nxn.JnOCiFZFpyOcEIOQeuusgtVO
}
handle_path /team/wiki/* {
` + wiki(c, "waiting_page") + `
}
handle /blog/* {
	uri strip_prefix /blog
` + harness.Usher("blog", c.Backend("-delay", "1s"), "waiting_page {\ntitle Blog\n}") + `
}
`})
	for prefix, title := range map[string]string{"/team/wiki": "wiki", "/blog": "Blog"} {
		address := origin(c) + prefix + "/page?x=1#part"
		p := b.Open(browser.Visitor{User: "ann", Password: "secret"})
		p.Go(address)
		shows(p, title)
		arrives(t, p, address, "/page?x=1")
		p.WantOnlyOrigin(origin(c))
		p.WantNoComplaints(401, 503)
	}
}

// The service would be asleep again long before it is ready, if the open page
// did not count; and it would never sleep again, if an open page that has
// arrived did.
func TestAnOpenPageKeepsTheServiceAwakeUntilItHasArrived(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: wiki(c, "waiting_page", "idle_timeout 500ms", "scale queue")})
	address := origin(c) + "/page"
	p := b.Open(browser.Visitor{})
	p.Go(address)
	shows(p, "Starting")
	arrives(t, p, address, "/page")
	if starts := len(c.Journal().Of("start")); starts != 1 {
		t.Errorf("%d starts for one page", starts)
	}
	harness.Eventually(t, soon, func() bool { return c.Service("wiki").State == "asleep" }, "it sleeps while the tab is open")

	// A visitor that leaves before it is ready does not keep it awake.
	p = b.Open(browser.Visitor{})
	p.Go(address)
	shows(p, "Starting")
	p.Close()
	harness.Eventually(t, soon, func() bool { return c.Service("wiki").State == "asleep" && c.Count() == 0 }, "no visitor waits, and it sleeps")
}

// Open pages do not hold up a reload, and go on afterwards.
func TestAReloadInTheMidst(t *testing.T) {
	c, b := start(t)
	gate := "go"
	site := func(wait string) string {
		return harness.Usher("wiki", c.Backend("-gate", c.Path(gate)), "wait_timeout "+wait, "waiting_page")
	}
	c.Start(harness.Config{Site: site("50s"), Grace: "0"})
	address := origin(c) + "/page"
	p := b.Open(browser.Visitor{})
	p.Go(address)
	shows(p, "Starting")
	began := time.Now()
	c.MustReload(harness.Config{Site: site("40s"), Grace: "0"})
	if took := time.Since(began); took > soon/2 {
		t.Errorf("the reload took %v", took)
	}
	c.Open(gate)
	arrives(t, p, address, "/page")
	if starts := len(c.Journal().Of("start")); starts != 1 {
		t.Errorf("%d starts", starts)
	}
	for _, complaint := range p.Complaints(503) {
		if !strings.Contains(complaint.Text, "ERR_") {
			t.Errorf("the browser complains: %+v", complaint)
		}
	}
}

// An exit does not wait for open pages, and they find the next Caddy.
func TestAnExitInTheMidst(t *testing.T) {
	c, b := start(t)
	cfg := harness.Config{Site: harness.Usher("wiki", c.Backend("-gate", c.Path("go")), "waiting_page"), Grace: "0"}
	c.Start(cfg)
	address := origin(c) + "/page"
	p := b.Open(browser.Visitor{})
	p.Go(address)
	shows(p, "This takes a moment.")
	if took := c.Stop(); took > soon/2 {
		t.Errorf("the exit took %v", took)
	}
	c.Open("go")
	c.Start(cfg)
	arrives(t, p, address, "/page")
	p.WantOnlyOrigin(origin(c))
}

package e2ebrowser

import (
	"net/http"
	"testing"

	"github.com/caddy-usher/usher/test/browser"
	"github.com/caddy-usher/usher/test/harness"
)

func TestThePageOfATaskFollowsItWithoutScripts(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: "header Content-Security-Policy \"default-src 'self'\"\n" + harness.Usher("wiki", c.Backend(), "concurrency 1", "async")})
	later := func(path string) harness.Response {
		t.Helper()
		r := c.Do(harness.Request{Path: path, Header: http.Header{"Prefer": {"respond-async"}}})
		if r.Status != http.StatusAccepted {
			t.Fatalf("status %d: %s", r.Status, r.Body)
		}
		return r
	}
	later("/hold?gate=" + c.Path("first"))
	r := later("/progress?percent=40&gate=" + c.Path("gate"))
	p := b.Open(browser.Visitor{NoScript: true})
	p.Go(origin(c) + r.Header.Get("Location"))
	shows(p, "Waiting for its turn")
	c.Open("first")
	shows(p, "In progress")
	p.Await(soon, `document.querySelector("progress").value == 40 && document.querySelector("progress").max == 100`)
	if got := browser.Must[string](p, `getComputedStyle(document.querySelector("main")).maxWidth`); got != "480px" {
		t.Errorf("the style of the page is not in force: the width is %s", got)
	}
	c.Open("gate")
	shows(p, "Done")
	if got := browser.Must[string](p, `document.querySelector("a").href`); got != origin(c)+r.Header.Get("Location")+"/result" {
		t.Errorf("the link leads to %s", got)
	}
	clean(t, c, p)
}

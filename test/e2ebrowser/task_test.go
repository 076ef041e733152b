package e2ebrowser

import (
	"net/http"
	"testing"

	"github.com/caddy-usher/usher/test/browser"
	"github.com/caddy-usher/usher/test/harness"
)

func TestThePageOfATaskFollowsItWithoutScripts(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: "header Content-Security-Policy \"default-src 'self'\"\n" + harness.Usher("wiki", c.Backend(), "async")})
	r := c.Do(harness.Request{Path: "/hold?gate=" + c.Path("gate"), Header: http.Header{"Prefer": {"respond-async"}}})
	if r.Status != http.StatusAccepted {
		t.Fatalf("status %d: %s", r.Status, r.Body)
	}
	p := b.Open(browser.Visitor{NoScript: true})
	p.Go(origin(c) + r.Header.Get("Location"))
	shows(p, "In progress")
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

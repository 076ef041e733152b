package e2ebrowser

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"github.com/caddy-usher/usher/test/browser"
	"github.com/caddy-usher/usher/test/harness"
)

// change changes a service that is made at run time, whatever it was, and returns its
// ETag.
func change(t *testing.T, c *harness.Caddy, method, path, body, ifMatch string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+c.AdminAddr+"/usher/services/"+path, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if ifMatch != "" {
		req.Header.Set("If-Match", ifMatch)
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	var m struct{ ETag string }
	if err := json.Unmarshal(b, &m); err != nil || res.StatusCode >= 300 {
		t.Fatalf("%s %s: %d %s", method, path, res.StatusCode, b)
	}
	return m.ETag
}

func TestLiveViewShowsWhereServicesComeFrom(t *testing.T) {
	c, b := start(t)
	cfg := viewed(c, 2, "")
	cfg.Usher += "template web {\n" + c.Backend("-exit-while", c.Path("fail-")+"{param.code}") + "\ninstances 0 2\nstart_attempts 1\nparam code ^[a-z]+$ default good\n}\nregistry {\nallow template web\n}"
	cfg.Site = "handle /made* {\n\tusher {http.request.header.X-Service} {\n\t\tfrom ^made$\n\t}\n}\n" + cfg.Site
	c.Start(cfg)
	p := b.Open(browser.Desk)
	open(c, p)
	p.Await(soon, `document.querySelectorAll(".service").length == 3`)
	if !browser.Must[bool](p, `document.querySelector("#origins").hidden`) {
		t.Error("origins are offered, and all services are of the configuration")
	}

	// A service that is made while the page is open, and changes.
	made := func(condition string) string {
		return `(() => { const made = document.querySelector('[data-name=made]'); return made && ` + condition + ` })()`
	}
	etag := change(t, c, "PUT", "made?owner=ann", `{"template":"web"}`, "")
	p.Await(soon, made(`made.querySelector(".about").textContent == "asleep · process · run time, ann, revision 1"`))
	if r := c.Do(harness.Request{Path: "/made", Header: http.Header{"X-Service": {"made"}}}); r.Status != http.StatusOK {
		t.Fatalf("%+v", r)
	}
	p.Await(soon, made(`made.dataset.state == "awake"`))
	c.Open("fail-bad")
	change(t, c, "PATCH", "made", `{"params":{"code":"bad"}}`, etag)
	p.Await(soon, made(`made.querySelector(".trouble").textContent.includes("Revision 2 could not be started: exit status 3")`))
	p.Await(soon, made(`made.querySelector(".about").textContent.endsWith("run time, ann, revision 1")`))

	shown := func(names string) {
		t.Helper()
		p.Await(soon, `[...document.querySelectorAll(".service")].filter(e => !e.hidden).map(e => e.dataset.name).join(" ") == "`+names+`"`)
	}
	p.Click("#origins button:nth-child(2)")
	shown("made")
	p.Click("#origins button:nth-child(2)")
	p.Click("#origins button:nth-child(1)")
	shown("s000 s001 web")
	p.Click("#origins button:nth-child(1)")
	browser.Must[bool](p, `(() => { const f = document.querySelector("#filter"); f.value = "ann"; f.dispatchEvent(new Event("input")); return true })()`)
	shown("made")
	clean(t, c, p)
}

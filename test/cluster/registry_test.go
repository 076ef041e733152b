//go:build linux

package cluster

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

// made is a service that was made while the Caddys ran.
type made struct {
	Revision int    `json:"revision"`
	ETag     string `json:"etag"`
}

// change changes such a service by one of the Caddys.
func change(c *harness.Caddy, method, path, body, ifMatch string) (status int, m made, text string) {
	req, err := http.NewRequest(method, "http://"+c.AdminAddr+"/usher/services/"+path, strings.NewReader(body))
	if err != nil {
		return 0, m, err.Error()
	}
	if ifMatch != "" {
		req.Header.Set("If-Match", ifMatch)
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, m, err.Error()
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	_ = json.Unmarshal(b, &m)
	return res.StatusCode, m, string(b)
}

// newRegistryTown is a town whose Caddys have a registry, each in a storage of its
// own, and find services by a header.
func newRegistryTown(t *testing.T) *town {
	w := newTown(t, 3, short)
	w.app("/made/one", w.caddys[0].App())
	w.app("/made/two", w.caddys[0].App())
	w.app("/made/three", w.caddys[0].App())
	w.tune = func(_ int, cfg *harness.Config) {
		cfg.Usher += fmt.Sprintf(`
template app {
	backend marathon /made/{param.app} {
		url %s
	}
	instances 0 2
	concurrency 2
	scale queue
	param app ^[a-z]+$ request
	max_services 10
}
registry {
	allow template app
}`, strings.Join(w.sim.URLs(), " "))
		cfg.Site = "@made header X-Made *\nusher @made {http.request.header.X-Made} {\n\tfrom ^shop\n}\n" + cfg.Site
	}
	return w
}

func ask(c *harness.Caddy, service string) harness.Response {
	return c.Do(harness.Request{Path: "/", Header: http.Header{"X-Made": {service}}})
}

// What is made at any member is in force at all of them, whatever storages they have,
// and they share its instances. A member that was away learns of it.
func TestWhatIsMadeAtOneMemberIsThereAtAll(t *testing.T) {
	w := newRegistryTown(t)
	w.start()
	w.awaitAll(w.everyone()...)
	k := w.leader()
	a, b := w.caddys[(k+1)%3], w.caddys[(k+2)%3]
	status, first, text := change(a, "PUT", "shop", `{"template":"app","params":{"app":"one"}}`, "")
	if status != http.StatusCreated {
		t.Fatalf("%d: %s", status, text)
	}
	for k, c := range w.caddys {
		harness.Eventually(t, soon, func() bool { return ask(c, "shop").Status == 200 }, "%d serves what was made at another member", k)
	}
	if n := len(w.caddys[0].Journal().Of("start")); n > 2 {
		t.Errorf("%d instances were started", n)
	}
	// A param of a request at a member: the Caddy that leads has to run it.
	if r := a.Do(harness.Request{Path: "/", Header: http.Header{"X-Made": {"shop"}, "Usher-Param-App": {"three"}}}); r.Status != 200 {
		t.Errorf("with a param: %d %s: %s", r.Status, r.UsherError(), r.Body)
	}
	// Two members with the same ETag: one of them is told that it is late.
	status, next, text := change(b, "PUT", "shop", `{"template":"app","params":{"app":"two"}}`, first.ETag)
	if status != http.StatusOK || next.Revision != 2 {
		t.Fatalf("%d: %s", status, text)
	}
	if status, _, text := change(w.caddys[k], "PUT", "shop", `{"template":"app","params":{"app":"one"}}`, first.ETag); status != http.StatusPreconditionFailed {
		t.Errorf("%d: %s", status, text)
	}
	// One that was away when the leader changed.
	away := (k + 1) % 3
	w.kill(away)
	if status, _, text := change(b, "PUT", "shop-b", `{"template":"app","params":{"app":"one"}}`, ""); status != http.StatusCreated {
		t.Fatalf("%d: %s", status, text)
	}
	w.startOne(away)
	harness.Eventually(t, soon, func() bool { return ask(a, "shop-b").Status == 200 && ask(a, "shop").Status == 200 }, "the member that was away serves")
	w.kill(k)
	// It may be the one that was away that leads now: it knows the variant, too.
	harness.Eventually(t, soon, func() bool {
		r := b.Do(harness.Request{Path: "/", Header: http.Header{"X-Made": {"shop"}, "Usher-Param-App": {"three"}}})
		return r.Status == 200
	}, "a variant is served without the member that led")
	harness.Eventually(t, soon, func() bool {
		status, _, _ := change(a, "DELETE", "shop-b", "", "*")
		return status == http.StatusNoContent
	}, "a change is made without the member that led")
	harness.Eventually(t, soon, func() bool { return ask(b, "shop-b").Status == http.StatusNotFound }, "what was deleted is gone at all members")
}

package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

// shopService defines a service of the split `shop` in the global options.
func shopService(c *harness.Caddy, name string, args []string, options ...string) string {
	return "service " + name + " {\n" + c.Backend(args...) + "\n" + strings.Join(options, "\n") + "\n}\n"
}

// shop is a split between two services. The answers name the service.
func shop(services, split string) harness.Config {
	return harness.Config{Usher: services, Site: "log\n" + harness.Usher("shop", split, "header_down X-Service {http.usher.service}")}
}

// bought is an answer to a user of the shop: the service that has given it.
func bought(client *http.Client, c *harness.Caddy, user string) (service string, err error) {
	r, err := http.NewRequest(http.MethodGet, "http://"+c.Addr+"/", nil)
	if err != nil {
		return "", err
	}
	if user != "" {
		r.AddCookie(&http.Cookie{Name: "uid", Value: user})
	}
	res, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d (%s)", res.StatusCode, res.Header.Get("Usher-Error"))
	}
	return res.Header.Get("X-Service"), nil
}

// buyAll sends one request of each of n users, and returns their services.
func buyAll(t *testing.T, c *harness.Caddy, n int) []string {
	t.Helper()
	const clients = 8
	services := make([]string, n)
	errs := make([]error, clients)
	var all sync.WaitGroup
	for k := range clients {
		all.Go(func() {
			client := c.HTTP1()
			defer client.CloseIdleConnections()
			for user := k; user < n && errs[k] == nil; user += clients {
				services[user], errs[k] = bought(client, c, fmt.Sprint("user", user))
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	return services
}

func count(all []string, one string) (n int) {
	for _, s := range all {
		if s == one {
			n++
		}
	}
	return n
}

// splitWeights are the weights of the split as `caddy usher split` shows them.
func splitWeights(t *testing.T, c *harness.Caddy) map[string]int {
	t.Helper()
	out, status := c.Run("usher", "split", "shop", "--address", c.AdminAddr, "--json")
	var v struct {
		Sides []struct {
			Service string
			Weight  int
		}
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != 0 {
		t.Fatalf("status %d, %v: %s", status, err, out)
	}
	weights := make(map[string]int)
	for _, side := range v.Sides {
		weights[side.Service] = side.Weight
	}
	return weights
}

func TestACanaryGetsItsShareAndEachUserStaysAtOneSide(t *testing.T) {
	c := newCaddy(t)
	cfg := shop(shopService(c, "shop-v1", nil)+shopService(c, "shop-v2", nil), "split shop-v1 90 shop-v2 10 by {http.request.cookie.uid}")
	c.Start(cfg)
	const users = 10_000
	before := buyAll(t, c, users)
	if share := float64(count(before, "shop-v2")) / users; math.Abs(share-.10) > .01 {
		t.Errorf("the canary gets %.4f of the users, want 0.10", share)
	}
	// A restart changes nothing.
	c.Stop()
	c.Start(cfg)
	again := buyAll(t, c, users/10)
	for user, service := range again {
		if service != before[user] {
			t.Fatalf("user%d was at %s, and is at %s", user, before[user], service)
		}
	}
	series := c.Metrics("caddy_usher_split_")
	canary := fmt.Sprint(count(again, "shop-v2"))
	if series[`caddy_usher_split_requests_total{service="shop-v2",split="shop"}`] != canary || series[`caddy_usher_split_weight{service="shop-v2",split="shop"}`] != "10" {
		t.Errorf("%v, want %s requests", series, canary)
	}
}

func TestACanaryThatExitsIsPassedOver(t *testing.T) {
	c := newCaddy(t)
	split := "split shop-v1 1 shop-v2 1 by {http.request.cookie.uid} {\non_failing "
	services := shopService(c, "shop-v1", nil) + shopService(c, "shop-v2", []string{"-exit-code", "3"}, "start_attempts 2")
	c.Start(shop(services, split+"next\n}"))
	all := buyAll(t, c, 100)
	if n := count(all, "shop-v1"); n != 100 {
		t.Errorf("the other side has served %d of 100", n)
	}
	if s := c.Service("shop-v2"); s.State != "failing" {
		t.Errorf("the canary is %s", s.State)
	}
	c.MustReload(shop(services, split+"error\n}"))
	served, refused := 0, 0
	for user := range 40 {
		r := c.Do(harness.Request{Header: http.Header{"Cookie": {fmt.Sprint("uid=user", user)}}})
		if r.Status == http.StatusOK {
			served++
		} else {
			refused++
			wantRefusal(t, r, "start_failed")
		}
	}
	if served == 0 || refused == 0 {
		t.Errorf("%d served, %d refused, and half of the users belong to the canary", served, refused)
	}
}

func TestWeightsChangeUnderLoadWithoutAFailedRequest(t *testing.T) {
	c := newCaddy(t)
	cfg := shop(shopService(c, "shop-v1", nil, "instances 1")+shopService(c, "shop-v2", nil, "instances 1"), "split shop-v1 100 shop-v2 0")
	c.Start(cfg)
	c.AwaitReady("shop-v1", 1, soon)
	c.AwaitReady("shop-v2", 1, soon)
	client := c.HTTP1()
	defer client.CloseIdleConnections()
	load := c.Load(6, "/")
	sides := func(want ...string) {
		t.Helper()
		seen := make(map[string]bool)
		for range 60 {
			service, err := bought(client, c, "")
			if err != nil {
				t.Fatal(err)
			}
			seen[service] = true
		}
		for _, service := range want {
			if !seen[service] {
				t.Errorf("%s gets nothing: %v", service, seen)
			}
		}
		if len(seen) != len(want) {
			t.Errorf("%v serve, want %v", seen, want)
		}
	}
	sides("shop-v1")
	run := func(args ...string) string {
		t.Helper()
		out, status := c.Run(append([]string{"usher", "split", "--address", c.AdminAddr, "shop"}, args...)...)
		if status != 0 {
			t.Fatalf("%v: status %d: %s", args, status, out)
		}
		return out
	}
	if out := run("shop-v2", "100"); !strings.Contains(out, "50%") || !strings.Contains(out, "the admin API") {
		t.Errorf("%s", out)
	}
	sides("shop-v1", "shop-v2")
	run("shop-v1", "0", "shop-v2", "7")
	sides("shop-v2")
	c.MustReload(cfg)
	sides("shop-v2")
	if lost := c.Lost(load.Stop()); len(lost) > 0 {
		t.Errorf("%d requests were lost, the first: %+v", len(lost), lost[0])
	}
	c.Stop()
	c.Start(cfg)
	if w := splitWeights(t, c); w["shop-v1"] != 0 || w["shop-v2"] != 7 {
		t.Errorf("after a restart the weights are %v", w)
	}
	sides("shop-v2")
	run("reset")
	sides("shop-v1")
	run("shop-v2", "100")
	changed := cfg
	changed.Site = strings.Replace(cfg.Site, "shop-v1 100 shop-v2 0", "shop-v1 0 shop-v2 1", 1)
	c.MustReload(changed)
	if w := splitWeights(t, c); w["shop-v1"] != 0 || w["shop-v2"] != 1 {
		t.Errorf("a changed configuration leaves the weights %v", w)
	}
	if out, status := c.Run("usher", "split", "--address", c.AdminAddr, "cart"); status != 4 {
		t.Errorf("status %d: %s", status, out)
	}
}

func TestRevisionsServeSideBySide(t *testing.T) {
	c := newCaddy(t)
	cfg := registrySite(c)
	cfg.Site = harness.Usher("shop", "split web@1 50 web@2 50 by {http.request.cookie.uid}", "header_down X-Service {http.usher.service}")
	c.Start(cfg)
	who := func(user int) (string, harness.Response) {
		r := c.Do(harness.Request{Path: "/env", Header: http.Header{"Cookie": {fmt.Sprint("uid=user", user)}}})
		return variable(r, "WHO"), r
	}
	if _, r := who(0); r.Status != http.StatusNotFound || r.UsherError() != "unknown_service" {
		t.Errorf("before there is a service: %d %s", r.Status, r.UsherError())
	}
	m := mustCall(t, c, 201, "PUT", "web", `{"template":"web","params":{"WHO":"ann"}}`, "")
	m = mustCall(t, c, 200, "PUT", "web", `{"template":"web","params":{"WHO":"bob"}}`, m.ETag)
	seen := make(map[string]string) // service by who it greets
	for user := range 20 {
		w, r := who(user)
		wantOK(t, r)
		seen[w] = r.Header.Get("X-Service")
	}
	if len(seen) != 2 || seen["ann"] != "web..r1" || seen["bob"] != "web" {
		t.Errorf("revision 1 and 2 are served by %v", seen)
	}
	// With a third revision, both of the split are beside it.
	m = mustCall(t, c, 200, "PUT", "web", `{"template":"web","params":{"WHO":"cat"}}`, m.ETag)
	clear(seen)
	for user := range 20 {
		w, r := who(user)
		wantOK(t, r)
		seen[w] = r.Header.Get("X-Service")
	}
	if len(seen) != 2 || seen["ann"] != "web..r1" || seen["bob"] != "web..r2" {
		t.Errorf("revision 1 and 2 are served by %v", seen)
	}
	// A revision that is made of the same as the one in force is the service itself.
	m = mustCall(t, c, 200, "PUT", "web", `{"template":"web","params":{"WHO":"cat"},"hosts":["cat.example.net"]}`, m.ETag)
	if m.Revision != 4 {
		t.Fatalf("%+v", m)
	}
	cfg.Site = strings.Replace(cfg.Site, "web@1 50 web@2 50", "web@1 50 web@3 50", 1)
	c.MustReload(cfg)
	clear(seen)
	for user := range 20 {
		w, r := who(user)
		wantOK(t, r)
		seen[w] = r.Header.Get("X-Service")
	}
	if len(seen) != 2 || seen["ann"] != "web..r1" || seen["cat"] != "web" {
		t.Errorf("revision 1 and 3 are served by %v", seen)
	}
	// Without the split they finish what they have.
	cfg.Site = "respond none"
	c.MustReload(cfg)
	harness.Eventually(t, soon, func() bool {
		for _, s := range c.Services() {
			if strings.Contains(s.Name, "..r") {
				return false
			}
		}
		return true
	}, "the revisions are gone")
}

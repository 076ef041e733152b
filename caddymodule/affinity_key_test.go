package caddymodule

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/reserver"
)

func TestG16EqualKeysGoToTheSameInstance(t *testing.T) {
	t.Parallel()
	_, c := sessionFleet(t, 3, "concurrency 5", "balance random", "affinity key {header.Session}")
	used := make(map[string]int)
	for k := range 30 {
		key := fmt.Sprint("client ", k)
		first := c.get("/", "Session", key)
		if first.session() != "new" || first.header.Get("Set-Cookie") != "" {
			t.Fatalf("%+v", first)
		}
		used[first.at()]++
		for range 3 {
			if r := c.get("/", "Session", key); r.at() != first.at() || r.session() != "kept" {
				t.Errorf("%s: %+v", key, r)
			}
		}
	}
	if len(used) != 3 {
		t.Errorf("not all instances have sessions: %v", used)
	}
}

// An instance that goes moves its own sessions and no others.
func TestAnInstanceThatGoesMovesItsOwnSessionsAlone(t *testing.T) {
	t.Parallel()
	f, c := sessionFleet(t, 3, "affinity key {header.Session}")
	at := make(map[string]string)
	for k := range 20 {
		key := fmt.Sprint(k)
		at[key] = c.get("/", "Session", key).at()
	}
	gone := at["0"]
	f.die(gone)
	f.ready(2)
	for key, before := range at {
		r := c.get("/", "Session", key)
		if want := map[bool]string{true: "moved", false: "kept"}[before == gone]; r.session() != want || (r.at() == before) == (before == gone) {
			t.Errorf("%s was on %s, %s is gone, and now %s on %s", key, before, gone, r.session(), r.at())
		}
	}
}

func TestARequestWithoutAKeyBelongsToNoSession(t *testing.T) {
	t.Parallel()
	f, c := sessionFleet(t, 2, "affinity key {header.Session}")
	for _, header := range [][]string{nil, {"Session", ""}} {
		if r := c.get("/", header...); r.status != 200 || r.session() != "" {
			t.Errorf("%+v", r)
		}
	}
	if n := serving(t, f.name).Reserver.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions are remembered", n)
	}
}

// Two sources of one request can lead to two instances: the first one counts.
func TestTheFirstKeyWithAValueCountsAndTheCookieIfNoneHasOne(t *testing.T) {
	t.Parallel()
	f, c := sessionFleet(t, 3, "balance random", "affinity cookie", "affinity key {header.First}", "affinity key {query.second}")
	own, cookie := f.session(c)
	var first, second string // on other instances than the cookie's
	at := make(map[string]string)
	for k := 0; first == "" || second == ""; k++ {
		key := fmt.Sprint(k)
		at[key] = c.get("/", "First", key).at()
		switch {
		case at[key] == own:
		case first == "":
			first = key
		case at[key] != at[first]:
			second = key
		}
	}
	for what, x := range map[string]struct {
		path, want string
		header     []string
	}{
		"all":                   {"/?second=" + second, at[first], []string{"First", first, "Cookie", cookie}},
		"the second and cookie": {"/?second=" + second, at[second], []string{"Cookie", cookie}},
		"an empty first":        {"/?second=" + second, at[second], []string{"First", "", "Cookie", cookie}},
		"the cookie alone":      {"/?second=", own, []string{"Cookie", cookie}},
	} {
		if r := c.get(x.path, x.header...); r.at() != x.want || r.session() != "kept" || r.header.Get("Set-Cookie") != "" {
			t.Errorf("%s: want %s: %+v", what, x.want, r)
		}
	}
}

// As with MCP: the answer to the first request names the session.
func TestAKeyIsLearnedFromTheAnswer(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	plain := f.handler
	f.handler = func(id string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Mcp-Session-Id") == "" {
				w.Header().Set("Mcp-Session-Id", "of "+id)
			}
			plain(id).ServeHTTP(w, r)
		})
	}
	c := start(t, site(f.usher("instances 3", "balance random", "affinity key {http.response.header.mcp-session-id}", "header_down X-Session {http.usher.session}")))
	f.ready(3)
	for range 10 {
		first := c.get("/")
		id := first.header.Get("Mcp-Session-Id")
		if id != "of "+first.at() {
			t.Fatalf("%+v", first)
		}
		for range 3 {
			if r := c.get("/", "Mcp-Session-Id", id); r.at() != first.at() || r.session() != "kept" {
				t.Errorf("%+v", r)
			}
		}
	}
	if n := sessionsCounted(t, f.name, "new"); n != "10" {
		t.Errorf("%s new sessions are counted", n)
	}
}

func TestARequestSpillsToTheNextInstanceInTheOrderOfItsKey(t *testing.T) {
	t.Parallel()
	f, c := sessionFleet(t, 3, "concurrency 1", "affinity key {header.Model} {\nspill\n}")
	s := serving(t, f.name)
	own := c.get("/", "Model", "a").at()
	if r := c.get("/", "Model", "a"); r.at() != own || r.session() != "kept" {
		t.Errorf("%+v", r)
	}
	hash := uint64(0)
	for _, i := range []string{"a"} {
		_, hash = s.Sessions.Load().Of(replacerWith("http.request.header.Model", i))
	}
	var full reserver.Reservation
	if ok, err := s.Reserver.Reserve(&full, reserver.Ask{Affinity: reserver.ByHash, Key: hash}); !ok || err != nil || full.Instance().ID != own {
		t.Fatal(ok, err)
	}
	next := c.get("/", "Model", "a")
	if next.status != 200 || next.at() == own || next.session() != "moved" {
		t.Errorf("%+v", next)
	}
	if again := c.get("/", "Model", "a"); again.at() != next.at() {
		t.Errorf("the order of a key is not always the same: %s, %s", next.at(), again.at())
	}
	full.Release(reserver.Neutral)
	if r := c.get("/", "Model", "a"); r.at() != own || r.session() != "kept" {
		t.Errorf("%+v", r)
	}
	if n := s.Reserver.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions are remembered", n)
	}
}

// Keys that differ for each request, and huge ones, take bounded memory.
func TestKeysTakeBoundedMemory(t *testing.T) {
	t.Parallel()
	f, c := sessionFleet(t, 1, "affinity key {header.Session}")
	huge := strings.Repeat("x", 1<<19)
	if a, b := c.get("/", "Session", huge), c.get("/", "Session", huge); a.session() != "new" || b.session() != "kept" {
		t.Errorf("%s, %s", a.session(), b.session())
	}
	s := serving(t, f.name).Reserver
	for k := range uint64(reserver.SessionsMost + 100) {
		var r reserver.Reservation
		if ok, err := s.Reserve(&r, reserver.Ask{Affinity: reserver.ByKey, Key: k + 1<<40}); !ok || err != nil {
			t.Fatal(ok, err)
		}
		r.Release(reserver.Answered)
	}
	if n := s.Stats().Sessions; n != reserver.SessionsMost {
		t.Errorf("%d sessions are remembered", n)
	}
	if r := c.get("/", "Session", huge); r.status != 200 || r.session() != "new" {
		t.Errorf("the oldest is not the one that is forgotten: %+v", r)
	}
}

func TestASessionOfAnUnlimitedInstanceNeverWaits(t *testing.T) {
	t.Parallel()
	f, c := sessionFleet(t, 2, "concurrency unlimited", "affinity cookie")
	own, cookie := f.session(c)
	for range 5 {
		if r := c.get("/", "Cookie", cookie); r.at() != own || r.session() != "kept" {
			t.Errorf("%+v", r)
		}
	}
}

func TestWithoutAQueueASessionWhoseInstanceIsFullIsRefused(t *testing.T) {
	t.Parallel()
	f, c := sessionFleet(t, 2, "concurrency 1", "max_waiting 0", "affinity key {header.Session}")
	own := c.get("/", "Session", "a").at()
	s := serving(t, f.name)
	var full reserver.Reservation
	_, key := s.Sessions.Load().Of(replacerWith("http.request.header.Session", "a"))
	if ok, err := s.Reserver.Reserve(&full, reserver.Ask{Affinity: reserver.ByKey, Key: key}); !ok || err != nil || full.Instance().ID != own {
		t.Fatal(ok, err)
	}
	if r := c.get("/", "Session", "a"); r.header.Get("Usher-Error") != codeQueueFull || !strings.Contains(r.body, "all slots that this request may use") {
		t.Errorf("%+v", r)
	}
	if r := c.get("/"); r.status != 200 || r.at() == own {
		t.Errorf("another one: %+v", r)
	}
	full.Release(reserver.Neutral)
	if r := c.get("/", "Session", "a"); r.at() != own || r.session() != "kept" {
		t.Errorf("%+v", r)
	}
}

func TestARequestThatDoesNotWakeKeepsItsSession(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site(f.usher("instances 0 2", "affinity cookie", "wake /wake", "header_down X-Session {http.usher.session}")))
	if r := c.get("/"); r.header.Get("Usher-Error") != codeAsleep || r.header.Get("Set-Cookie") != "" {
		t.Errorf("%+v", r)
	}
	r := c.get("/wake")
	if quiet := c.get("/", "Cookie", f.cookieOf(r)); quiet.at() != r.at() || quiet.session() != "kept" {
		t.Errorf("%+v", quiet)
	}
}

func TestAWaitForTheInstanceOfASessionThatIsOverSaysSo(t *testing.T) {
	t.Parallel()
	f, c := sessionFleet(t, 2, "concurrency 1", "wait_timeout 50ms", "affinity key {header.Session}")
	c.get("/", "Session", "a")
	s := serving(t, f.name)
	_, key := s.Sessions.Load().Of(replacerWith("http.request.header.Session", "a"))
	var full reserver.Reservation
	if ok, err := s.Reserver.Reserve(&full, reserver.Ask{Affinity: reserver.ByKey, Key: key}); !ok || err != nil {
		t.Fatal(ok, err)
	}
	defer full.Release(reserver.Neutral)
	if r := c.get("/", "Session", "a"); r.header.Get("Usher-Error") != codeWaitTimeout || !strings.Contains(r.body, "for the instance of its session") {
		t.Errorf("%+v", r)
	}
}

func TestTheAdminAPIAndTheAccessLogTellOfSessions(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site("log\n"+f.usher("instances 1", "affinity key {header.Session}")))
	f.ready(1)
	c.get("/", "Session", "a")
	c.get("/", "Session", "a")
	c.get("/")
	d, err := serving(t, f.name).Details(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d.SessionKeys == nil || *d.SessionKeys != 1 || d.InstanceList[0].SessionUntil.IsZero() {
		t.Errorf("%+v", d)
	}
	if !strings.Contains(string(d.Config), `"session_timeout":"10m0s"`) {
		t.Errorf("%s", d.Config)
	}
	var told []string
	eventually(t, "the access log", func() bool {
		told = nil
		for _, e := range logsOf(logName(t)).entries("handled request") {
			usher, _ := e["usher"].(map[string]any)
			told = append(told, fmt.Sprint(usher["session"]))
		}
		return len(told) == 3
	})
	if fmt.Sprint(told) != "[new kept <nil>]" {
		t.Errorf("%v", told)
	}
}

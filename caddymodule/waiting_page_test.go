package caddymodule

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/reserver"
)

// person is what a browser sends when a person opens a page.
var person = []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Accept", browserAccept}

const browserAccept = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"

func TestOnlyWhatAPersonOpensInABrowserGetsTheWaitingPage(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		method string
		header []string
		want   bool
	}{
		"a page":                        {"GET", person, true},
		"the head of one":               {"HEAD", person, true},
		"a page within one":             {"GET", []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, true},
		"a form that is sent":           {"POST", person, false},
		"an object within a page":       {"GET", []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "object"}, false},
		"a fetch":                       {"GET", []string{"Sec-Fetch-Mode", "cors", "Accept", browserAccept}, false},
		"an image":                      {"GET", []string{"Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"}, false},
		"a page that is fetched early":  {"GET", append([]string{"Sec-Purpose", "prefetch"}, person...), false},
		"a websocket":                   {"GET", append([]string{"Upgrade", "websocket", "Connection", "Upgrade"}, person...), false},
		"a page over plain HTTP":        {"GET", []string{"Accept", browserAccept}, true},
		"a script of old over HTTP":     {"GET", []string{"Accept", browserAccept, "X-Requested-With", "XMLHttpRequest"}, false},
		"a client that takes anything":  {"GET", []string{"Accept", "*/*"}, false},
		"a client that says nothing":    {"GET", nil, false},
		"a client that wants JSON":      {"GET", []string{"Accept", "application/json, text/html;q=0.5"}, false},
		"a client that takes both":      {"GET", []string{"Accept", "application/json, text/html"}, false},
		"a client that wants no HTML":   {"GET", []string{"Accept", "text/html;q=0, */*"}, false},
		"a client that prefers nothing": {"GET", []string{"Accept", "text/html;q=0.1, */*"}, false},
	} {
		r := httptest.NewRequest(x.method, "/", nil)
		for k := 0; k+1 < len(x.header); k += 2 {
			r.Header.Set(x.header[k], x.header[k+1])
		}
		if got := navigates(r); got != x.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestTheWaitingPageIsA503ThatMayDoNothingButAskItsOwnOrigin(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site("handle_errors {\nrespond \"of a route\"\n}\n"+f.usher("waiting_page {\nafter 0s\ntitle \"Team <wiki>\"\n}")))
	r := c.get("/x", person...)
	h := r.header
	if r.status != 503 || h.Get("Usher-Error") != "waiting_page" || h.Get("Cache-Control") != "no-store" ||
		h.Get("Content-Type") != "text/html; charset=utf-8" || h.Get("Retry-After") == "" || !strings.Contains(r.body, "<h1>Team &lt;wiki&gt;</h1>") {
		t.Fatalf("%+v", r)
	}
	nonce := h.Get("Content-Security-Policy")
	nonce = nonce[strings.Index(nonce, "'nonce-")+len("'nonce-"):]
	nonce = nonce[:strings.Index(nonce, "'")]
	if len(nonce) < 20 || strings.Count(r.body, `nonce="`+nonce+`"`) != 2 || strings.Contains(h.Get("Content-Security-Policy"), "unsafe") {
		t.Errorf("the policy is %q", h.Get("Content-Security-Policy"))
	}
	if second := c.get("/x", person...); second.header.Get("Content-Security-Policy") == h.Get("Content-Security-Policy") {
		t.Error("the nonce is the same once more")
	}
	if head := c.do("HEAD", "/x", "", person...); head.status != 503 || head.body != "" {
		t.Errorf("%+v", head)
	}
	// A request that is not a person's is held as before.
	wait := c.begin("GET", "/x", "")
	f.waiting(1)
	f.up()
	if r := wait(); r.status != 200 {
		t.Errorf("%+v", r)
	}
	if r := c.get("/x", person...); r.status != 200 || r.body != "GET /x " {
		t.Errorf("%+v", r)
	}
}

func TestAPersonIsHeldForAMomentFirst(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("waiting_page {\nafter 30s\n}")))
	wait := c.begin("GET", "/x", "", person...)
	f.waiting(1)
	f.ordered(1)
	f.up()
	if r := wait(); r.status != 200 {
		t.Errorf("%+v", r)
	}
}

func TestWhoWaitsInTheBrowserIsDemandAndHasOnePlace(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("waiting_page {\nafter 5ms\n}")))
	for range 3 { // as without scripts
		if r := c.get("/x", person...); r.header.Get("Usher-Error") != "waiting_page" {
			t.Fatalf("%+v", r)
		}
	}
	f.ordered(1)
	s := serving(t, f.name)
	if st := s.Reserver.Stats(); st.Waiting != 0 || st.Visitors != 1 || st.Demand != 1 {
		t.Fatalf("%+v", st)
	}
	c.get("/y", person...) // another page
	if st := s.Reserver.Stats(); st.Visitors != 2 {
		t.Fatalf("%+v", st)
	}
	if got := counted(t, f.name, codeWaitingPage); got != "4" {
		t.Errorf("%s pages are counted", got)
	}
	f.up()
	f.ready(1)
	for _, path := range []string{"/x", "/y"} {
		if r := c.get(path, person...); r.status != 200 {
			t.Fatalf("%+v", r)
		}
	}
	if st := s.Reserver.Stats(); st.Visitors != 0 || st.Demand != 0 {
		t.Fatalf("%+v", st)
	}
}

func TestOpenPagesAreBounded(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("max_waiting 1", "waiting_page {\nafter 5ms\n}")))
	s := serving(t, f.name)
	listening := c.begin("GET", "/1", "", headerWaiting, "1")
	eventually(t, "the stream", func() bool { return s.Reserver.Stats().Visitors == 1 })
	if r := c.get("/1", headerWaiting, "1"); r.status != 503 || r.header.Get("Retry-After") == "" {
		t.Errorf("a stream too many: %+v", r)
	}
	if r := c.get("/2", person...); r.header.Get("Usher-Error") != "waiting_page" {
		t.Errorf("%+v", r)
	}
	if n := s.Reserver.Stats().Visitors; n != 1 {
		t.Errorf("%d places", n)
	}
	f.up()
	if r := listening(); !strings.Contains(r.body, `"state":"starting"`) || !strings.HasSuffix(r.body, "event: go\ndata: {}\n\n") {
		t.Errorf("the stream says %q", r.body)
	}
}

func TestAPageThatDoesNotWakeShowsThatItIsAsleep(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("wake /in", "waiting_page {\nafter 0s\n}")))
	if r := c.get("/out", person...); r.header.Get("Usher-Error") != "asleep" || !strings.Contains(r.body, "<h1>"+f.name) || !strings.Contains(r.body, "Asleep") {
		t.Errorf("%+v", r)
	}
	if st := serving(t, f.name).Reserver.Stats(); st.Demand != 0 || st.Visitors != 0 {
		t.Errorf("%+v", st)
	}
	c.get("/in", person...)
	f.ordered(1)
}

func TestAVisitorWhoIsNotHeardOfLosesItsPlace(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	start(t, site(f.usher()))
	s := serving(t, f.name)
	var r reserver.Reservation
	if ok, err := s.Reserver.Reserve(&r, reserver.Ask{}); ok || err != nil {
		t.Fatal(ok, err)
	}
	key := hub.VisitorKey{1}
	if away, err := s.Visitors.Keep(key, &r, time.Hour); !away {
		t.Fatal(err)
	}
	v := s.Visitors.Find(key)
	if v == nil || s.Reserver.Stats().Demand != 1 {
		t.Fatal("the place is not kept")
	}
	if n := s.Summary().Visitors; n != 1 {
		t.Errorf("operators see %d visitors, want one", n)
	}
	s.Visitors.Leave(v, time.Millisecond)
	eventually(t, "the end of the place", func() bool { return s.Reserver.Stats().Demand == 0 })
	if s.Visitors.Find(key) != nil {
		t.Error("it is found again")
	}
}

func TestWhoIsCalledAndDoesNotComeIsForgottenHoweverOftenItListens(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("concurrency 1", "waiting_page")))
	s := serving(t, f.name)
	first := c.begin("GET", "/first", "", headerWaiting, "1")
	eventually(t, "the first", func() bool { return s.Reserver.Stats().Visitors == 1 })
	other, err := s.Visitors.Invite(hub.VisitorKey{2}, reserver.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	f.up()
	if r := first(); !strings.Contains(r.body, "event: go") {
		t.Fatalf("the first is told %q", r.body)
	}
	began := time.Now()
	eventually(t, "the call of the other", func() bool {
		// Once it is forgotten it listens for its turn, behind the other.
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		c.beginWith(ctx, "GET", "/first", "", headerWaiting, "1")()
		return other.Called()
	})
	if took := time.Since(began); took > claimPatience+claimPatience/2 {
		t.Errorf("the slot stays free for %v", took)
	}
	s.Visitors.End(other)
}

func TestAVisitorHasOneHeldRequest(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("waiting_page {\nafter 30s\n}")))
	s := serving(t, f.name)
	listening := c.begin("GET", "/x", "", headerWaiting, "1")
	eventually(t, "the stream", func() bool { return s.Reserver.Stats().Visitors == 1 })
	const many = 50
	answers := make(chan reply, many)
	for range many {
		wait := c.begin("GET", "/x", "", person...)
		go func() { answers <- wait() }()
	}
	for range many - 1 {
		select {
		case r := <-answers:
			if r.header.Get("Usher-Error") != "waiting_page" {
				t.Fatalf("%+v", r)
			}
		case <-time.After(patience):
			t.Fatal("more than one is held")
		}
	}
	f.up()
	if r := <-answers; r.status != 200 {
		t.Errorf("the one that is held: %+v", r)
	}
	listening()
}

func TestTheHeaderOfThePageIsNothingWithoutOne(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site(f.usher()))
	if r := c.get("/x", headerWaiting, "1"); r.status != 200 || r.body != "GET /x " {
		t.Errorf("%+v", r)
	}
}

func TestAWaitingPageThatCannotBeShownFailsTheLoad(t *testing.T) {
	t.Parallel()
	// The first load of a Caddy puts up with a file that cannot be used.
	start(t, site(newFleet(t).usher()))
	dir := t.TempDir()
	for name, x := range map[string]struct{ template, options, want string }{
		"no such file":            {"", "", "reading the template"},
		"one that does not parse": {"{{if}}", "", "the template does not parse"},
		"one with a wrong field":  {"{{.Nothing}}", "", "Nothing"},
		"one that fails for some": {`{{if eq .State "suspended"}}{{index .Reason 999}}{{end}}`, "", "for a service that is suspended"},
		"one after the wait":      {"fine", "after 1m", "no client would get the page"},
		"one with no such option": {"fine", "match x", "no option 'match'"},
	} {
		file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if x.template != "" {
			if err := os.WriteFile(file, []byte(x.template), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f := "usher web {\nbackend test a\nwaiting_page " + file + " {\n" + x.options + "\n}\n}"
		if _, err := tryProvision(t, site(f)); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: the message does not say %q: %v", name, x.want, err)
		}
	}
}

func TestTheWordsSayDurationsAndPlacesInEveryLanguage(t *testing.T) {
	t.Parallel()
	for _, w := range translations {
		for state := range english.status {
			d := PageData{State: state, Usual: 3000, Elapsed: 100}
			w.fill(&d, 90*time.Second)
			if d.Status == "" || d.Hint == "" || d.ProgressLabel == "" || strings.Contains(d.Status+d.Detail, "%!") {
				t.Errorf("%s, %s: %+v", w.language, state, d)
			}
		}
		for d, want := range map[time.Duration]string{100 * time.Millisecond: w.second, 89 * time.Second: "89", 90 * time.Second: "2", 5 * time.Minute: "5"} {
			if got := w.duration(d); !strings.Contains(got, want) || strings.Contains(got, "%") {
				t.Errorf("%s: %v is %q", w.language, d, got)
			}
		}
		if w.place(0) != "" || w.place(1) == "" || !strings.Contains(w.place(12), "12") {
			t.Errorf("%s: %q %q", w.language, w.place(1), w.place(12))
		}
	}
	for accept, want := range map[string]string{
		"": "en", "de-AT, en": "de", "tlh": "en", "fr;q=0.2, es": "es", "zh-TW": "zh", "\x00": "en",
	} {
		if got := translationFor(accept).language; got != want {
			t.Errorf("%q gets %s, want %s", accept, got, want)
		}
	}
}

func TestVisitorsAreToldApart(t *testing.T) {
	t.Parallel()
	ask := func(uri, agent string) hub.VisitorKey {
		r := httptest.NewRequest(http.MethodGet, uri, nil)
		r.Header.Set("User-Agent", agent)
		return keyOf(r)
	}
	a := ask("/a?x=1", "one")
	if a != ask("/a?x=1", "one") || a == ask("/a?x=2", "one") || a == ask("/a?x=1", "two") || a == ask("/a?x=", "1one") {
		t.Error("they are not")
	}
}

func TestAPageRefersToItself(t *testing.T) {
	t.Parallel()
	for uri, want := range map[string]string{
		"/a/b?x=1": "?x=1", "/a/b": "./b", "/a/": "./", "/": "./", "/a:b": "./a:b", "//other.example/x": "./x", "//other.example": "./other.example", "/?": "./",
	} {
		if got := selfReference(uri); got != want {
			t.Errorf("%s: %s, want %s", uri, got, want)
		}
	}
}

package caddymodule

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/scaler"
)

// failing returns a fleet whose starts fail for good, with output that no
// client may see.
func failing(t *testing.T) *fleet {
	t.Helper()
	f := newFleet(t)
	f.fail = &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "exit status 127", Detail: "secret output line"}
	return f
}

func TestErrorRouteThatNeedsUsherItselfEnds(t *testing.T) {
	t.Parallel()
	f := failing(t)
	c := start(t, site("handle_errors {\n"+f.usher()+"}\nrespond /fine ok\n"+"error /broken 404\n"+f.usher()))
	for _, path := range []string{"/broken", "/"} {
		r := c.get(path)
		if r.status != 503 || r.header.Get("Usher-Error") != "start_failed" {
			t.Errorf("%s: %+v", path, r)
		}
	}
}

func TestErrorRoutesAnswerForUsher(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		routes string
		method string
		status int
		body   string // "" is Usher's own
		typ    string
	}{
		"a page":                        {"handle_errors {\nrespond `{err.status_code} {err.message} {http.usher.error}`\n}", "GET", 503, "503 service NAME: start_failed: exit status 127 start_failed", ""},
		"a page for this status":        {"handle_errors 503 {\nrespond page\n}", "GET", 503, "page", ""},
		"a page for this status, HEAD":  {"handle_errors 503 {\nrespond page\n}", "HEAD", 503, "", "text/plain; charset=utf-8"},
		"another status":                {"handle_errors 404 {\nrespond page\n}", "GET", 503, "", "application/problem+json"},
		"a redirect":                    {"handle_errors {\nredir * /sorry\n}", "GET", 302, "", ""},
		"an answer that is empty":       {"handle_errors {\nrespond 503\n}", "GET", 503, "", ""},
		"another answer that is empty":  {"handle_errors {\nrespond 204\n}", "GET", 204, "", ""},
		"a route that fails":            {"handle_errors {\nheader Content-Encoding x\nerror 500\n}", "GET", 503, "", "application/problem+json"},
		"a file that is not there":      {"handle_errors {\nroot /nowhere\nfile_server\n}", "GET", 503, "", "application/problem+json"},
		"the detail, where it is shown": {"handle_errors {\nrespond `{http.usher.error.detail}`\n}", "GET", 503, "exit status 127: secret output line", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := failing(t)
			c := start(t, site(x.routes+"\nrewrite * /inner\n"+f.usher()))
			r := c.do(x.method, "/outer", "")
			// An answer in place of the service's is no error.
			own := r.header.Get("Usher-Error") == "start_failed" && r.header.Get("Retry-After") != ""
			if r.status != x.status || own == (r.status < 300) {
				t.Errorf("%+v", r)
			}
			if got := r.header.Get("Content-Type"); got != x.typ && x.body == "" {
				t.Errorf("content type %q", got)
			}
			if r.header.Get("Content-Encoding") != "" {
				t.Error("what an error route that failed had set is left")
			}
			if want := strings.ReplaceAll(x.body, "NAME", f.name); x.body != "" && r.body != want {
				t.Errorf("body %q, want %q", r.body, want)
			}
		})
	}
}

func TestErrorRoutesSeeTheRequestAsItCame(t *testing.T) {
	t.Parallel()
	f := failing(t)
	c := start(t, site("handle_errors {\nrespond `{method} {uri}`\n}\nmethod PUT\nrewrite * /inner\n"+f.usher()))
	if r := c.get("/outer?a=b"); r.body != "GET /outer?a=b" {
		t.Errorf("%+v", r)
	}
}

func TestErrorRoutesOfAnotherSiteAnswerNothing(t *testing.T) {
	t.Parallel()
	f := failing(t)
	c := start(t, "{\nauto_https off\n}\nhttp://other {\nhandle_errors {\nrespond page\n}\n}\nhttp://127.0.0.1 {\n"+f.usher()+"}\n")
	if r := c.get("/"); r.status != 503 || r.header.Get("Content-Type") != answer.TypeProblem || !strings.Contains(r.body, "start_failed") {
		t.Errorf("%+v", r)
	}
}

func TestOwnAnswersHaveTheFormThatTheClientPrefers(t *testing.T) {
	t.Parallel()
	f := failing(t)
	c := start(t, site(f.usher()))
	for accept, want := range map[string]string{
		"":                                answer.TypeProblem,
		"*/*":                             answer.TypeProblem,
		"application/json":                answer.TypeProblem,
		"text/html,application/xhtml+xml": "text/html; charset=utf-8",
		"text/plain":                      "text/plain; charset=utf-8",
		"image/png":                       answer.TypeProblem,
		"text/html;q=0.1, text/plain":     "text/plain; charset=utf-8",
		";;,/,;q=x":                       answer.TypeProblem,
	} {
		for _, method := range []string{"GET", "HEAD"} {
			r := c.do(method, "/", "", "Accept", accept)
			h := r.header
			if r.status != 503 || h.Get("Content-Type") != want || h.Get("Usher-Error") != "start_failed" ||
				h.Get("Cache-Control") != "no-store" || h.Get("Retry-After") == "" || h.Get("Vary") != "Accept" {
				t.Errorf("%s %q: %+v", method, accept, r)
			}
			if (method == "HEAD") != (r.body == "") {
				t.Errorf("%s %q: body %q", method, accept, r.body)
			}
			if strings.Contains(r.body, "secret") {
				t.Errorf("%q: the client sees the output: %s", accept, r.body)
			}
		}
	}
}

func TestProblemSaysAllThatTheContractNames(t *testing.T) {
	t.Parallel()
	for detail, want := range map[string]string{"short": "exit status 127", "full": "exit status 127: secret output line"} {
		t.Run(detail, func(t *testing.T) {
			t.Parallel()
			f := failing(t)
			c := start(t, site(f.usher("error_detail "+detail)))
			var p map[string]any
			if err := json.Unmarshal([]byte(c.get("/").body), &p); err != nil {
				t.Fatal(err)
			}
			if p["detail"] != want || p["code"] != "start_failed" || p["service"] != f.name || p["status"] != 503.0 ||
				p["title"] == "" || p["retry_after"] == nil || p["waited_ms"] == nil {
				t.Errorf("%v", p)
			}
		})
	}
}

func TestInstanceDoesNotSpeakForUsher(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.handler = func(string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Usher-Error", "asleep")
			w.Header().Set("X-Other", "kept")
			if r.URL.Path == "/early" {
				w.WriteHeader(http.StatusEarlyHints)
			}
			if r.URL.Path != "/implicit" {
				w.WriteHeader(503)
			}
		})
	}
	c := start(t, site(f.usher()))
	for _, path := range []string{"/", "/implicit", "/early"} {
		if r := c.get(path); r.header.Get("Usher-Error") != "" || r.header.Get("X-Other") != "kept" {
			t.Errorf("%s: %+v", path, r)
		}
	}
}

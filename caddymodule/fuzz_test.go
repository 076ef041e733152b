package caddymodule

import (
	"bufio"
	"encoding/json"
	"errors"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/caddymodule/admin"
	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler"
)

// FuzzAdmin makes any call of the admin API. It is carried out or refused, as
// JSON; it never fails, shows no secret, and makes no service and no instance
// that the configuration would not allow.
func FuzzAdmin(f *testing.F) {
	const one = "/usher/services/{service}"
	for _, seed := range [][3]string{
		{"GET", "/usher/services", ""},
		{"GET", one, ""},
		{"HEAD", one + "/decisions", ""},
		{"POST", one + "/wake", "{}"},
		{"POST", one + "/sleep", ""},
		{"POST", one + "/suspend", `{"reason":"repairs \u001b[31m\r\n\r\ndata: x"}`},
		{"POST", one + "/resume", "null"},
		{"POST", one + "/restart", " "},
		{"DELETE", one + "/instances/r1-1", ""},
		{"DELETE", one + "/instances/../../x", ""},
		{"POST", "/usher/services/../../etc/wake", `{"command":"sh"}`},
		{"PUT", one, `{"backend":{"type":"process","command":["sh"]}}`},
		{"POST", one + "/suspend", `{"reason":"x","reason":1}`},
		{"POST", one + "/suspend", `[{}]`},
		{"GET", "/usher/events", ""},
		{"GET", "/usher//services/", ""},
		{"POST", one + "/wake/", "\xff"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, method, path, body string) {
		fl, c := fuzzedService(t, "plain", "hush")
		path = strings.ReplaceAll(path, "{service}", fl.name)
		r := (&http.Request{
			Method: method, URL: &url.URL{Path: path}, Header: make(http.Header), Body: io.NopCloser(strings.NewReader(body)),
		}).WithContext(t.Context())
		if strings.HasSuffix(path, "/events") {
			// The stream would go on for as long as the client reads.
			r.Method = http.MethodPost
		}
		w := httptest.NewRecorder()
		err := admin.Admin{}.Routes()[0].Handler.ServeHTTP(w, r)
		switch api, ok := errors.AsType[caddy.APIError](err); {
		case ok && (api.HTTPStatus < 400 || api.HTTPStatus > 499 || strings.Contains(api.Error(), "%!")):
			t.Errorf("status %d: %v", api.HTTPStatus, api)
		case err != nil && !ok:
			t.Errorf("%v", err)
		case err == nil && !json.Valid(w.Body.Bytes()):
			t.Errorf("the answer is %q", w.Body)
		}
		if strings.Contains(w.Body.String(), "hush") {
			t.Errorf("a secret is shown: %s", w.Body)
		}
		for _, s := range hub.Latest.Load().All() {
			if s.Name != fl.name && !strings.HasPrefix(s.Name, "s") {
				t.Errorf("there is a service %s now", s.Name)
			}
		}
		fl.set(func() {
			for _, rev := range fl.revs {
				if rev.Want > 1 {
					t.Errorf("%d instances were ordered", rev.Want)
				}
			}
		})
		_ = c
	})
}

// FuzzReason has a service be suspended for any reason, or fail with any words
// of a platform, and asks for it in every form of answer. None of them is
// anything but what it is meant to be.
func FuzzReason(f *testing.F) {
	for _, seed := range hostile {
		f.Add(seed, seed, true)
		f.Add(seed, seed, false)
	}
	f.Fuzz(func(t *testing.T, short, detail string, suspend bool) {
		if len(short)+len(detail) > answer.MaxBody/2 {
			return
		}
		fl, c := fuzzedService(t, "", "", "error_detail full")
		s := serving(t, fl.name)
		finish := watching(t)
		full := scaler.Readable(short)
		if suspend {
			if err := s.Hub.Suspend(t.Context(), s, short); err != nil {
				t.Fatal(err)
			}
		} else {
			failure := &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: short, Detail: detail}
			full = scaler.Readable(failure.Error())
			fl.set(func() { fl.fail = failure })
		}
		checkForms(t, c, full)
		finish(t, fl.name)
		checkLog(t)
	})
}

// hostile are texts that would do harm where they are taken for more than text.
var hostile = []string{
	"out of memory", "", " ", "%s%n", "{http.request.header.Authorization} {env.HOME} {$HOME}",
	"a\r\nSet-Cookie: x=1\r\n\r\n<html>", "\x1b[2J\x1b]0;title\x07\x9b31m", "</p><script>alert(1)</script><p>", `"><img src=x onerror=alert(1)>`,
	`","code":"ok","detail":"`, "\n\nevent: bye\ndata: {}\n\n", "data: x\rdata: y", "\xff\xfe\xc0\x80\xed\xa0\x80", "\u2028\u2029\u202e\u0085\x00\x7f",
	"{\"level\":\"error\",\"msg\":\"forged\"}\n{\"level\":\"info\"}", "{{.Title}}${jndi:ldap://x}", strings.Repeat("long ", 3000),
}

// fuzzedService starts a service of which nothing stays.
func fuzzedService(t *testing.T, flavour, secret string, options ...string) (*fleet, *config) {
	fl := newFleet(t)
	name := logName(t)
	t.Cleanup(func() {
		logBuffers.Delete(name)
		logNames.Delete(t)
	})
	backend := "backend test " + strings.TrimSpace(fl.name+" "+flavour+" "+secret)
	return fl, start(t, site("usher "+fl.name+" {\n"+backend+"\n"+strings.Join(options, "\n")+"\n}\n"))
}

// checkForms asks in every form, and checks that the answer says full and
// nothing else.
func checkForms(t *testing.T, c *config, full string) {
	t.Helper()
	// In JSON, as in Go's maps, keys are unique: a forged one would show.
	var p map[string]any
	r := c.get("/", "Accept", "application/problem+json")
	if err := json.Unmarshal([]byte(r.body), &p); err != nil || p["detail"] != full || len(p) != 7 {
		t.Errorf("detail %q, want %q: %v in %q", p["detail"], full, err, r.body)
	}
	headers(t, r)

	r = c.get("/", "Accept", "text/html")
	_, rest, _ := strings.Cut(r.body, "</h1><p>")
	shown, _, _ := strings.Cut(rest, "</p>")
	if strings.ContainsAny(shown, "<>\"'") || html.UnescapeString(shown) != full || strings.Count(r.body, "<p>") != 2 {
		t.Errorf("the page shows %q, want %q", shown, full)
	}
	headers(t, r)

	r = c.get("/", "Accept", "text/plain")
	if strings.Count(r.body, "\n") != 1 || scaler.Readable(r.body) != r.body {
		t.Errorf("the line is %q", r.body)
	}
	headers(t, r)
}

// headers checks the headers of an answer of Usher's.
func headers(t *testing.T, r reply) {
	t.Helper()
	if r.status != http.StatusServiceUnavailable || titles[r.header.Get("Usher-Error")] == "" || r.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%d, %v, %v", r.status, r.header, r.err)
	}
	for name, values := range r.header {
		for _, v := range values {
			if strings.ContainsFunc(name+v, unicode.IsControl) || name == "Set-Cookie" {
				t.Errorf("%s: %q", name, v)
			}
		}
	}
}

// watching opens the event stream. The function that it returns reads it, as a
// client does, until the service serves no more.
func watching(t *testing.T) func(t *testing.T, service string) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := (admin.Admin{}).Routes()[0].Handler.ServeHTTP(w, r); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(srv.Close)
	resp, err := srv.Client().Get(srv.URL + "/usher/events")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return func(t *testing.T, service string) {
		t.Helper()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			// A client takes a lone CR for the end of a line, too.
			if strings.Contains(lines.Text(), "\r") {
				t.Errorf("the stream has a line %q", lines.Text())
			}
			data, is := strings.CutPrefix(lines.Text(), "data: ")
			if !is {
				if lines.Text() != "" && !strings.HasPrefix(lines.Text(), "event: ") {
					t.Errorf("the stream has a line %q", lines.Text())
				}
				continue
			}
			var e struct{ Service, To any }
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Errorf("an event is %q", data)
			}
			if e.Service == service && (e.To == "suspended" || e.To == "failing") {
				return
			}
		}
		t.Errorf("the stream ends: %v", lines.Err())
	}
}

// checkLog checks that every line of the log is an entry of its own making.
func checkLog(t *testing.T) {
	t.Helper()
	b := logsOf(logName(t))
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range strings.Lines(b.buf.String()) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil || e["msg"] == "forged" || !utf8.ValidString(line) || strings.ContainsFunc(strings.TrimSuffix(line, "\n"), unicode.IsControl) {
			t.Errorf("the log has a line %q", line)
		}
		if msg, _ := e["msg"].(string); strings.ContainsFunc(msg, unicode.IsControl) {
			t.Errorf("the log has a message %q", msg)
		}
	}
}

package caddymodule

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

func TestPlaceholdersBelongToTheInnermostUsher(t *testing.T) {
	t.Parallel()
	const shown = "{http.usher.service} {http.usher.wait_ms} {http.usher.error}."
	for name, site1 := range map[string]func(outer, inner *fleet) string{
		"in an error route for Usher's own answer": func(outer, inner *fleet) string {
			return "handle_errors {\n" + inner.usher("header_down X-Shown \""+shown+"\"") + "\n}\n" + outer.usher("wake /wake")
		},
		"in an error route for an error of the proxy": func(outer, inner *fleet) string {
			outer.handler = func(string) http.Handler {
				return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
			}
			return "handle_errors {\n" + inner.usher("header_down X-Shown \""+shown+"\"") + "\n}\n" + outer.usher()
		},
		"in a route that handles the answer": func(outer, inner *fleet) string {
			return outer.usher("handle_response {\n" + inner.usher("header_down X-Shown \""+shown+"\"") + "\n}")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			outer, inner := newFleet(t), secondFleet(t)
			c := start(t, site(site1(outer, inner)))
			if r := c.get("/"); r.status != 200 || !strings.HasPrefix(r.header.Get("X-Shown"), inner.name+" ") || !strings.HasSuffix(r.header.Get("X-Shown"), " .") {
				t.Errorf("want those of %s: %+v", inner.name, r)
			}
		})
	}
}

func TestPlaceholdersBelongToTheOuterUsherAgainWhenTheInnerOneHasEnded(t *testing.T) {
	t.Parallel()
	repl := caddy.NewReplacer()
	r := httptest.NewRequest("GET", "/", nil)
	r = r.WithContext(context.WithValue(r.Context(), caddy.ReplacerCtxKey, repl))
	c := start(t, site(newFleet(t).usher()+secondFleet(t).usher()))
	a, b := serving(t, serviceFor(t)), c.app.hub.Service("other."+serviceFor(t)[:min(50, len(serviceFor(t)))])
	h := func(s *hub.Service) *Handler { return &Handler{service: s, shared: &serverShared{}} }
	service := func() string { s, _ := repl.GetString("http.usher.service"); return s }
	outer := newRequest(h(a), a, httptest.NewRecorder(), r, false)
	inner := newRequest(h(b), b, httptest.NewRecorder(), r, false)
	third := newRequest(h(a), a, httptest.NewRecorder(), r, false)
	if service() != a.Name || third.outer != inner {
		t.Errorf("with three: %s", service())
	}
	third.end()
	if service() != b.Name {
		t.Errorf("with two: %s", service())
	}
	inner.end()
	if service() != a.Name {
		t.Errorf("with one: %s", service())
	}
	outer.end()
	if service() != a.Name {
		t.Errorf("for what is logged at the end: %s", service())
	}
}

func TestATrailerOfAnInstanceDoesNotSpeakForUsher(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.handler = func(string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/announced" {
				w.Header().Set("Trailer", "X-Other, Usher-Error")
			}
			_, _ = io.WriteString(w, "body")
			_ = http.NewResponseController(w).Flush() // or it would have a length, and no trailer
			name := http.TrailerPrefix
			if r.URL.Path == "/announced" {
				name = ""
			}
			w.Header().Set(name+"Usher-Error", "asleep")
			w.Header().Set(name+"X-Other", "kept")
		})
	}
	c := start(t, site(f.usher()))
	for _, path := range []string{"/", "/announced"} {
		r, err := http.NewRequest("GET", c.front.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		announced := fmt.Sprint(resp.Trailer)
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if _, ok := resp.Trailer["Usher-Error"]; ok || err != nil || strings.Contains(announced, "Usher-Error") {
			t.Errorf("%s: announced %s, got %v, %v", path, announced, resp.Trailer, err)
		}
		if resp.Trailer.Get("X-Other") != "kept" {
			t.Errorf("%s: %v", path, resp.Trailer)
		}
	}
}

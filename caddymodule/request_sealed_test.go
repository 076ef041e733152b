package caddymodule

import (
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/caddymodule/answer"
)

// deferredHeaders is a `header` block that is carried out when the header of
// the answer is written, because it removes something.
const deferredHeaders = "header {\n-Server\nCache-Control \"public, max-age=600\"\nContent-Security-Policy \"default-src 'self'\"\n" +
	"-Refresh\n-Retry-After\n-Usher-Error\nX-Content-Type-Options none\nX-Site yes\n}\n"

func TestADeferredHeaderBlockDoesNotOverrideUshersOwnAnswers(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		around  string
		options []string
		path    string
		header  []string
		code    string
		policy  string
	}{
		"problem":           {"", []string{"wake /wake"}, "/", nil, "asleep", "default-src 'self'"},
		"small page":        {"", []string{"wake /wake"}, "/", []string{"Accept", "text/html"}, "asleep", "default-src 'none'"},
		"waiting page":      {"", []string{"waiting_page {\nafter 0s\n}"}, "/", person, "waiting_page", "default-src 'none'"},
		"events":            {"", []string{"max_waiting 1", "waiting_page"}, "/", []string{headerWaiting, "1"}, "", ""},
		"with encode":       {"encode\n", []string{"waiting_page {\nafter 0s\n}"}, "/", person, "waiting_page", "default-src 'none'"},
		"with templates":    {"templates\n", []string{"waiting_page {\nafter 0s\n}"}, "/", person, "waiting_page", "default-src 'none'"},
		"with an intercept": {"intercept {\n@missing status 404\nhandle_response @missing {\nrespond no\n}\n}\n", []string{"wake /wake"}, "/", nil, "asleep", "default-src 'self'"},
		"error route":       {"handle_errors {\nrespond sorry\n}\n", []string{"wake /wake"}, "/", nil, "asleep", "default-src 'self'"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			f.manual = true
			c := start(t, site(deferredHeaders+x.around+f.usher(x.options...)))
			ask := func() http.Header {
				r, err := http.NewRequest("GET", c.front.URL+x.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				for k := 0; k+1 < len(x.header); k += 2 {
					r.Header.Set(x.header[k], x.header[k+1])
				}
				resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close() // events go on
				return resp.Header
			}
			h := ask()
			if got := h.Values("Cache-Control"); len(got) != 1 || got[0] != "no-store" {
				t.Errorf("Cache-Control is %q", got)
			}
			if got := h.Get("Usher-Error"); got != x.code {
				t.Errorf("Usher-Error is %q", got)
			}
			if x.code != "" && h.Get("Retry-After") == "" {
				t.Error("Retry-After is gone")
			}
			if got := h.Get("Content-Security-Policy"); !strings.HasPrefix(got, x.policy) {
				t.Errorf("Content-Security-Policy is %q", got)
			}
			if x.code == "waiting_page" && h.Get("Refresh") != "2;url=./" {
				t.Errorf("Refresh is %q", h.Get("Refresh"))
			}
			if got := h.Get("Content-Type"); got == answer.TypeSealed || got == "" {
				t.Errorf("Content-Type is %q", got)
			}
			// What else the site wants is done.
			if h.Get("Server") != "" || h.Get("X-Site") != "yes" {
				t.Errorf("the block is not carried out: %v", h)
			}
		})
	}
}

func TestTheServicesAnswersKeepTheHeadersOfTheSite(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site(deferredHeaders+f.usher("waiting_page")))
	if h := c.get("/", person...).header; h.Get("Cache-Control") != "public, max-age=600" || h.Get("Content-Security-Policy") != "default-src 'self'" {
		t.Errorf("%v", h)
	}
}

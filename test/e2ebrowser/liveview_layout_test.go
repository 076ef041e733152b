package e2ebrowser

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/browser"
	"github.com/caddy-usher/usher/test/harness"
)

var (
	//go:embed testdata/layout.js
	layoutScript string

	// layoutData has services in all states, with the longest names, addresses
	// and numbers that there can be.
	//go:embed testdata/layout.json
	layoutData []byte
)

// crowded serves the page of a real Caddy with services that are made up: what
// the page asks for comes from layoutData.
func crowded(t *testing.T, c *harness.Caddy, path string) string {
	t.Helper()
	var data struct {
		Present json.RawMessage
		Details map[string]json.RawMessage
		Output  json.RawMessage
	}
	if err := json.Unmarshal(layoutData, &data); err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(origin(c))
	if err != nil {
		t.Fatal(err)
	}
	page := httputil.NewSingleHostReverseProxy(target)
	ended := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch {
		case q.Has("stream"):
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprintf(w, "event: present\ndata: %s\n\n", data.Present)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
			case <-ended:
			}
		case q.Has("output") && q.Get("after") != "0":
			_, _ = io.WriteString(w, "[]")
		case q.Has("output"):
			_, _ = w.Write(data.Output)
		case q.Get("format") == "json":
			_, _ = w.Write(data.Details[q.Get("service")])
		default:
			page.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	t.Cleanup(func() { close(ended) })
	return s.URL + path
}

// unfolded opens the page, with what is behind two of the services.
func unfolded(t *testing.T, b *browser.Browser, address string) *browser.Page {
	t.Helper()
	p := b.Open(browser.Visitor{Width: 1280, Height: 900})
	p.Go(address)
	p.Await(soon, `document.querySelectorAll(".service").length == 9`)
	for _, name := range []string{"sockets", "blog.example"} {
		browser.Must[bool](p, `(() => { document.querySelector('[data-name="`+name+`"] h3 button').click(); return true })()`)
	}
	p.Await(soon, `document.querySelectorAll(".detail section").length == 11 && document.querySelectorAll(".written li").length == 12`)
	browser.Must[bool](p, `(() => { `+layoutScript+`; window.look = layout(document); scrollTo(0, 0); return true })()`)
	return p
}

// Nothing of the live view lies over something else or is cut, however wide
// the window is.
func TestTheLiveViewFitsEveryWidth(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: "handle /buttons {\n\tusher_status {\n\t\tcontrol on\n\t}\n}\nhandle /plain {\n\tusher_status\n}"})
	const narrowest, widest = 320, 1920
	for path, step := range map[string]int{"/buttons": 1, "/plain": 23} {
		begun := time.Now()
		p := unfolded(t, b, crowded(t, c, path))
		wrong := make(map[string][]int) // the widths at which it is so
		for width := narrowest; width <= widest; width += step {
			p.Resize(width, 900)
			for _, w := range browser.Must[[]string](p, `look()`) {
				wrong[w] = append(wrong[w], width)
			}
			if len(wrong) > 20 {
				break
			}
		}
		for w, widths := range wrong {
			t.Errorf("%s: at %d widths, from %d to %d: %s", path, len(widths), slices.Min(widths), slices.Max(widths), w)
		}
		if actual := browser.Must[int](p, `innerWidth`); actual < widest-step && len(wrong) == 0 {
			t.Errorf("the window is only %d wide", actual)
		}
		p.WantNoComplaints()
		t.Logf("%s: %s", path, time.Since(begun).Round(time.Millisecond))
	}
}

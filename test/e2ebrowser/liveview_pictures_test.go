package e2ebrowser

import (
	"bufio"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/browser"
	"github.com/caddy-usher/usher/test/harness"
)

// TestLiveViewPictures takes the pictures of README.md and docs/. Everything in them
// runs, but the past hour is made up, to save the time.
func TestLiveViewPictures(t *testing.T) {
	if !*pictures {
		t.Skip("pictures are taken with -pictures")
	}
	c, b := start(t)
	site := "handle /status* {\n\tusher_status {\n\t\tcontrol on\n\t\ttitle \"Services of example.com\"\n\t}\n}\n"
	service := func(name string, args []string, options ...string) {
		site += "handle /" + name + "/* {\nuri strip_prefix /" + name + "\n" + harness.Usher(name, append([]string{c.Backend(args...)}, options...)...) + "\n}\n"
	}
	service("api", nil, "instances 1 4", "concurrency 20", "scale queue")
	service("billing", []string{"-exit-code", "1", "-print", "FATAL: cannot reach the database at 10.0.3.7:5432: connection refused"})
	service("chat", nil, "concurrency unlimited")
	service("images", []string{"-gate", c.Path("never")}, "instances 0 2")
	service("reports", nil)
	service("search", nil, "instances 0 2", "concurrency 4", "scale queue")
	// The floor changes in ten minutes.
	change, form := time.Now().UTC().Add(10*time.Minute), "15:04"
	service("shop", nil, "instances 0 6", "concurrency 8", "scale adaptive",
		"at daily "+change.Add(-12*time.Hour).Format(form)+"-"+change.Format(form)+" UTC {\nmin 4\n}",
		"at daily "+change.Format(form)+"-"+change.Add(2*time.Hour).Format(form)+" UTC {\nmin 2\n}")
	for _, name := range []string{
		"archive", "blog", "calendar", "docs", "exports", "feeds", "forms", "geo", "invoices", "jobs", "kiosk", "legacy-api", "mailer",
		"metrics", "newsletter", "photos", "preview-412", "preview-415", "preview-418", "shortlinks", "staging", "tickets", "tiles", "translate", "webhooks", "wiki",
	} {
		service(name, nil, "instances 0 3")
	}
	c.Start(harness.Config{Site: site})

	var inside []*harness.Pending
	defer func() {
		for _, r := range inside {
			r.Cancel()
		}
	}()
	hold := func(name string, n int) {
		for range n {
			inside = append(inside, c.Send(harness.Request{Path: "/" + name + "/hold?gate=" + c.Path("never")}))
		}
	}
	for _, name := range []string{"blog", "wiki", "mailer", "tickets"} {
		c.Get("/" + name + "/")
	}
	c.Post("blog/sleep", "")
	c.Post("reports/suspend", `{"reason":"moving to the new cluster, back at 18:00"}`)
	for range 3 {
		c.Get("/billing/")
	}
	hold("api", 33)
	hold("chat", 5)
	c.AwaitReady("shop", 4, soon)
	hold("shop", 29)
	hold("search", 11)
	c.AwaitState("billing", "failing", soon)
	c.AwaitWaiting("search", 3)
	hold("images", 2)
	c.AwaitState("images", "waking", soon)

	front := httptest.NewServer(staged(t, c))
	defer front.Close()
	for name, v := range map[string]browser.Visitor{
		"live-view-light":       {Width: 1360, Height: 860},
		"live-view-dark":        {Width: 1360, Height: 860, Dark: true},
		"live-view-phone-light": browser.Phone,
		"live-view-phone-dark":  {Width: browser.Phone.Width, Height: browser.Phone.Height, Phone: true, Dark: true},
	} {
		p := b.Open(v)
		p.Go(front.URL + "/status")
		p.Await(soon, `document.querySelectorAll(".service").length == 33`)
		picture(p, name)
		if strings.HasSuffix(name, "view-light") {
			p.Click("[data-name=shop] h3 button")
			p.Await(soon, `document.querySelector(".detail table") !== null`)
			browser.Must[bool](p, `(() => { document.querySelector("[data-name=shop]").scrollIntoView({block: "center"}); return true })()`)
			picture(p, "live-view-service")
		}
		p.WantNoComplaints()
		p.Close()
	}
}

// staged hands on what Caddy answers, with a past hour for each service that
// runs.
func staged(t *testing.T, c *harness.Caddy) http.Handler {
	to, err := url.Parse(origin(c))
	if err != nil {
		t.Fatal(err)
	}
	return &httputil.ReverseProxy{
		FlushInterval: -1,
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to) },
		ModifyResponse: func(res *http.Response) error {
			kind := res.Header.Get("Content-Type")
			if !strings.HasPrefix(kind, "text/event-stream") && kind != "application/json" {
				return nil
			}
			res.Header.Del("Content-Length")
			res.ContentLength = -1
			body, w := res.Body, io.Writer(nil)
			res.Body, w = io.Pipe()
			go func() {
				lines := bufio.NewScanner(body)
				lines.Buffer(nil, 4<<20)
				for lines.Scan() {
					prefix, data := "", lines.Text()
					if after, ok := strings.CutPrefix(data, "data: "); ok {
						prefix, data = "data: ", after
					}
					var v any
					if json.Unmarshal([]byte(data), &v) == nil {
						remember(v)
						b, _ := json.Marshal(v)
						data = string(b)
					}
					if _, err := fmt.Fprintf(w, "%s%s\n", prefix, data); err != nil {
						break
					}
				}
				_ = w.(io.Closer).Close()
			}()
			return nil
		},
	}
}

// remember gives all services within v a past.
func remember(v any) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			remember(e)
		}
	case map[string]any:
		if targets, ok := v["targets"].([]any); ok && len(targets) > 0 {
			name, most, floor := v["name"].(string), int(v["max"].(float64)), 0
			if _, ok := v["schedule"]; ok {
				floor = 4
				v["floor_list"] = []any{[]int64{scheduledFrom(), 4, 4}}
			}
			v["targets"] = append(past(name, most, floor, 0), targets...)
			if needed, ok := v["needed_list"].([]any); ok {
				v["needed_list"] = append(past(name, most, 0, 1), needed...)
			}
			if predicted, ok := v["predicted_list"].([]any); ok && floor > 0 {
				v["predicted_list"] = append(past(name, most, 0, 2), predicted...)
			}
			return
		}
		for _, e := range v {
			remember(e)
		}
	}
}

// scheduledFrom is when the floor of the schedule began.
func scheduledFrom() int64 {
	return time.Now().Add(-20 * time.Minute).Truncate(15 * time.Second).Unix()
}

// past is an hour that looks like one: the same for the same name. Of what is
// needed or predicted, there are some less now and then; a floor holds since
// scheduledFrom.
func past(name string, most, floor, less int) []any {
	h := fnv.New32()
	_, _ = io.WriteString(h, name)
	seed := h.Sum32()
	var spans []any
	at := time.Now().Add(-70 * time.Minute).Truncate(15 * time.Second).Unix()
	for n := 1; at < time.Now().Add(-time.Minute).Unix(); {
		shown := max(0, n-less*(len(spans)%3))
		if at >= scheduledFrom() {
			shown = max(shown, floor)
		}
		spans = append(spans, []int64{at, int64(shown), int64(shown)})
		seed = seed*1664525 + 1013904223
		at += 15 * int64(4+seed>>24%22)
		seed = seed*1664525 + 1013904223
		n = max(0, min(most, n+int(seed>>24%5)-2))
	}
	return spans
}

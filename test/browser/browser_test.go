package browser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve is a site with pages of all kinds.
func serve(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		const icon = `<link rel="icon" href="data:,">`
		switch r.URL.Path {
		case "/fine":
			fmt.Fprintf(w, `%s<title>Fine</title><p>Accept-Language: %s</p><script>document.body.append("scripts run")</script>`, icon, r.Header.Get("Accept-Language"))
		case "/errors":
			fmt.Fprint(w, icon+`<script>console.error("what", 42); nowhere()</script>`)
		case "/policy":
			w.Header().Set("Content-Security-Policy", "default-src 'none'; img-src data:")
			fmt.Fprint(w, icon+`<style>p{color:red}</style><p>plain</p>`)
		case "/foreign":
			fmt.Fprint(w, icon+`<img src="http://elsewhere.example/x.png">`)
		case "/busy":
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, icon+`busy`)
		case "/private":
			if user, password, _ := r.BasicAuth(); user != "ann" || password != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			fmt.Fprint(w, icon+`welcome`)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// await waits for what the browser tells a moment after the page is loaded.
func await(t *testing.T, cond func() bool, what string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not on record: %s", what)
		}
	}
}

func TestWhatAPageDoesIsOnRecord(t *testing.T) {
	site, b := serve(t), New(t)

	t.Run("nothing to complain of", func(t *testing.T) {
		p := b.Open(Visitor{Language: "fr"})
		p.Go(site + "/fine#part")
		if text := p.Text(); !strings.Contains(text, "fr") || !strings.Contains(text, "scripts run") {
			t.Errorf("the page says %q", text)
		}
		if p.URL() != site+"/fine#part" {
			t.Errorf("the address is %s", p.URL())
		}
		p.WantNoComplaints()
		p.WantOnlyOrigin(site)
		if r := p.Requests(); len(r) == 0 || r[0].URL != site+"/fine#part" || r[0].Status != 200 || r[0].Type != "Document" {
			t.Errorf("requests: %+v", r)
		}
	})
	t.Run("errors of scripts", func(t *testing.T) {
		p := b.Open(Visitor{})
		p.Go(site + "/errors")
		await(t, func() bool { return len(p.Complaints()) == 2 }, "an error and an exception")
	})
	t.Run("violations of the policy", func(t *testing.T) {
		p := b.Open(Visitor{})
		p.Go(site + "/policy")
		await(t, func() bool {
			for _, c := range p.Complaints() {
				if c.Source == sourcePolicy {
					return true
				}
			}
			return false
		}, "a violation")
	})
	t.Run("requests to others", func(t *testing.T) {
		p := b.Open(Visitor{})
		p.Go(site + "/foreign")
		await(t, func() bool {
			for _, r := range p.Requests() {
				if strings.HasPrefix(r.URL, "http://elsewhere.example/") {
					return true
				}
			}
			return false
		}, "a request to another origin")
	})
	t.Run("statuses that are expected", func(t *testing.T) {
		p := b.Open(Visitor{})
		p.Go(site + "/busy")
		await(t, func() bool { return len(p.Complaints()) == 1 }, "a complaint of the status")
		p.WantNoComplaints(http.StatusServiceUnavailable)
	})
}

func TestVisitorsDiffer(t *testing.T) {
	site, b := serve(t), New(t)

	p := b.Open(Visitor{NoScript: true})
	p.Go(site + "/fine")
	if strings.Contains(p.Text(), "scripts run") {
		t.Error("JavaScript is off, and the page's script has run")
	}
	p = b.Open(Visitor{User: "ann", Password: "secret"})
	p.Go(site + "/private")
	if !strings.Contains(p.Text(), "welcome") {
		t.Errorf("with the password: %q", p.Text())
	}
	p = b.Open(Visitor{Dark: true, Phone: true, Width: 390, Height: 844})
	p.Go(site + "/fine")
	if !Must[bool](p, `matchMedia("(prefers-color-scheme: dark)").matches && innerWidth < 1000 && devicePixelRatio == 3`) {
		t.Error("neither dark nor a phone")
	}
	picture := t.TempDir() + "/picture.png"
	p.Screenshot(picture)
	if b, err := os.ReadFile(picture); err != nil || !strings.HasPrefix(string(b), "\x89PNG") {
		t.Errorf("no picture: %v", err)
	}
}

func TestAMissingBrowserIsAFailureWhereItIsRequired(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv(Variable, required)
	if path, err := find(); err == nil {
		t.Errorf("found %s, where there is none", path)
	}
	for value, want := range map[string]string{"": "skipped", required: "failed"} {
		t.Setenv(Variable, value)
		r := &recorder{TB: t, done: make(chan struct{})}
		go func() {
			defer close(r.done)
			New(r)
		}()
		<-r.done
		if r.end != want {
			t.Errorf("with %s=%q a test is %s, want %s", Variable, value, r.end, want)
		}
	}
}

// recorder is a test whose end is written down instead of carried out.
type recorder struct {
	testing.TB
	done chan struct{}
	end  string
}

func (r *recorder) Fatal(...any) { r.stop("failed") }
func (r *recorder) Skip(...any)  { r.stop("skipped") }

func (r *recorder) stop(end string) {
	r.end = end
	runtime.Goexit()
}

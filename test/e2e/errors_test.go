package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

// refusals are the ways to each code that one service can give.
var refusals = map[string]struct {
	args    []string
	options []string
	prepare func(*harness.Caddy)
}{
	"queue_full":   {args("-never-listen"), []string{"max_waiting 0"}, nil},
	"wait_timeout": {args("-never-listen"), []string{"wait_timeout 100ms"}, nil},
	"asleep":       {nil, []string{"wake /wake"}, nil},
	"suspended": {nil, nil, func(c *harness.Caddy) {
		c.Post("web/suspend", `{"reason":"moving house"}`)
	}},
}

func TestEveryRefusalIsA503ThatSaysWhyAndWhenToComeBack(t *testing.T) {
	for code, f := range refusals {
		t.Run(code, func(t *testing.T) {
			c := newCaddy(t)
			c.Start(web(c, f.args, f.options...))
			if f.prepare != nil {
				f.prepare(c)
			}
			r, p := askProblem(t, c, "/")
			wantRefusal(t, r, code)
			if p.Status != 503 || p.Code != code || p.Service != "web" || p.Title == "" || p.Detail == "" ||
				p.RetryAfter < 1 || p.WaitedMS == nil {
				t.Errorf("problem: %s", r.Body)
			}
			if code == "wait_timeout" && *p.WaitedMS < 100 {
				t.Errorf("waited_ms is %v after a wait of 100 ms", *p.WaitedMS)
			}
			if code == "suspended" && !strings.Contains(p.Detail, "moving house") {
				t.Errorf("the operator's words are not in %q", p.Detail)
			}
		})
	}
}

func TestStartThatCannotSucceedIsToldAtOnce(t *testing.T) {
	c := newCaddy(t)
	startVanished(t, c, "")
	r, p := askProblem(t, c, "/")
	wantRefusal(t, r, "start_failed")
	if r.Took > harness.Slow(atOnce) {
		t.Errorf("the answer came after %s", r.Took)
	}
	if p.Code != "start_failed" || p.Detail == "" {
		t.Errorf("problem: %s", r.Body)
	}
	if s := c.Service("web"); s.State != "failing" || s.LastError == nil {
		t.Errorf("state %s, last error %v", s.State, s.LastError)
	}
}

func TestErrorsComeInTheFormThatTheClientReads(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "wake /wake"))
	for accept, want := range map[string]string{
		"application/problem+json": "application/problem+json",
		"application/json":         "application/",
		"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": "text/html",
		"text/plain": "text/plain",
	} {
		r := c.Do(harness.Request{Header: http.Header{"Accept": {accept}}})
		wantRefusal(t, r, "asleep")
		if got := r.Header.Get("Content-Type"); !strings.HasPrefix(got, want) {
			t.Errorf("Accept: %s is answered with %q", accept, got)
		}
		if strings.TrimSpace(r.Body) == "" {
			t.Errorf("Accept: %s is answered with nothing", accept)
		}
		if want == "text/html" && !strings.Contains(strings.ToLower(r.Body), "<html") {
			t.Errorf("a page for browsers: %s", r.Body)
		}
		if want == "text/plain" && strings.Count(strings.TrimSpace(r.Body), "\n") > 0 {
			t.Errorf("more than a line: %q", r.Body)
		}
	}
	if r := c.Do(harness.Request{Method: http.MethodHead}); r.Status != 503 || r.Body != "" || r.UsherError() != "asleep" {
		t.Errorf("HEAD: %+v", r)
	}
}

func TestHandleErrorsOfTheSiteComesFirst(t *testing.T) {
	c := newCaddy(t)
	cfg := web(c, nil, "wake /wake")
	cfg.Site += "\nhandle_errors {\n\trespond \"{http.usher.service}|{http.usher.error}|{http.usher.retry_after}|{err.status_code}\" 503\n}"
	c.Start(cfg)
	r := c.Get("/")
	wantRefusal(t, r, "asleep")
	if after := r.Header.Get("Retry-After"); r.Body != "web|asleep|"+after+"|503" {
		t.Errorf("the page of the site is %q", r.Body)
	}
}

func TestErrorRoutesThatAreNotMeantLeaveTheAnswerToUsher(t *testing.T) {
	c := newCaddy(t)
	_, port, _ := strings.Cut(c.Addr, ":")
	wrong := "handle_errors {\n\trespond \"wrong page\" 503\n}"
	c.Start(harness.Config{
		Site: harness.Usher("web", c.Backend(), "wake /wake") + "\nhandle_errors 404 {\n\trespond \"wrong page\" 404\n}",
		Sites: "http://other.example:" + port + " {\n\trespond ok\n" + wrong + "\n}\n" +
			"http://plain.example:" + port + " {\n\tusher web {\n\t\twake /wake\n\t}\n}\n",
	})
	for name, host := range map[string]string{"another status": "", "another site": "plain.example"} {
		r := c.Do(harness.Request{Host: host, Header: http.Header{"Accept": {"text/plain"}}})
		wantRefusal(t, r, "asleep")
		if strings.Contains(r.Body, "wrong") || strings.TrimSpace(r.Body) == "" {
			t.Errorf("%s: %q", name, r.Body)
		}
	}
}

func TestInstanceCannotSpeakInUshersName(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil))
	r := c.Get("/usher-error")
	wantOK(t, r)
	if got, ok := r.Header["Usher-Error"]; ok {
		t.Errorf("Usher-Error %q of the instance has passed", got)
	}
}

func TestErrorDetailTellsClientsTheClassUnlessToldOtherwise(t *testing.T) {
	for _, level := range []string{"short", "full"} {
		t.Run(level, func(t *testing.T) {
			c := newCaddy(t)
			program := startVanished(t, c, "handle /page* {\n\tusher web\n}\n"+
				"handle_errors {\n\t@page path /page*\n\trespond @page {http.usher.error.detail} 503\n}", "error_detail "+level)
			r, p := askProblem(t, c, "/")
			wantRefusal(t, r, "start_failed")
			if got, want := strings.Contains(p.Detail, program), level == "full"; got != want {
				t.Errorf("the detail is %q", p.Detail)
			}
			// A page of the site's own may always say it.
			if page := c.Get("/page"); !strings.Contains(page.Body, program) {
				t.Errorf("{http.usher.error.detail} is %q", page.Body)
			}
			if !strings.Contains(c.RawLog(), program) {
				t.Error("the log does not name the program")
			}
		})
	}
}

func TestG11_MaxWaitingLimitsTheLine(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-gate", c.Path("gate")), "max_waiting 3"))
	burst := c.Burst("web", 3, "/")
	wantRefusal(t, c.Get("/"), "queue_full")
	c.Open("gate")
	wantAllOK(t, burst.Wait(t, soon))
	wantOK(t, c.Get("/"))
}

func TestG11_MaxWaitingLimitsAllLinesTogether(t *testing.T) {
	c := newCaddy(t)
	backend := c.Backend("-gate", c.Path("gate"))
	c.Start(harness.Config{
		Usher: "max_waiting 3",
		Site: "handle /b* {\n" + harness.Usher("b", backend) + "\n}\n" +
			"handle {\n" + harness.Usher("web", backend) + "\n}",
	})
	web, b := c.Burst("web", 2, "/"), c.Burst("b", 1, "/b")
	wantRefusal(t, c.Get("/"), "queue_full")
	wantRefusal(t, c.Get("/b"), "queue_full")
	c.Open("gate")
	wantAllOK(t, web.Wait(t, soon))
	wantAllOK(t, b.Wait(t, soon))
}

func TestWaitTimeoutBelongsToThePlace(t *testing.T) {
	c := newCaddy(t)
	c.Start(harness.Config{
		Site: "handle /quick* {\n\tusher web {\n\t\twait_timeout 100ms\n\t}\n}\n" +
			"handle {\n" + webBlock(c, args("-gate", c.Path("gate"))) + "\n}",
	})
	patient := c.Send(harness.Request{})
	wantRefusal(t, c.Get("/quick"), "wait_timeout")
	if patient.Done() {
		t.Error("the other place has a wait_timeout of a minute")
	}
	c.Open("gate")
	wantOK(t, patient.Wait(t, soon))
}

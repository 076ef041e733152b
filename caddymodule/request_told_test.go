package caddymodule

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler/control"
)

func TestARequestThatTimesOutBecauseAStartDoesNotBecomeReadyIsToldWhy(t *testing.T) {
	t.Parallel()
	for _, detail := range []string{"short", "full"} {
		f := newFleetNamed(t, "told-why-"+detail)
		f.manual = true
		c := start(t, site(f.usher("wait_timeout 1500ms", "error_detail "+detail)))
		wait := c.begin("GET", "/", "")
		f.ordered(1)
		address := deaf(t)
		f.at("tcp", address, func() {})
		r := wait()
		if r.status != 503 || r.header.Get("Usher-Error") != "start_failed" || r.header.Get("Retry-After") == "" ||
			!strings.Contains(r.body, "held for 1.5") || !strings.Contains(r.body, "it refuses connections") {
			t.Errorf("%s: %+v", detail, r)
		}
		if strings.Contains(r.body, address) != (detail == "full") {
			t.Errorf("%s: the probe's own words: %s", detail, r.body)
		}
		c.end()
	}
}

func TestARequestThatTimesOutAfterFailedStartsIsToldTheReason(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("wait_timeout 500ms")))
	wait := c.begin("GET", "/", "")
	f.ordered(1)
	f.die(f.at("tcp", "127.0.0.1:1", func() {}))
	if r := wait(); r.header.Get("Usher-Error") != "start_failed" || !strings.Contains(r.body, "exit status 1") || strings.Contains(r.body, "secret") {
		t.Errorf("%+v", r)
	}
}

func TestARequestThatTimesOutForWantOfASlotIsAWaitTimeout(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	inside, leave := make(chan struct{}, 1), make(chan struct{})
	f.handler = func(string) http.Handler {
		return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { inside <- struct{}{}; <-leave })
	}
	c := start(t, site(f.usher("concurrency 1", "wait_timeout 300ms")))
	first := c.begin("GET", "/", "")
	<-inside
	if r := c.get("/"); r.header.Get("Usher-Error") != "wait_timeout" {
		t.Errorf("%+v", r)
	}
	close(leave)
	first()
}

// stateOf is what the waiting page would be told now.
func stateOf(t *testing.T, f *fleet, language string) PageData {
	t.Helper()
	s := serving(t, f.name)
	return look(s, translationFor(language), nil, &request{service: s}, nil)
}

func TestTheWaitingPageTellsOfFailedAttemptsWhileTheNextRuns(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("waiting_page {\nafter 0s\n}")))
	if r := c.get("/x", person...); strings.Contains(r.body, "attempt failed") {
		t.Fatalf("before any attempt: %s", r.body)
	}
	status := func() control.StartStatus { return serving(t, f.name).Loop.Status().Start }
	f.ordered(1)
	id := f.at("tcp", deaf(t), func() {})
	for n, what := range []string{"", "1 attempt failed: exit status 1", "2 attempts failed: exit status 1"} {
		if n == 0 {
			continue
		}
		f.die(id)
		eventually(t, what, func() bool { return status().Failed == n })
		// In the pause before the next one, and while that one runs.
		r := c.get("/x", person...)
		if r.header.Get("Usher-Error") != "waiting_page" || !strings.Contains(r.body, what) || strings.Contains(r.body, "secret") ||
			!strings.Contains(r.body, "It is tried again in") {
			t.Fatalf("after %d: %s", n, r.body)
		}
		eventually(t, "the end of the pause", func() bool { return status().Next.IsZero() })
		id = f.at("tcp", deaf(t), func() {})
		eventually(t, "the next start", func() bool { return !status().Since.IsZero() })
		if r := c.get("/x", person...); !strings.Contains(r.body, what) || strings.Contains(r.body, "tried again") {
			t.Fatalf("while the next runs: %s", r.body)
		}
		for language, want := range map[string]string{"de": "Versuch", "fr": "tentative", "es": "intento", "zh": "尝试失败"} {
			got := stateOf(t, f, language)
			if got.Attempts != n || !strings.Contains(got.Reason, want) || !strings.Contains(got.Reason, "exit status 1") ||
				!strings.Contains(got.Reason, strconv.Itoa(n)) {
				t.Errorf("%s: %+v", language, got)
			}
		}
	}
	f.die(id)
	eventually(t, "the failure", func() bool { return status().Failed == 3 })
	if r := c.get("/x", person...); r.header.Get("Usher-Error") != "start_failed" || !strings.Contains(r.body, "3 attempts failed: exit status 1") {
		t.Errorf("when it is failing: %s", r.body)
	}
}

func TestAListeningPageIsToldOfEachFailedAttemptAtOnce(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("waiting_page")))
	r, err := http.NewRequest(http.MethodGet, c.front.URL+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(headerWaiting, "1")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	events := statesOf(t, resp)
	f.ordered(1)
	failed := time.Now()
	f.die(f.at("tcp", deaf(t), func() {}))
	for end := time.After(patience); ; {
		select {
		case e := <-events:
			if e["reason"] == "1 attempt failed: exit status 1" && e["attempts"] == 1.0 && e["waiting"] == true {
				if d := time.Since(failed); d > lookAgain/2 {
					t.Errorf("told after %v", d)
				}
				return
			}
		case <-end:
			t.Fatal("nothing is told")
		}
	}
}

// statesOf decodes the states that a waiting page is told.
func statesOf(t *testing.T, resp *http.Response) <-chan map[string]any {
	t.Helper()
	events := make(chan map[string]any, 100)
	go func() {
		var text string
		buf := make([]byte, 4<<10)
		for {
			n, err := resp.Body.Read(buf)
			text += string(buf[:n])
			for {
				one, rest, ok := strings.Cut(text, "\n\n")
				if !ok {
					break
				}
				text = rest
				if _, data, ok := strings.Cut(one, "data: "); ok {
					var e map[string]any
					if json.Unmarshal([]byte(data), &e) == nil {
						events <- e
					}
				}
			}
			if err != nil {
				return
			}
		}
	}()
	return events
}

func TestTheAdminAPITellsHowStartsGo(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher()))
	s := serving(t, f.name)
	if s.Summary().Start != nil {
		t.Errorf("asleep: %+v", s.Summary().Start)
	}
	wait := c.begin("GET", "/", "")
	f.ordered(1)
	id := f.at("tcp", deaf(t), func() {})
	if st := s.Summary().Start; st == nil || st.Since == nil || st.Failed != 0 || st.Attempts != 3 {
		t.Errorf("starting: %+v", st)
	}
	f.die(id)
	if st := s.Summary().Start; st == nil || st.Since != nil || st.Failed != 1 || st.NextAt == nil || !strings.Contains(st.LastError, "secret output line") {
		t.Errorf("failed: %+v", st)
	}
	f.up()
	f.ready(1)
	wait()
}

func TestAllDurationsOfAServiceAreShownInOneForm(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	start(t, site(f.usher("ready http / {\ninterval 50ms\n}", "start_timeout 90s", "scale queue {\ndown_window 30s\n}")))
	details, err := serving(t, f.name).Details(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"idle_timeout":"5m0s"`, `"start_timeout":"1m30s"`, `"drain_timeout":"30s"`, `"stop_timeout":"10s"`,
		`"interval":"50ms"`, `"timeout":"5s"`, `"scale":{"policy":"queue"`, `"down_window":"30s"`,
	} {
		if !strings.Contains(string(details.Config), want) {
			t.Errorf("%s is missing in %s", want, details.Config)
		}
	}
	// It can be read as a configuration again.
	var s hub.ServiceConfig
	if err := json.Unmarshal(details.Config, &s); err != nil || time.Duration(s.StartTimeout) != 90*time.Second {
		t.Errorf("%v, %v", err, time.Duration(s.StartTimeout))
	}
}

package caddymodule

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/caddy-usher/usher/scaler"
)

// traced serves the configuration as behind Caddy's `tracing`.
func traced(t *testing.T, text string) (*config, *tracetest.SpanRecorder) {
	t.Helper()
	c := provision(t, text)
	if err := c.app.Start(); err != nil {
		t.Fatal(err)
	}
	rec := tracetest.NewSpanRecorder()
	tracer := trace.NewTracerProvider(trace.WithSpanProcessor(rec)).Tracer("test")
	c.front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, span := tracer.Start(r.Context(), "request "+r.URL.Path)
		defer span.End()
		c.server.ServeHTTP(w, r.WithContext(ctx))
	}))
	return c, rec
}

// ended waits until so many spans of the name have ended, and returns them.
func ended(t *testing.T, rec *tracetest.SpanRecorder, name string, n int) []trace.ReadOnlySpan {
	t.Helper()
	var found []trace.ReadOnlySpan
	eventually(t, "the spans "+name, func() bool {
		found = slices.DeleteFunc(rec.Ended(), func(s trace.ReadOnlySpan) bool { return s.Name() != name })
		return len(found) == n
	})
	return found
}

func attributes(s trace.ReadOnlySpan) map[string]string {
	all := make(map[string]string)
	for _, a := range s.Attributes() {
		all[string(a.Key)] = a.Value.String()
	}
	return all
}

func TestATraceShowsTheWaitAndTheColdStartOfWhichAllAreWaiting(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c, rec := traced(t, site(f.usher()))
	one := c.begin("GET", "/one", "")
	f.ordered(1)
	two := c.begin("GET", "/two", "")
	eventually(t, "both to wait", func() bool { return serving(t, f.name).Reserver.Stats().Waiting == 2 })
	f.up()
	instance := one().header.Get("X-Instance")
	two()

	waits, start := ended(t, rec, "usher.wait", 2), ended(t, rec, "usher.cold_start", 1)[0]
	linked, below := 0, 0
	for _, w := range waits {
		if a := attributes(w); a["usher.service"] != f.name || a["usher.outcome"] != "granted" || a["usher.instance"] != instance || a["usher.cold"] != "true" {
			t.Errorf("the wait has the attributes %v", a)
		}
		if start.Parent().SpanID() == w.SpanContext().SpanID() {
			below++
		}
		for _, l := range w.Links() {
			if l.SpanContext.Equal(start.SpanContext()) {
				linked++
			}
		}
	}
	if linked != 1 || below != 1 {
		t.Errorf("of two waits %d are linked to the cold start, and %d above it; want one each", linked, below)
	}
	if a := attributes(start); a["usher.service"] != f.name || a["usher.outcome"] != "ready" || a["usher.instance"] != instance {
		t.Errorf("the cold start has the attributes %v", a)
	}
	var end time.Time
	for _, step := range []string{"usher.schedule", "usher.start", "usher.probe"} {
		s := ended(t, rec, step, 1)[0]
		if s.Parent().SpanID() != start.SpanContext().SpanID() {
			t.Errorf("%s does not belong to the cold start", step)
		}
		if s.EndTime().Before(s.StartTime()) || !end.IsZero() && !s.StartTime().Equal(end) {
			t.Errorf("%s lasts from %v to %v, after %v", step, s.StartTime(), s.EndTime(), end)
		}
		end = s.EndTime()
	}

	if r := c.get("/warm"); r.status != 200 {
		t.Fatalf("%+v", r)
	}
	ended(t, rec, "request /warm", 1)
	ended(t, rec, "usher.wait", 2) // a request that does not wait has no span
}

func TestATraceShowsWhatAStartThatFailedWasWaitedForInVain(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.fail = &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "no such command"}
	c, rec := traced(t, site(f.usher()))
	if r := c.get("/"); r.status != 503 {
		t.Fatalf("%+v", r)
	}
	wait, start := ended(t, rec, "usher.wait", 1)[0], ended(t, rec, "usher.cold_start", 1)[0]
	for _, s := range []trace.ReadOnlySpan{wait, start} {
		if a := attributes(s); a["usher.outcome"] != "start_failed" || s.Status().Code != codes.Error {
			t.Errorf("%s: %v, status %v", s.Name(), a, s.Status())
		}
	}
	if len(start.Events()) != 1 || start.Events()[0].Name != "start failed" {
		t.Errorf("the failed start is no event of the cold start: %v", start.Events())
	}
}

func TestATraceGoesOnWithTheStartWhenItsRequestWaitsInTheBrowser(t *testing.T) {
	t.Parallel()
	browser := []string{"Accept", "text/html", "Sec-Fetch-Mode", "navigate"}
	f := newFleet(t)
	f.manual = true
	c, rec := traced(t, site(f.usher("waiting_page {\nafter 0s\n}")))
	if r := c.get("/", browser...); r.header.Get("Usher-Error") != "waiting_page" {
		t.Fatalf("%+v", r)
	}
	wait := ended(t, rec, "usher.wait", 1)[0]
	if a := attributes(wait); a["usher.outcome"] != "waiting_page" || wait.Status().Code == codes.Error {
		t.Errorf("the wait has the attributes %v and the status %v", a, wait.Status())
	}
	f.ordered(1)
	again := c.begin("GET", "/", "", browser...)
	again() // gets the page once more
	if again := ended(t, rec, "usher.wait", 2)[1]; len(again.Links()) != 1 {
		t.Errorf("the second request is linked to %v, want the cold start", again.Links())
	}
	f.up()
	start := ended(t, rec, "usher.cold_start", 1)[0]
	if a := attributes(start); a["usher.outcome"] != "ready" || start.Status().Code == codes.Error || start.Parent().SpanID() != wait.SpanContext().SpanID() {
		t.Errorf("the cold start has the attributes %v and the status %v", a, start.Status())
	}
	ended(t, rec, "usher.probe", 1)
}

func TestATraceOfAStartThatTheBrowserWaitsForInVainEndsWithTheService(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c, rec := traced(t, site(f.usher("waiting_page {\nafter 0s\n}")))
	c.get("/", "Accept", "text/html", "Sec-Fetch-Mode", "navigate")
	f.ordered(1)
	serving(t, f.name).Loop.Suspend("moving house")
	start := ended(t, rec, "usher.cold_start", 1)[0]
	if a := attributes(start); a["usher.outcome"] != "suspended" || start.Status().Code != codes.Error {
		t.Errorf("the cold start has the attributes %v and the status %v", a, start.Status())
	}
}

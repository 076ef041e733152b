package caddymodule

import (
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler/control"
)

func TestAVeryLongListOfPreferencesCostsNoMoreThanAShortOne(t *testing.T) {
	for name, x := range map[string]struct{ header, first, more string }{
		"Accept":          {"Accept", "text/html", ",application/x;q=0.5"},
		"Accept-Language": {"Accept-Language", "de", ",x-y;q=0.5"},
	} {
		t.Run(name, func(t *testing.T) {
			cost := func(values ...string) float64 {
				r := httptest.NewRequest("GET", "/", nil)
				r.Header[x.header] = values
				return testing.AllocsPerRun(3, func() {
					if !navigates(r) && x.header == "Accept" {
						t.Error("it is a browser all the same")
					}
					if translationFor(answer.Preferences(r.Header, "Accept-Language")).language != "de" && x.header != "Accept" {
						t.Error("it speaks German all the same")
					}
				})
			}
			short := cost(x.first + strings.Repeat(x.more, answer.PreferencesMax/len(x.more)))
			long := cost(x.first + strings.Repeat(x.more, 1<<20/len(x.more)))
			many := cost(append([]string{x.first}, strings.Split(strings.Repeat(x.more[1:]+" ", 1<<15), " ")...)...)
			if long > 2*short+20 || many > 2*short+20 {
				t.Errorf("%v allocations for a megabyte, %v for many lines, %v for a kilobyte", long, many, short)
			}
		})
	}
}

func TestNoPreferenceIsCutInHalf(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		values []string
		want   string
	}{
		{nil, ""},
		{[]string{"a,b"}, "a,b"},
		{[]string{"a", "b"}, "a,b"},
		{[]string{strings.Repeat("x", answer.PreferencesMax+1)}, ""},
		{[]string{"a;q=1," + strings.Repeat("x", answer.PreferencesMax)}, "a;q=1"},
		{[]string{"a", strings.Repeat("x", answer.PreferencesMax)}, "a,"},
		{[]string{strings.Repeat("x", answer.PreferencesMax), "b", "c"}, strings.Repeat("x", answer.PreferencesMax) + ","},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["Accept"] = x.values
		if got := answer.Preferences(r.Header, "Accept"); got != x.want || len(got) > answer.PreferencesMax+1 {
			t.Errorf("%.40q: %.40q", x.values, got)
		}
	}
}

// A stream lasts as long as its client likes, and says nothing of how long
// others have to wait for a slot.
func TestAStreamIsNoMeasureOfServiceTime(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		status      int
		contentType string
		counts      bool
	}{
		"a page":       {200, "text/html", true},
		"events":       {200, "text/event-stream; charset=utf-8", false},
		"a connection": {101, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleetNamed(t, serviceFor(t))
			f.manual = true
			start(t, site(f.usher()))
			s := serving(t, f.name)
			q := newRequest(&Handler{service: s, shared: &serverShared{}}, s, httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil), false)
			q.granted = time.Now().Add(-3 * time.Hour)
			q.writer.Header().Set("Content-Type", x.contentType)
			if x.status == 101 {
				q.writer.ResponseWriter = httptest.NewRecorder()
				q.writer.streams, q.writer.wrote = false, false
			}
			q.writer.WriteHeader(x.status)
			q.end()
			if counted := s.Loop.ServiceTime() != 0; counted != x.counts {
				t.Errorf("counted: %v", counted)
			}
		})
	}
}

func TestRetryAfterIsNoLongerThanTheQueueCanLast(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("concurrency 1", "wait_timeout 20s", "max_waiting 3")))
	s := serving(t, f.name)
	s.Loop.Served(3 * time.Hour)
	waits := make([]func() reply, 3)
	for k := range waits {
		waits[k] = c.begin("GET", "/", "")
	}
	f.waiting(3)
	r := c.get("/")
	// A start that was never measured takes a second.
	if after, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || after < 20 || after > 21 {
		t.Errorf("%+v", r)
	}
	f.up()
	for range waits {
		f.ready(1)
	}
	for _, w := range waits {
		w()
	}
}

func TestRetryAfterOfAServiceThatNobodyWakesIsNoSecond(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("wake /wake")))
	if r := c.get("/"); r.header.Get("Usher-Error") != codeAsleep || r.header.Get("Retry-After") != "30" {
		t.Errorf("asleep: %+v", r)
	}
	wake := c.begin("GET", "/wake", "")
	f.ordered(1)
	if r := c.get("/"); r.header.Get("Usher-Error") != codeAsleep || r.header.Get("Retry-After") != "1" {
		t.Errorf("asleep, but a start is in progress: %+v", r)
	}
	f.up()
	wake()
	s := serving(t, f.name)
	s.Loop.Suspend("moving house")
	if r := c.get("/"); r.header.Get("Usher-Error") != codeSuspended || r.header.Get("Retry-After") != "60" {
		t.Errorf("suspended: %+v", r)
	}
}

func TestAnUnknownTimeOfTheNextTryIsNoSecond(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	start(t, site(f.usher()))
	q := &request{service: serving(t, f.name)}
	for kind, want := range map[control.RefusalKind]int{
		control.RefusedPlatform: 10, control.RefusedFailing: 10, control.RefusedSuspended: 60, control.RefusedExiting: 1,
	} {
		if q.explain(&control.Refusal{Kind: kind}); q.why.retryAfter != want {
			t.Errorf("%v: %d s, want %d", kind, q.why.retryAfter, want)
		}
	}
	q.explain(&control.Refusal{Kind: control.RefusedFailing, Until: time.Now().Add(3 * time.Second)})
	if q.why.retryAfter != 3 {
		t.Errorf("%d s until the next try in 3 s", q.why.retryAfter)
	}
}

func TestMaxWaitingOfZeroIsNotCalledTooMany(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		global, option string
		zero           bool
	}{
		"of the service":  {"", "max_waiting 0", true},
		"a limit reached": {"", "max_waiting 1", false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			f.manual = true
			c := start(t, site(f.usher("concurrency 1", x.option, "waiting_page {\nafter 0s\n}")))
			s := serving(t, f.name)
			if !x.zero {
				holding := c.begin("GET", "/", "")
				defer func() { f.up(); holding() }()
				f.waiting(1)
			}
			r := c.get("/")
			if r.status != 503 || r.header.Get("Usher-Error") != codeQueueFull {
				t.Fatalf("%+v", r)
			}
			if many := strings.Contains(r.body, "Too many") || strings.Contains(r.body, "line is full"); many == x.zero {
				t.Errorf("%s", r.body)
			}
			if !x.zero {
				return
			}
			if !strings.Contains(r.body, "max_waiting is 0") || !strings.Contains(r.body, titleNotReady) {
				t.Errorf("%s", r.body)
			}
			if page := c.get("/", person...); strings.Contains(page.body, english.status[codeQueueFull]) || !strings.Contains(page.body, english.status[stateStarting]) {
				t.Errorf("%s", page.body)
			}
			f.ordered(1)
			f.up()
			f.ready(1)
			inside := new(reserver.Reservation)
			if ok, err := s.Reserver.Reserve(inside, reserver.Ask{}); !ok || err != nil {
				t.Fatal(ok, err)
			}
			defer inside.Release(reserver.Neutral)
			if r := c.get("/"); !strings.Contains(r.body, titleNotHeld) {
				t.Errorf("%s", r.body)
			}
		})
	}
}

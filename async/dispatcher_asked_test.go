package async_test

import (
	"net/http"
	"net/http/httptrace"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/caddy-usher/usher/async"
)

// job is an instance that answers 202 and has the result later.
func job(w *world, polls int, log *[]string) {
	w.slots = make(chan struct{}, 100)
	w.setSlots(1)
	left := polls
	w.answer = func(r *http.Request, _ string) (*http.Response, error) {
		*log = append(*log, r.Method+" "+r.URL.RequestURI())
		if len(w.slots) != 0 {
			w.Error("the slot is free while the instance is asked")
		}
		switch {
		case r.Method == http.MethodPost:
			return respond(202, "", "Location", "status/1?a=b"), nil
		case r.Method == http.MethodDelete:
			return respond(204, ""), nil
		case r.URL.Path == "/result":
			return respond(200, "the result"), nil
		case left > 0:
			left--
			return respond(200+left%2*2, "", "Usher-Progress", strconv.Itoa(10*left)), nil
		}
		return respond(303, "", "Location", "http://example.com/result"), nil
	}
}

func TestAnInstanceThatAnswers202IsAsked(t *testing.T) {
	simulate(t, func(w *world) {
		var log []string
		job(w, 3, &log)
		task := w.put(async.NewTask{}, "")
		w.start("one")
		time.Sleep(4 * time.Second)
		if got := w.want(task, async.Running, ""); got.Progress != 10 {
			t.Errorf("the progress is %d, want 10", got.Progress)
		}
		time.Sleep(time.Minute)
		if w.want(task, async.Done, ""); w.result(task) != "200 the result" {
			t.Errorf("the answer is %q", w.result(task))
		}
		want := []string{"POST /work?x=1", "GET /status/1?a=b", "GET /status/1?a=b", "GET /status/1?a=b", "GET /status/1?a=b", "GET /result"}
		if !slices.Equal(log, want) {
			t.Errorf("the instance has seen %q, want %q", log, want)
		}
	})
}

func TestAnInstanceThatIsAskedForEverMeetsTheTimeout(t *testing.T) {
	simulate(t, func(w *world) {
		var log []string
		job(w, 1<<30, &log)
		w.policy.Timeout, w.policy.Attempts = 10*time.Minute, 1
		task := w.put(async.NewTask{}, "")
		w.start("one")
		time.Sleep(11 * time.Minute)
		w.want(task, async.Dead, "timeout")
		if len(log) > 70 {
			t.Errorf("it was asked %d times in 10 minutes", len(log))
		}
	})
}

func TestWhatACancelledInstanceWorksOnIsWithdrawn(t *testing.T) {
	simulate(t, func(w *world) {
		var log []string
		job(w, 1<<30, &log)
		task := w.put(async.NewTask{}, "")
		w.start("one")
		time.Sleep(10 * time.Second)
		if _, err := w.d.Cancel(t.Context(), task.ID); err != nil {
			t.Fatal(err)
		}
		soon()
		w.want(task, async.Cancelled, "")
		if log[len(log)-1] != "DELETE /status/1?a=b" {
			t.Errorf("the instance has seen %q", log)
		}
	})
}

func TestA202WithoutAPlaceOfItsOwnIsTheAnswer(t *testing.T) {
	for _, location := range []string{"", "http://elsewhere.example.com/x", "http://[", "//other/x"} {
		simulate(t, func(w *world) {
			n := 0
			w.answer = func(*http.Request, string) (*http.Response, error) {
				n++
				return respond(202, "accepted", "Location", location), nil
			}
			task := w.put(async.NewTask{}, "")
			w.start("one")
			time.Sleep(time.Minute)
			if w.want(task, async.Done, ""); n != 1 || w.result(task) != "202 accepted" {
				t.Errorf("Location %q: %d requests, answer %q", location, n, w.result(task))
			}
		})
	}
}

func TestProgressIsToldByInformationalResponses(t *testing.T) {
	simulate(t, func(w *world) {
		w.answer = func(r *http.Request, _ string) (*http.Response, error) {
			told := httptrace.ContextClientTrace(r.Context())
			for _, word := range []string{"40", "nonsense", "-1", "101"} {
				_ = told.Got1xxResponse(102, map[string][]string{"Usher-Progress": {word}})
				time.Sleep(2 * time.Second)
			}
			time.Sleep(time.Minute)
			return respond(200, ""), nil
		}
		task := w.put(async.NewTask{}, "")
		w.start("one")
		time.Sleep(30 * time.Second)
		if got := w.get(task); got.Progress != 40 {
			t.Errorf("the progress is %d, want 40", got.Progress)
		}
	})
}

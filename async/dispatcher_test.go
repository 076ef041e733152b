package async_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/async/file"
)

// world is a dispatcher with a store, and services that it executes tasks on. The
// services have slots, and answer is their instances.
type world struct {
	*testing.T
	store  async.Store
	d      *async.Dispatcher
	policy async.Policy
	grace  time.Duration
	answer func(r *http.Request, body string) (*http.Response, error)
	stream func(r *http.Request) (*http.Response, error) // in place of answer; it reads the body itself
	end    func()                                        // ends Run and waits for it

	slots   chan struct{}
	unknown map[string]bool // queues

	mu      sync.Mutex
	refused error // what Slot returns
	asked   int   // calls of Slot
	waiting int   // in Slot
	most    int   // of waiting
	reports []async.Report
	trouble []error
}

// simulate runs f in a bubble with a world that is not started yet.
func simulate(t *testing.T, f func(w *world)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		store, err := file.Open(dir, file.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		w := &world{
			T: t, store: store, policy: async.DefaultPolicy, slots: make(chan struct{}, 100), unknown: make(map[string]bool),
			answer: func(*http.Request, string) (*http.Response, error) { return respond(200, "fine"), nil },
		}
		w.setSlots(2)
		defer func() {
			if w.end != nil {
				w.end()
			}
		}()
		f(w)
	})
}

func (w *world) setSlots(n int) {
	for range n {
		w.slots <- struct{}{}
	}
}

func (w *world) start(owner string) {
	w.d = async.NewDispatcher(w.store, w, async.Options{
		Owner: owner, Grace: w.grace,
		Report: func(r async.Report) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.reports = append(w.reports, r)
		},
		Trouble: func(err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.trouble = append(w.trouble, err)
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.d.Run(ctx) })
	w.end = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
}

func (w *world) Policy(queue string) (async.Policy, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.policy, !w.unknown[queue]
}

func (w *world) Slot(ctx context.Context, _ string) (async.Slot, error) {
	w.mu.Lock()
	w.asked++
	w.waiting++
	w.most = max(w.most, w.waiting)
	refused := w.refused
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.waiting--
	}()
	if refused != nil {
		return nil, refused
	}
	select {
	case <-w.slots:
		return &slot{w: w}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (w *world) refuse(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused = err
}

type slot struct {
	w        *world
	released bool
}

func (s *slot) Send(r *http.Request) (*http.Response, error) {
	if s.released {
		s.w.Error("a slot is used after it was given back")
	}
	if s.w.stream != nil {
		return s.w.stream(r)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.w.Errorf("the body of a request: %v", err)
	}
	resp, err := s.w.answer(r, string(body))
	if err == nil {
		resp.Request = r
	}
	return resp, err
}

func (s *slot) Release() {
	if s.released {
		s.w.Error("a slot is given back twice")
	}
	s.released = true
	s.w.slots <- struct{}{}
}

func respond(status int, body string, header ...string) *http.Response {
	h := make(http.Header)
	for k := 0; k < len(header); k += 2 {
		h.Add(header[k], header[k+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}
}

func (w *world) put(n async.NewTask, body string) async.Task {
	w.Helper()
	if n.Queue == "" {
		n.Queue = "q"
	}
	if n.Request.Method == "" {
		n.Request = async.Request{Method: "POST", URI: "/work?x=1", Host: "example.com", Header: http.Header{"Accept": {"a"}}}
	}
	t, _, err := w.store.Put(w.Context(), n, strings.NewReader(body))
	if err != nil {
		w.Fatal(err)
	}
	return t
}

func (w *world) get(t async.Task) async.Task {
	w.Helper()
	t, err := w.store.Get(w.Context(), t.ID)
	if err != nil {
		w.Fatal(err)
	}
	return t
}

func (w *world) want(t async.Task, state async.State, reason string) async.Task {
	w.Helper()
	t = w.get(t)
	if t.State != state || !strings.Contains(t.Reason, reason) {
		w.Fatalf("the task is %s (%q), want %s (%q)", t.State, t.Reason, state, reason)
	}
	return t
}

func (w *world) result(t async.Task) string {
	w.Helper()
	a, err := w.store.Result(w.Context(), t.ID)
	if err != nil {
		w.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		w.Fatal(err)
	}
	return fmt.Sprint(a.Status, " ", string(b))
}

func (w *world) free() int {
	synctest.Wait()
	return len(w.slots)
}

// soon lets what can happen at once happen.
func soon() {
	time.Sleep(100 * time.Millisecond)
	synctest.Wait()
}

func TestATaskIsSentWithAllThatBelongsToIt(t *testing.T) {
	simulate(t, func(w *world) {
		var seen []string
		w.answer = func(r *http.Request, body string) (*http.Response, error) {
			seen = append(seen, r.Method, r.URL.RequestURI(), r.Host, r.Header.Get("Accept"), body, strconv.FormatInt(r.ContentLength, 10),
				r.Header.Get(async.HeaderTask), r.Header.Get(async.HeaderAttempt), r.Header.Get("Idempotency-Key"))
			return respond(201, "made", "X-A", "1", "Connection", "close", "Transfer-Encoding", "chunked"), nil
		}
		w.start("one")
		soon()
		task := w.put(async.NewTask{Key: "key"}, "the body")
		soon()
		done := w.want(task, async.Done, "")
		want := []string{"POST", "/work?x=1", "example.com", "a", "the body", "8", task.ID, "1", "key"}
		if !slices.Equal(seen, want) {
			t.Errorf("the instance has seen %q, want %q", seen, want)
		}
		if got := w.result(task); got != "201 made" || done.Status != 201 {
			t.Errorf("the answer is %q", got)
		}
		a, err := w.store.Result(t.Context(), task.ID)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		if len(a.Header) != 1 || a.Header.Get("X-A") != "1" {
			t.Errorf("the header of the answer is %v", a.Header)
		}
		if len(w.reports) != 1 || w.reports[0].Task.State != async.Done || w.free() != 2 {
			t.Errorf("reports %+v, %d slots free", w.reports, w.free())
		}
	})
}

func TestATaskIsClaimedOnlyWithASlot(t *testing.T) {
	simulate(t, func(w *world) {
		w.policy.Waiting = 7
		running, most := 0, 0
		w.answer = func(*http.Request, string) (*http.Response, error) {
			w.mu.Lock()
			running++
			most = max(most, running)
			w.mu.Unlock()
			time.Sleep(time.Second)
			queues, err := w.store.Queues(context.Background())
			if n := queues["q"].States[async.Running]; err != nil || n > 2 {
				t.Errorf("%d tasks run, and there are 2 slots; error %v", n, err)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			running--
			return respond(200, ""), nil
		}
		for range 50 {
			w.put(async.NewTask{}, "")
		}
		w.start("one")
		time.Sleep(30 * time.Second)
		queues, err := w.store.Queues(t.Context())
		if err != nil || queues["q"].States[async.Done] != 50 {
			t.Errorf("the queue is %+v, error %v", queues["q"], err)
		}
		if most != 2 || w.most != 7 {
			t.Errorf("%d have run at a time, want 2; %d have waited, want 7", most, w.most)
		}
	})
}

func TestTasksThatAreGoneWaitNoLonger(t *testing.T) {
	simulate(t, func(w *world) {
		<-w.slots
		<-w.slots
		var tasks []async.Task
		for range 5 {
			tasks = append(tasks, w.put(async.NewTask{}, ""))
		}
		w.start("one")
		soon()
		if w.waiting != 5 {
			t.Errorf("%d wait, want 5", w.waiting)
		}
		for _, task := range tasks[1:] {
			if _, err := w.d.Cancel(t.Context(), task.ID); err != nil {
				t.Fatal(err)
			}
		}
		soon()
		if w.waiting != 1 {
			t.Errorf("%d wait, want 1", w.waiting)
		}
		w.setSlots(2)
		soon()
		w.want(tasks[0], async.Done, "")
	})
}

func TestAFailedAttemptIsRepeatedWithPauses(t *testing.T) {
	simulate(t, func(w *world) {
		var at []time.Duration
		began := time.Now()
		w.answer = func(*http.Request, string) (*http.Response, error) {
			at = append(at, time.Since(began))
			return respond(503, "busy "+strconv.Itoa(len(at))), nil
		}
		w.policy.BackoffTo = 3 * time.Second
		task := w.put(async.NewTask{}, "")
		w.start("one")
		time.Sleep(time.Minute)
		dead := w.want(task, async.Dead, "503")
		if len(at) != 5 || dead.Attempt != 5 || dead.Counted != 5 {
			t.Fatalf("there were %d attempts, and the task says %+v", len(at), dead)
		}
		for k, pause := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second, 3 * time.Second} {
			if d := at[k+1] - at[k]; d < pause/2 || d > pause+100*time.Millisecond {
				t.Errorf("pause %d was %v, want %v to %v", k+1, d, pause/2, pause)
			}
		}
		if got := w.result(task); got != "503 busy 5" {
			t.Errorf("the answer that is kept is %q", got)
		}
	})
}

// An instance may begin to answer before it has read the whole request.
func TestAnInstanceReadsWhileItAnswers(t *testing.T) {
	simulate(t, func(w *world) {
		w.stream = func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: make(http.Header), Body: io.NopCloser(r.Body), ContentLength: -1}, nil
		}
		for _, size := range []int{10, 100_000} {
			body := strings.Repeat("x", size)
			task := w.put(async.NewTask{}, body)
			if w.d == nil {
				w.start("one")
			}
			time.Sleep(time.Minute)
			if got := w.want(task, async.Done, ""); got.Attempt != 1 || w.result(task) != "200 "+body {
				t.Errorf("with %d bytes the task is %+v", size, got)
			}
		}
	})
}

// counted is a body that knows whether it was read to its end, and closed.
type counted struct {
	io.Reader
	ended, closed bool
}

func (c *counted) Read(p []byte) (n int, err error) {
	n, err = c.Reader.Read(p)
	c.ended = c.ended || err == io.EOF
	return n, err
}

func (c *counted) Close() error {
	c.closed = true
	return nil
}

// An answer that is cut off costs its connection, and the proxy logs it.
func TestAShortAnswerThatIsNotKeptIsReadToItsEnd(t *testing.T) {
	for size, ended := range map[int]bool{0: true, 4096: true, 100_000: false} {
		simulate(t, func(w *world) {
			w.policy.Attempts = 2
			first := &counted{Reader: strings.NewReader(strings.Repeat("x", size))}
			w.answer = func(r *http.Request, _ string) (*http.Response, error) {
				if r.Header.Get(async.HeaderAttempt) == "1" {
					return &http.Response{StatusCode: 503, Header: make(http.Header), Body: first, ContentLength: -1}, nil
				}
				return respond(200, "fine"), nil
			}
			task := w.put(async.NewTask{}, "")
			w.start("one")
			time.Sleep(time.Minute)
			w.want(task, async.Done, "")
			if first.ended != ended || !first.closed {
				t.Errorf("%d bytes: read to the end is %t, closed is %t", size, first.ended, first.closed)
			}
		})
	}
}

// An answer that does not go on keeps the slot for a moment only.
func TestAnAnswerThatIsNotKeptIsNotWaitedFor(t *testing.T) {
	simulate(t, func(w *world) {
		w.policy.Attempts = 2
		r, end := io.Pipe()
		defer end.Close()
		w.answer = func(req *http.Request, _ string) (*http.Response, error) {
			if req.Header.Get(async.HeaderAttempt) == "1" {
				return &http.Response{StatusCode: 503, Header: make(http.Header), Body: r, ContentLength: -1}, nil
			}
			return respond(200, "fine"), nil
		}
		task := w.put(async.NewTask{}, "")
		w.start("one")
		time.Sleep(10 * time.Second)
		w.want(task, async.Done, "")
	})
}

func TestAnInstanceCanAskForALongerPause(t *testing.T) {
	simulate(t, func(w *world) {
		var at []time.Time
		w.answer = func(*http.Request, string) (*http.Response, error) {
			if at = append(at, time.Now()); len(at) == 1 {
				return respond(429, "", "Retry-After", "120"), nil
			}
			return respond(200, ""), nil
		}
		task := w.put(async.NewTask{}, "")
		w.start("one")
		time.Sleep(5 * time.Minute)
		w.want(task, async.Done, "")
		if d := at[1].Sub(at[0]); d < 2*time.Minute || d > 2*time.Minute+time.Second {
			t.Errorf("the pause was %v, want 2m", d)
		}
	})
}

func TestAnAnswerThatIsNoReasonForAnotherAttempt(t *testing.T) {
	simulate(t, func(w *world) {
		w.answer = func(*http.Request, string) (*http.Response, error) { return respond(404, "none"), nil }
		task := w.put(async.NewTask{}, "")
		w.start("one")
		soon()
		if w.want(task, async.Failed, "404"); w.result(task) != "404 none" {
			t.Errorf("the answer is %q", w.result(task))
		}
	})
}

func TestWhatNoInstanceHasSeenDoesNotCount(t *testing.T) {
	simulate(t, func(w *world) {
		w.policy.Attempts, w.policy.BackoffTo = 1, time.Second
		n := 0
		w.answer = func(*http.Request, string) (*http.Response, error) {
			if n++; n <= 20 {
				return nil, &async.NotSentError{Err: errors.New("connection refused")}
			}
			return respond(200, ""), nil
		}
		task := w.put(async.NewTask{}, "")
		w.start("one")
		time.Sleep(10 * time.Second)
		if got := w.get(task); got.Counted != 0 || !strings.Contains(got.Reason, "refused") {
			t.Errorf("the task is %+v", got)
		}
		time.Sleep(30 * time.Second)
		if got := w.want(task, async.Done, ""); got.Attempt != 21 || got.Counted != 1 {
			t.Errorf("the task is %+v", got)
		}
	})
}

func TestAnAttemptHasATimeout(t *testing.T) {
	simulate(t, func(w *world) {
		w.policy.Timeout, w.policy.Attempts = time.Minute, 2
		w.answer = func(r *http.Request, _ string) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}
		task := w.put(async.NewTask{}, "")
		began := time.Now()
		w.start("one")
		time.Sleep(60*time.Second + 200*time.Millisecond)
		w.want(task, async.Pending, "timeout")
		time.Sleep(62 * time.Second)
		if got := w.want(task, async.Dead, "timeout"); got.Counted != 2 || w.free() != 2 {
			t.Errorf("after %v the task is %+v", time.Since(began), got)
		}
	})
}

func TestARunningTaskIsCancelled(t *testing.T) {
	for _, way := range []string{"here", "elsewhere"} {
		simulate(t, func(w *world) {
			gone := make(chan struct{})
			w.answer = func(r *http.Request, _ string) (*http.Response, error) {
				<-r.Context().Done()
				close(gone)
				return nil, r.Context().Err()
			}
			task := w.put(async.NewTask{}, "")
			w.start("one")
			soon()
			w.want(task, async.Running, "")
			cancel, patience := w.d.Cancel, 100*time.Millisecond
			if way == "elsewhere" {
				cancel, patience = w.store.Cancel, async.LeaseRenewal+100*time.Millisecond
			}
			if _, err := cancel(t.Context(), task.ID); err != nil {
				t.Fatal(err)
			}
			time.Sleep(patience)
			<-gone
			synctest.Wait()
			w.want(task, async.Cancelled, "")
			if w.free() != 2 {
				t.Errorf("%d slots are free", w.free())
			}
		})
	}
}

func TestTasksOfAServiceThatTakesNothingWait(t *testing.T) {
	simulate(t, func(w *world) {
		w.refuse(errors.New("suspended"))
		var tasks []async.Task
		for range 20 {
			tasks = append(tasks, w.put(async.NewTask{}, ""))
		}
		w.start("one")
		time.Sleep(time.Hour)
		for _, task := range tasks {
			if got := w.get(task); got.State != async.Pending || got.Attempt != 0 {
				t.Fatalf("the task is %+v", got)
			}
		}
		// 20 of them each 15 s.
		if w.asked > 20*(60*4+10) || w.asked < 20*100 {
			t.Errorf("slots were asked for %d times in an hour", w.asked)
		}
		w.refuse(nil)
		w.d.Resume("q")
		soon()
		for _, task := range tasks {
			w.want(task, async.Done, "")
		}
	})
}

func TestTasksOfAnUnknownServiceWait(t *testing.T) {
	simulate(t, func(w *world) {
		w.unknown["q"] = true
		task := w.put(async.NewTask{}, "")
		w.start("one")
		time.Sleep(time.Hour)
		w.want(task, async.Pending, "")
		if w.asked != 0 {
			t.Errorf("%d slots were asked for", w.asked)
		}
		w.mu.Lock()
		w.unknown["q"] = false
		w.mu.Unlock()
		w.d.Wake()
		soon()
		w.want(task, async.Done, "")
	})
}

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

// endless is a body without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
func (endless) Close() error               { return nil }

func TestAnAnswerWithoutEndIsBounded(t *testing.T) {
	simulate(t, func(w *world) {
		w.policy.MaxResult = 1 << 20
		n := 0
		w.answer = func(*http.Request, string) (*http.Response, error) {
			if n++; n > 1 {
				return respond(200, strings.Repeat("x", 1<<20)), nil
			}
			return &http.Response{StatusCode: 200, Body: endless{}, ContentLength: -1}, nil
		}
		task := w.put(async.NewTask{}, "")
		w.start("one")
		time.Sleep(time.Hour)
		if got := w.want(task, async.Dead, "max_result"); n != 1 || got.Status != 0 {
			t.Errorf("after %d attempts the task is %+v", n, got)
		}
		exact := w.put(async.NewTask{}, "")
		soon()
		w.want(exact, async.Done, "")
	})
}

func TestAnAnswerThatIsCutOffIsNone(t *testing.T) {
	simulate(t, func(w *world) {
		n := 0
		w.answer = func(*http.Request, string) (*http.Response, error) {
			if n++; n == 1 {
				cut := io.MultiReader(strings.NewReader("half"), errReader{})
				return &http.Response{StatusCode: 200, Body: io.NopCloser(cut), ContentLength: -1}, nil
			}
			return respond(200, "whole"), nil
		}
		task := w.put(async.NewTask{}, "")
		w.start("one")
		time.Sleep(time.Minute)
		if got := w.want(task, async.Done, ""); got.Counted != 2 || w.result(task) != "200 whole" {
			t.Errorf("the task is %+v, the answer %q", got, w.result(task))
		}
	})
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestAttemptsMayEndWhenCaddyDoes(t *testing.T) {
	simulate(t, func(w *world) {
		w.grace = 10 * time.Second
		short, long := w.put(async.NewTask{}, "5s"), w.put(async.NewTask{}, "1h")
		never := w.put(async.NewTask{}, "0s")
		w.answer = func(r *http.Request, body string) (*http.Response, error) {
			d, err := time.ParseDuration(body)
			if err != nil {
				t.Error(err)
			}
			select {
			case <-time.After(d):
				return respond(200, ""), nil
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
		}
		w.start("one")
		soon()
		w.want(long, async.Running, "")
		began := time.Now()
		w.end()
		if d := time.Since(began); d != 10*time.Second {
			t.Errorf("it took %v to end, want 10s", d)
		}
		w.want(short, async.Done, "")
		w.want(never, async.Pending, "")
		if got := w.want(long, async.Pending, "shut down"); got.Counted != 1 {
			t.Errorf("the task is %+v", got)
		}
	})
}

func TestAnAttemptWhoseCaddyIsGoneCounts(t *testing.T) {
	for attempts, want := range map[int]async.State{1: async.Dead, 2: async.Done} {
		dir := t.TempDir()
		first, err := file.Open(dir, file.Options{})
		if err != nil {
			t.Fatal(err)
		}
		n := async.NewTask{Queue: "q", Request: async.Request{Method: "GET", URI: "/"}}
		task, _, err := first.Put(t.Context(), n, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := first.Claim(t.Context(), "one", "q", 1); err != nil {
			t.Fatal(err)
		}
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		simulate(t, func(w *world) {
			w.store.Close()
			if w.store, err = file.Open(dir, file.Options{}); err != nil {
				t.Fatal(err)
			}
			defer w.store.Close()
			w.policy.Attempts = attempts
			w.start("two")
			defer w.end()
			time.Sleep(time.Minute)
			reason := ""
			if want == async.Dead {
				reason = "has ended"
			}
			w.want(task, want, reason)
		})
	}
}

// A Caddy can find what another one has left before it knows the service, or it may not
// have the service at all. The limit of attempts counts nevertheless.
func TestAnAttemptWhoseCaddyIsGoneCountsForAServiceThatIsNotKnownYet(t *testing.T) {
	for attempts, want := range map[int]async.State{1: async.Dead, 2: async.Done} {
		simulate(t, func(w *world) {
			task := w.put(async.NewTask{}, "")
			if _, err := w.store.Claim(t.Context(), "another one", "q", 1); err != nil {
				t.Fatal(err)
			}
			// As Recover does with what was lost.
			w.unknown["q"] = true
			w.store = &abandoned{Store: w.store, task: task}
			w.policy.Attempts = attempts
			sent := 0
			w.answer = func(*http.Request, string) (*http.Response, error) {
				sent++
				return respond(200, "fine"), nil
			}
			w.start("one")
			soon()
			w.want(task, async.Pending, "has ended")
			w.mu.Lock()
			w.unknown["q"] = false
			w.mu.Unlock()
			w.d.Wake()
			time.Sleep(time.Minute)
			got := w.get(task)
			if got.State != want || sent != attempts-1 || want == async.Dead && !strings.Contains(got.Reason, "has ended") {
				t.Errorf("of %d attempts %d were sent after the lost one, and the task is %+v", attempts, sent, got)
			}
		})
	}
}

// abandoned is a store that has one attempt whose owner is gone.
type abandoned struct {
	async.Store
	task async.Task
	done bool
}

func (s *abandoned) Recover(ctx context.Context, _ string, decide func(async.Task) async.Outcome) (int, error) {
	if s.done {
		return 0, nil
	}
	s.done = true
	t, err := s.Get(ctx, s.task.ID)
	if err == nil {
		_, err = s.Settle(ctx, t.ID, t.Attempt, decide(t))
	}
	return 1, err
}

// still is a store in which a Caddy stands still after its first claim, until its lease
// is over.
type still struct {
	async.Store
	stands  chan struct{} // full while it stands still
	claimed bool
}

func (s *still) Claim(ctx context.Context, owner, queue string, n int) ([]async.Task, error) {
	s.stands <- struct{}{}
	defer func() { <-s.stands }()
	tasks, err := s.Store.Claim(ctx, owner, queue, n)
	if !s.claimed {
		s.claimed = true
		time.Sleep(async.LeaseTimeout)
	}
	return tasks, err
}

func (s *still) Renew(ctx context.Context, owner string) (async.Renewal, error) {
	s.stands <- struct{}{}
	<-s.stands
	time.Sleep(time.Millisecond)
	return s.Store.Renew(ctx, owner)
}

// Another one may have the task by then.
func TestACaddyThatStoodStillDoesNotSendWhatItHadClaimed(t *testing.T) {
	simulate(t, func(w *world) {
		w.store = &still{Store: w.store, stands: make(chan struct{}, 1)}
		var sent []string
		w.answer = func(r *http.Request, _ string) (*http.Response, error) {
			sent = append(sent, r.Header.Get(async.HeaderAttempt))
			return respond(200, "fine"), nil
		}
		task := w.put(async.NewTask{}, "")
		w.start("one")
		time.Sleep(2 * time.Minute)
		if got := w.want(task, async.Done, ""); !slices.Equal(sent, []string{"2"}) || got.Counted != 1 {
			t.Errorf("the attempts %v were sent, and the task is %+v", sent, got)
		}
	})
}

// broken is a store of which some methods fail.
type broken struct {
	async.Store
	mu     sync.Mutex
	renew  error
	settle error
	begun  int // calls of Settle
}

func (b *broken) Renew(ctx context.Context, owner string) (async.Renewal, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.renew != nil {
		return async.Renewal{}, b.renew
	}
	return b.Store.Renew(ctx, owner)
}

func (b *broken) Settle(ctx context.Context, id string, attempt int, o async.Outcome) (async.Task, error) {
	b.mu.Lock()
	b.begun++
	err := b.settle
	b.mu.Unlock()
	if err != nil {
		return async.Task{}, err
	}
	return b.Store.Settle(ctx, id, attempt, o)
}

func (b *broken) set(renew, settle error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.renew, b.settle = renew, settle
}

func TestAttemptsEndBeforeTheirLeaseDoes(t *testing.T) {
	simulate(t, func(w *world) {
		b := &broken{Store: w.store}
		w.store = b
		w.answer = func(r *http.Request, _ string) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}
		task := w.put(async.NewTask{}, "")
		w.start("one")
		soon()
		b.set(errors.New("the database is away"), nil)
		time.Sleep(async.LeaseTimeout/2 - time.Second)
		w.want(task, async.Running, "")
		time.Sleep(async.LeaseTimeout/2 + time.Second)
		w.want(task, async.Pending, "lease")
		if len(w.trouble) == 0 {
			t.Error("no trouble is told")
		}
	})
}

func TestAnOutcomeThatCannotBeStoredIsTriedAgain(t *testing.T) {
	simulate(t, func(w *world) {
		b := &broken{Store: w.store}
		w.store = b
		b.set(nil, errors.New("no space left on device"))
		task := w.put(async.NewTask{}, "")
		w.start("one")
		time.Sleep(time.Minute)
		w.want(task, async.Running, "")
		if w.free() != 2 || b.begun < 50 || b.begun > 62 {
			t.Errorf("%d slots are free, and it was tried %d times in a minute", w.free(), b.begun)
		}
		b.set(nil, nil)
		time.Sleep(2 * time.Second)
		got := w.get(task)
		if got.State != async.Pending && got.State != async.Done || got.Counted < 1 {
			t.Errorf("the task is %+v", got)
		}
		time.Sleep(time.Minute)
		w.want(task, async.Done, "")
	})
}

// TestEveryTaskEndsOnce lets instances, clients and the service do anything.
func TestEveryTaskEndsOnce(t *testing.T) {
	for range 3 {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		simulate(t, func(w *world) { anything(w, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func anything(w *world, random *rand.Rand) {
	const count = 150
	w.policy.BackoffTo, w.policy.Timeout, w.policy.Attempts = 10*time.Second, 20*time.Second, 3
	w.setSlots(4)
	var (
		inside = make(map[string]bool)   // tasks and groups that are executed
		order  = make(map[string]int)    // the latest number of each group
		groups = make(map[string]string) // by task
	)
	draw := func(n int) int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return random.IntN(n)
	}
	enter := func(name string, in bool) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if in && inside[name] {
			w.Errorf("%s is executed twice at the same time", name)
		}
		inside[name] = in
	}
	w.answer = func(r *http.Request, body string) (*http.Response, error) {
		id := r.Header.Get(async.HeaderTask)
		enter(id, true)
		defer enter(id, false)
		w.mu.Lock()
		group := groups[id]
		if n, _ := strconv.Atoi(body); group != "" {
			if n < order[group] {
				w.Errorf("group %s: %d follows %d", group, n, order[group])
			}
			order[group] = n
		}
		w.mu.Unlock()
		if group != "" {
			enter(group, true)
			defer enter(group, false)
		}
		select {
		case <-time.After(time.Duration(draw(5000)) * time.Millisecond):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
		switch draw(8) {
		case 0:
			return nil, &async.NotSentError{Err: errors.New("refused")}
		case 1:
			return nil, errors.New("reset")
		case 2:
			return respond(503, ""), nil
		case 3:
			return respond(400, ""), nil
		case 4:
			<-r.Context().Done()
			return nil, r.Context().Err()
		}
		return respond(200, ""), nil
	}
	w.start("one")
	var tasks []async.Task
	for k := range count {
		n := async.NewTask{Expires: time.Duration(1+draw(300)) * time.Second, Callback: "https://hooks.example.com/"}
		if draw(2) == 0 {
			n.Group = "g" + strconv.Itoa(draw(5))
		}
		w.mu.Lock() // before it can be executed
		task := w.put(n, strconv.Itoa(k))
		groups[task.ID] = n.Group
		w.mu.Unlock()
		tasks = append(tasks, task)
		switch draw(10) {
		case 0:
			_, err := w.d.Cancel(context.Background(), tasks[draw(len(tasks))].ID)
			if err != nil && !errors.Is(err, async.ErrFinished) {
				w.Error(err)
			}
		case 1:
			w.refuse(errors.New("suspended"))
		case 2, 3:
			w.refuse(nil)
			w.d.Resume("q")
		}
		time.Sleep(time.Duration(draw(2000)) * time.Millisecond)
	}
	w.refuse(nil)
	w.d.Resume("q")
	time.Sleep(time.Hour)
	queues, err := w.store.Queues(context.Background())
	if err != nil || queues["q"].Unfinished() != 0 {
		w.Fatalf("the queue is %+v, error %v", queues["q"], err)
	}
	told := 0
	for _, n := range queues[async.CallbackQueue("q")].States {
		told += n
	}
	if told != count {
		w.Errorf("%d ends were told by callbacks, want %d", told, count)
	}
	w.Logf("%v", queues["q"].States)
	if w.free() != 6 || len(w.trouble) > 0 {
		w.Errorf("%d slots are free, want 6; trouble %v", w.free(), w.trouble)
	}
}

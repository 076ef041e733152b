package async_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-usher/usher/async"
)

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

// endless is a body without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func (endless) Close() error { return nil }

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

func (b *broken) Renew(ctx context.Context, owner string) (async.Renewal, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.renew != nil {
		return async.Renewal{}, b.renew
	}
	return b.Store.Renew(ctx, owner)
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

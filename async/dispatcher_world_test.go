package async_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
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

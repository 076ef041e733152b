package storetest

import (
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddy-usher/usher/async"
)

// large is more than stores keep beside their records.
const large = 200 << 10

func checkPut(s *bench) {
	store := s.open()
	for _, size := range []int{0, 1, 1024, 64 << 10, 64<<10 + 1, large, 3 << 20} {
		body := strings.Repeat("usher ", size/6+1)[:size]
		n := async.NewTask{
			Queue: "thumbs",
			Request: async.Request{
				Method: http.MethodPost, URI: "/a%20b?x=1&x=2", Host: "example.com:8443",
				Header: http.Header{"Accept": {"a", "b"}, "X-Ü": {"\"\\ ü \x01"}},
			},
			Client: "client", Group: "a group/ü", Exclusive: "gpu", Key: "key " + strconv.Itoa(size), Fingerprint: "print",
			Expires: time.Hour, Keep: 24 * time.Hour, Callback: "https://hooks.example.com/x",
		}
		task := s.put(store, n, body)
		if got := s.get(store, task.ID); !reflect.DeepEqual(got, task) {
			s.Errorf("Get returned %+v, Put %+v", got, task)
		}
		want := async.Task{
			ID: task.ID, Queue: n.Queue, Request: n.Request, Client: n.Client, Group: n.Group, Exclusive: n.Exclusive, Key: n.Key,
			Callback: n.Callback, Keep: n.Keep, BodySize: int64(size), State: async.Pending, Progress: -1,
			Accepted: task.Accepted, Due: task.Due, Expires: task.Expires,
		}
		if !reflect.DeepEqual(task, want) {
			s.Errorf("Put returned %+v, want %+v", task, want)
		}
		if d := task.Expires.Sub(task.Accepted); d < time.Hour-time.Millisecond || d > time.Hour+time.Millisecond {
			s.Errorf("it expires %v after it was accepted, want 1h", d)
		}
		if got := s.readAll(store.Body(s.Context(), task.ID)); got != body {
			s.Errorf("the body has %d bytes and is another one, want %d", len(got), size)
		}
		if len(task.ID) < 22 || strings.Trim(task.ID, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			s.Errorf("the id %q is too short, or has other signs than letters and digits", task.ID)
		}
	}
}

func checkReopen(s *bench) {
	store := s.open()
	a := s.put(store, async.NewTask{Queue: "q", Client: "a", Key: "k"}, "small")
	b := s.put(store, async.NewTask{Queue: "q", Client: "b"}, strings.Repeat("x", large))
	c := s.claimOne(store, "q", a)
	s.settle(store, c, async.Outcome{State: async.Done, Answer: answer(201, strings.Repeat("y", large))})
	store = s.reopen(store)
	s.wantState(store, a, async.Done)
	s.wantState(store, b, async.Pending)
	if got := s.readAll(store.Body(s.Context(), b.ID)); got != strings.Repeat("x", large) {
		s.Errorf("the body of %d bytes is another one", len(got))
	}
	r, err := store.Result(s.Context(), a.ID)
	if err != nil || r.Status != 201 || r.Size != large {
		s.Fatalf("Result returned %+v, error %v", r, err)
	}
	if got := s.readAll(r.Body, nil); got != strings.Repeat("y", large) {
		s.Errorf("the answer of %d bytes is another one", len(got))
	}
	if task, existed, err := store.Put(s.Context(), async.NewTask{Queue: "q", Key: "k"}, strings.NewReader("small")); task.ID != a.ID || !existed || err != nil {
		s.Errorf("the key stands for %q, existed %t, error %v", task.ID, existed, err)
	}
	s.claimOne(store, "q", b)
}

func checkCutOff(s *bench) {
	store := s.open()
	for _, size := range []int{0, 10, large} {
		_, _, err := store.Put(s.Context(), async.NewTask{Queue: "q", Key: "k"}, &cutOff{size})
		body, ok := errors.AsType[*async.BodyError](err)
		if !ok || !errors.Is(body, errCutOff) {
			s.Errorf("Put of a body that is cut off after %d bytes: error %v", size, err)
		}
	}
	if tasks := s.list(store, async.Filter{}); len(tasks) > 0 {
		s.Errorf("%d tasks are stored", len(tasks))
	}
	s.put(store, async.NewTask{Queue: "q", Key: "k"}, "")
}

func checkUnknown(s *bench) {
	store := s.open()
	known := s.put(store, async.NewTask{Queue: "q"}, "")
	other := []byte(known.ID)
	other[0] = map[bool]byte{true: '1', false: '0'}[other[0] == '0']
	for _, id := range []string{"", "x", strings.Repeat("0", len(known.ID)), string(other), known.ID + "0", known.ID[1:], strings.Repeat("a", 1<<20), "\x00ü"} {
		_, err := store.Get(s.Context(), id)
		s.wantErr("Get", err, async.ErrNotFound)
		_, err = store.Body(s.Context(), id)
		s.wantErr("Body", err, async.ErrNotFound)
		_, err = store.Result(s.Context(), id)
		s.wantErr("Result", err, async.ErrNotFound)
		_, err = store.Settle(s.Context(), id, 1, async.Outcome{State: async.Done})
		s.wantErr("Settle", err, async.ErrNotFound)
		_, err = store.Cancel(s.Context(), id)
		s.wantErr("Cancel", err, async.ErrNotFound)
		_, err = store.Retry(s.Context(), id)
		s.wantErr("Retry", err, async.ErrNotFound)
		s.wantErr("Purge", store.Purge(s.Context(), id), async.ErrNotFound)
	}
	_, err := store.Result(s.Context(), known.ID)
	s.wantErr("Result of a pending task", err, async.ErrNoResult)
	s.claimNone(store, "unknown")
}

func checkOldest(s *bench) {
	store := s.open()
	tasks := s.puts(store, async.NewTask{Queue: "q"}, 5)
	s.puts(store, async.NewTask{Queue: "other"}, 2)
	first := s.claimOne(store, "q", tasks[0])
	if first.State != async.Running || first.Attempt != 1 || first.Owner != owner || first.Counted != 0 {
		s.Errorf("the claimed task is %+v", first)
	}
	if !first.Due.Equal(first.Accepted) || first.Started.Before(first.Due) {
		s.Errorf("it was accepted at %v, due at %v and started at %v", first.Accepted, first.Due, first.Started)
	}
	rest := s.claim(store, "q", 3)
	if clients(rest) != "client 1, 2, 3" {
		s.Errorf("%s was claimed, want 1, 2, 3", clients(rest))
	}
	// What is tried again is as old as it was.
	s.settle(store, rest[1], async.Outcome{State: async.Pending})
	s.claimOne(store, "q", tasks[2])
	s.claimOne(store, "q", tasks[4])
	s.claimNone(store, "q")
	if q := s.queue(store, "q"); q.States[async.Running] != 5 || q.Unfinished() != 5 || q.Runnable != 0 {
		s.Errorf("the queue is %+v", q)
	}
	if q := s.queue(store, "other"); q.States[async.Pending] != 2 || q.Runnable != 2 || q.NextDue >= 0 {
		s.Errorf("the other queue is %+v", q)
	}
}

func checkClaimOnce(s *bench) {
	const (
		count   = 300
		workers = 8
	)
	store := s.open()
	s.puts(store, async.NewTask{Queue: "q"}, count)
	stores := []async.Store{store}
	if s.Shared {
		stores = append(stores, s.open())
	}
	var (
		mu      sync.Mutex
		claimed = make(map[string]int)
		all     sync.WaitGroup
	)
	for k := range workers {
		all.Go(func() {
			for {
				tasks, err := stores[k%len(stores)].Claim(s.Context(), "owner "+strconv.Itoa(k), "q", 1+k%3)
				if err != nil {
					s.Errorf("Claim: %v", err)
					return
				}
				if len(tasks) == 0 {
					return
				}
				mu.Lock()
				for _, t := range tasks {
					claimed[t.ID]++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if len(claimed) != count {
		s.Errorf("%d tasks were claimed, want %d", len(claimed), count)
	}
	for id, n := range claimed {
		if n != 1 {
			s.Errorf("task %s was claimed %d times", id, n)
		}
	}
}

func checkSettle(s *bench) {
	store := s.open()
	t := s.put(store, async.NewTask{Queue: "q", Client: "t"}, "body")
	_, err := store.Settle(s.Context(), t.ID, 0, async.Outcome{State: async.Done})
	s.wantErr("Settle of a pending task", err, async.ErrStale)
	first := s.claimOne(store, "q", t)
	again := s.settle(store, first, async.Outcome{State: async.Pending, Reason: "no luck", Answer: answer(500, "lost")})
	if again.State != async.Pending || again.Counted != 1 || again.Reason != "no luck" || again.Status != 0 || again.Owner != "" {
		s.Errorf("after the first attempt it is %+v", again)
	}
	second := s.claimOne(store, "q", t)
	if second.Attempt != first.Attempt+1 {
		s.Errorf("attempt %d follows %d", second.Attempt, first.Attempt)
	}
	_, err = store.Settle(s.Context(), t.ID, first.Attempt, async.Outcome{State: async.Failed})
	s.wantErr("Settle of the first attempt", err, async.ErrStale)
	s.settle(store, second, async.Outcome{State: async.Pending, Uncounted: true})
	third := s.claimOne(store, "q", t)
	if third.Counted != 1 || third.Attempt != second.Attempt+1 {
		s.Errorf("after an attempt that does not count it is %+v", third)
	}
	a := answer(418, "an answer")
	a.Header = http.Header{"X-A": {"1", "2"}}
	done := s.settle(store, third, async.Outcome{State: async.Failed, Reason: "teapot", Answer: a})
	if done.State != async.Failed || done.Status != 418 || done.ResultSize != 9 || done.Reason != "teapot" || done.Ended.IsZero() || done.Counted != 2 {
		s.Errorf("at the end it is %+v", done)
	}
	for _, attempt := range []int{first.Attempt, second.Attempt, third.Attempt, third.Attempt + 1} {
		_, err = store.Settle(s.Context(), t.ID, attempt, async.Outcome{State: async.Done, Answer: answer(200, strings.Repeat("z", large))})
		s.wantErr("Settle after the end", err, async.ErrStale)
	}
	r, err := store.Result(s.Context(), t.ID)
	if err != nil || r.Status != 418 || r.Size != 9 || !reflect.DeepEqual(r.Header, a.Header) || s.readAll(r.Body, nil) != "an answer" {
		s.Errorf("Result returned %+v, error %v", r, err)
	}
	s.claimNone(store, "q")
	if got := s.readAll(store.Body(s.Context(), t.ID)); got != "body" {
		s.Errorf("the body is %q", got)
	}
}

func checkAnswerCutOff(s *bench) {
	store := s.open()
	t := s.put(store, async.NewTask{Queue: "q"}, "")
	c := s.claimOne(store, "q", t)
	for _, size := range []int{0, 10, large} {
		_, err := store.Settle(s.Context(), c.ID, c.Attempt, async.Outcome{
			State: async.Done, Answer: &async.Answer{Status: 200, Body: io.NopCloser(&cutOff{size}), Size: -1},
		})
		if body, ok := errors.AsType[*async.BodyError](err); !ok || !errors.Is(body, errCutOff) {
			s.Errorf("Settle with an answer that is cut off after %d bytes: error %v", size, err)
		}
		s.wantState(store, t, async.Running)
	}
	s.settle(store, c, async.Outcome{State: async.Pending})
	s.claimOne(store, "q", t)
}

func checkDelay(s *bench) {
	const delay = time.Second
	store := s.open()
	t := s.put(store, async.NewTask{Queue: "q"}, "")
	c := s.claimOne(store, "q", t)
	before := time.Now()
	task := s.settle(store, c, async.Outcome{State: async.Pending, Delay: delay})
	q := s.queue(store, "q")
	claimed := s.claimSoon(store, "q")
	if waited := time.Since(before); waited < delay {
		s.Errorf("it was claimed after %v, want %v at least", waited, delay)
	}
	if q.Runnable != 0 || q.NextDue <= 0 || q.NextDue > delay || q.States[async.Pending] != 1 {
		s.Errorf("while it waited the queue was %+v", q)
	}
	if !task.Due.After(task.Accepted) || claimed.Attempt != 2 {
		s.Errorf("it was %+v, and then %+v", task, claimed)
	}
	// A queue sees by itself that a time has come.
	s.settle(store, claimed, async.Outcome{State: async.Pending, Delay: 20 * time.Millisecond})
	s.await("a runnable task", func() bool { q = s.queue(store, "q"); return q.Runnable == 1 })
	if q.NextDue >= 0 {
		s.Errorf("when its time has come the queue is %+v", q)
	}
	// A long delay does not hold up a short one.
	other := s.put(store, async.NewTask{Queue: "q", Client: "other"}, "")
	s.settle(store, s.claimOne(store, "q", t), async.Outcome{State: async.Pending, Delay: 200 * time.Hour})
	s.claimOne(store, "q", other)
	s.claimNone(store, "q")
}

func checkKey(s *bench) {
	store := s.open()
	n := async.NewTask{Queue: "q", Key: "key", Fingerprint: "print"}
	first := s.put(store, n, "body")
	same := func(want async.Task) {
		s.Helper()
		if task, existed, err := store.Put(s.Context(), n, strings.NewReader("body")); task.ID != want.ID || !existed || err != nil {
			s.Fatalf("Put again: task %q, existed %t, error %v; want %q", task.ID, existed, err, want.ID)
		}
	}
	same(first)
	_, _, err := store.Put(s.Context(), n, strings.NewReader("another body"))
	s.wantErr("Put with another body", err, async.ErrKeyReused)
	_, _, err = store.Put(s.Context(), n, strings.NewReader(strings.Repeat("x", large)))
	s.wantErr("Put with another large body", err, async.ErrKeyReused)
	other := n
	other.Fingerprint = "another"
	_, _, err = store.Put(s.Context(), other, strings.NewReader("body"))
	s.wantErr("Put of another request", err, async.ErrKeyReused)
	other = n
	other.Queue = "elsewhere"
	if task := s.put(store, other, "x"); task.ID == first.ID {
		s.Error("a key counts in another queue")
	}
	// It counts in every state, beyond any limit, and until the task is gone.
	n.MaxTasks = 1
	same(first)
	s.settle(store, s.claimOne(store, "q", first), async.Outcome{State: async.Dead})
	same(first)
	if _, err := store.Retry(s.Context(), first.ID); err != nil {
		s.Fatal(err)
	}
	same(first)
	s.settle(store, s.claimOne(store, "q", first), async.Outcome{State: async.Done})
	same(first)
	if err := store.Purge(s.Context(), first.ID); err != nil {
		s.Fatal(err)
	}
	s.put(store, n, "something else")
	n.Key, n.MaxTasks = strings.Repeat("k", 1<<20), 0
	same(s.put(store, n, "body"))
	n.Key = strings.Repeat("k", 1<<20-1) + "l"
	s.put(store, n, "body")
}

func checkKeyRace(s *bench) {
	const (
		keys    = 40
		writers = 8
	)
	store := s.open()
	var (
		mu       sync.Mutex
		accepted = make(map[string]int)
		names    = make(map[string]map[string]bool)
		all      sync.WaitGroup
	)
	for range writers {
		all.Go(func() {
			for k := range keys {
				key := strconv.Itoa(k)
				task, existed, err := store.Put(s.Context(), async.NewTask{Queue: "q", Key: key}, strings.NewReader(key))
				if err != nil {
					s.Errorf("Put: %v", err)
					return
				}
				mu.Lock()
				if !existed {
					accepted[key]++
				}
				if names[key] == nil {
					names[key] = make(map[string]bool)
				}
				names[key][task.ID] = true
				mu.Unlock()
			}
		})
	}
	all.Wait()
	for key, n := range accepted {
		if n != 1 || len(names[key]) != 1 {
			s.Errorf("key %s was accepted %d times, and has %d tasks", key, n, len(names[key]))
		}
	}
	if tasks := s.list(store, async.Filter{}); len(tasks) != keys {
		s.Errorf("there are %d tasks, want %d", len(tasks), keys)
	}
}

func checkLimit(s *bench) {
	store := s.open()
	n := async.NewTask{Queue: "q", MaxTasks: 3}
	tasks := s.puts(store, n, 3)
	full := func() {
		s.Helper()
		_, _, err := store.Put(s.Context(), n, strings.NewReader(strings.Repeat("x", large)))
		s.wantErr("Put beyond the limit", err, async.ErrFull)
	}
	full()
	c := s.claimOne(store, "q", tasks[0])
	full()
	s.put(store, async.NewTask{Queue: "other", MaxTasks: 1}, "")
	s.settle(store, c, async.Outcome{State: async.Done})
	s.puts(store, n, 1)
	full()
	if _, err := store.Cancel(s.Context(), tasks[1].ID); err != nil {
		s.Fatal(err)
	}
	s.puts(store, n, 1)
	full()
}

func checkGroup(s *bench) {
	store := s.open()
	a := s.puts(store, async.NewTask{Queue: "q", Group: "a"}, 4)
	b := s.puts(store, async.NewTask{Queue: "q", Group: "ab"}, 2)
	other := s.put(store, async.NewTask{Queue: "other", Group: "a"}, "")
	if q := s.queue(store, "q"); q.Runnable != 2 || q.States[async.Pending] != 6 {
		s.Errorf("the queue is %+v, want 2 that can begin", q)
	}
	first := s.claimOne(store, "q", a[0])
	s.settle(store, s.claimOne(store, "q", b[0]), async.Outcome{State: async.Failed})
	s.claimOne(store, "q", b[1])
	s.claimNone(store, "q")
	s.claimOne(store, "other", other)
	// Those behind wait while it is tried again, and also for its time.
	s.settle(store, first, async.Outcome{State: async.Pending})
	first = s.claimOne(store, "q", a[0])
	s.settle(store, first, async.Outcome{State: async.Pending, Delay: time.Second})
	if q := s.queue(store, "q"); q.Runnable != 0 {
		s.Errorf("while the first one waits the queue is %+v", q)
	}
	if _, err := store.Cancel(s.Context(), a[1].ID); err != nil {
		s.Fatal(err)
	}
	first = s.claimSoon(store, "q")
	if first.ID != a[0].ID {
		s.Fatalf("client %s has passed the first of its group", first.Client)
	}
	s.settle(store, first, async.Outcome{State: async.Done})
	// The second was cancelled. The third is cancelled while it is the first.
	if _, err := store.Cancel(s.Context(), a[2].ID); err != nil {
		s.Fatal(err)
	}
	late := s.put(store, async.NewTask{Queue: "q", Group: "a", Client: "late"}, "")
	last := s.claimOne(store, "q", a[3])
	s.claimNone(store, "q")
	store = s.lose(store)
	s.claimOne(store, "q", a[3])
	s.claimOne(store, "q", b[1])
	s.claimNone(store, "q")
	_, err := store.Settle(s.Context(), last.ID, last.Attempt, async.Outcome{State: async.Done})
	s.wantErr("Settle by an owner that was gone", err, async.ErrStale)
	if _, err := store.Settle(s.Context(), last.ID, last.Attempt+1, async.Outcome{State: async.Dead}); err != nil {
		s.Fatal(err)
	}
	s.claimOne(store, "q", late)
}

// lose ends the process that has claimed tasks, as far as the store can tell, and
// makes the tasks pending again.
func (s *bench) lose(store async.Store) async.Store {
	s.Helper()
	store = s.reopen(store)
	if s.Shared {
		time.Sleep(s.Lease)
	}
	s.recover(store, "another", func(async.Task) async.Outcome { return async.Outcome{State: async.Pending} })
	return store
}

func (s *bench) recover(store async.Store, owner string, decide func(async.Task) async.Outcome) (n int) {
	s.Helper()
	for {
		k, err := store.Recover(s.Context(), owner, decide)
		if err != nil {
			s.Fatalf("Recover: %v", err)
		}
		if k == 0 {
			return n
		}
		n += k
	}
}

func checkExclusive(s *bench) {
	store := s.open()
	a := s.puts(store, async.NewTask{Queue: "a", Exclusive: "gpu"}, 2)
	b := s.puts(store, async.NewTask{Queue: "b", Exclusive: "gpu"}, 1)
	free := s.put(store, async.NewTask{Queue: "a", Client: "free"}, "")
	other := s.put(store, async.NewTask{Queue: "a", Client: "other", Exclusive: "disk"}, "")
	if q := s.queue(store, "a"); q.Runnable != 3 {
		s.Errorf("the queue is %+v, want 3 that can begin", q)
	}
	first := s.claimOne(store, "a", a[0])
	s.claimNone(store, "b")
	if q := s.queue(store, "b"); q.Runnable != 0 || q.States[async.Pending] != 1 {
		s.Errorf("the other queue is %+v", q)
	}
	if got := s.claim(store, "a", 5); clients(got) != "client free, other" || got[0].ID != free.ID || got[1].ID != other.ID {
		s.Errorf("%s was claimed, want free, other", clients(got))
	}
	s.settle(store, first, async.Outcome{State: async.Pending, Delay: time.Hour})
	second := s.claimOne(store, "b", b[0])
	s.claimNone(store, "a")
	store = s.lose(store)
	s.claimOne(store, "b", b[0])
	if got := s.claim(store, "a", 5); clients(got) != "client free, other" {
		s.Errorf("%s was claimed, want free, other", clients(got))
	}
	if _, err := store.Settle(s.Context(), second.ID, second.Attempt+1, async.Outcome{State: async.Done}); err != nil {
		s.Fatal(err)
	}
	// One that waits for its time holds no name.
	s.claimOne(store, "a", a[1])
}

func checkExpires(s *bench) {
	store := s.open()
	n := async.NewTask{Queue: "q", Group: "g", Expires: 2 * time.Second}
	tasks := s.puts(store, n, 3)
	never := s.put(store, async.NewTask{Queue: "q", Group: "g", Client: "never"}, "")
	begun := s.claimOne(store, "q", tasks[0])
	s.settle(store, begun, async.Outcome{State: async.Pending})
	time.Sleep(2100 * time.Millisecond)
	// It was tried in time.
	s.settle(store, s.claimOne(store, "q", tasks[0]), async.Outcome{State: async.Done})
	// Nothing has been swept, and the others cannot begin all the same.
	s.claimOne(store, "q", never)
	s.sweep(store)
	for _, t := range tasks[1:] {
		task := s.wantState(store, t, async.Dead)
		if task.Reason != async.ReasonExpired || task.Attempt != 0 || task.Ended.IsZero() {
			s.Errorf("it is %+v", task)
		}
	}
	swept := s.puts(store, async.NewTask{Queue: "q", Client: "swept", Expires: time.Millisecond}, 300)
	time.Sleep(10 * time.Millisecond)
	if n := s.sweep(store); n != len(swept) {
		s.Errorf("%d tasks have expired, want %d", n, len(swept))
	}
	if q := s.queue(store, "q"); q.States[async.Dead] != len(swept)+2 || q.States[async.Pending] != 0 {
		s.Errorf("the queue is %+v", q)
	}
	// What is retried does not expire.
	if _, err := store.Retry(s.Context(), swept[0].ID); err != nil {
		s.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	s.sweep(store)
	s.claimOne(store, "q", swept[0])
}

func checkKeep(s *bench) {
	store := s.open()
	n := async.NewTask{Queue: "q", Keep: time.Second, Key: "k"}
	gone := s.put(store, n, strings.Repeat("x", large))
	forever := s.put(store, async.NewTask{Queue: "q", Client: "forever"}, "")
	s.settle(store, s.claimOne(store, "q", gone), async.Outcome{State: async.Done, Answer: answer(200, strings.Repeat("y", large))})
	s.settle(store, s.claimOne(store, "q", forever), async.Outcome{State: async.Done})
	s.sweep(store)
	s.wantState(store, gone, async.Done)
	time.Sleep(1100 * time.Millisecond)
	if n := s.sweep(store); n != 1 {
		s.Errorf("%d tasks were removed, want 1", n)
	}
	_, err := store.Get(s.Context(), gone.ID)
	s.wantErr("Get", err, async.ErrNotFound)
	_, err = store.Result(s.Context(), gone.ID)
	s.wantErr("Result", err, async.ErrNotFound)
	s.wantState(store, forever, async.Done)
	// The key is free.
	again := s.put(store, n, "other")
	s.settle(store, s.claimOne(store, "q", again), async.Outcome{State: async.Dead})
	// What is retried is kept until it ends.
	if _, err := store.Retry(s.Context(), again.ID); err != nil {
		s.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond)
	s.sweep(store)
	s.wantState(store, again, async.Pending)
}

func checkCancel(s *bench) {
	store := s.open()
	tasks := s.puts(store, async.NewTask{Queue: "q", Keep: time.Hour}, 5)
	if task, err := store.Cancel(s.Context(), tasks[0].ID); err != nil || task.State != async.Cancelled || task.Ended.IsZero() {
		s.Fatalf("Cancel of a pending task: %+v, error %v", task, err)
	}
	task, err := store.Cancel(s.Context(), tasks[0].ID)
	s.wantErr("Cancel again", err, async.ErrFinished)
	if task.State != async.Cancelled {
		s.Errorf("with the error it is %s", task.State)
	}
	running := s.claim(store, "q", 3)
	for range 2 {
		if task, err := store.Cancel(s.Context(), running[0].ID); err != nil || task.State != async.Running || !task.Cancelling {
			s.Fatalf("Cancel of a running task: %+v, error %v", task, err)
		}
	}
	if _, err := store.Cancel(s.Context(), running[1].ID); err != nil {
		s.Fatal(err)
	}
	renewal, err := store.Renew(s.Context(), owner)
	if err != nil || len(renewal.Cancelled) != 2 || len(renewal.Lost) != 0 {
		s.Fatalf("Renew: %+v, error %v; want 2 to be cancelled", renewal, err)
	}
	for _, a := range renewal.Cancelled {
		if a.Attempt != 1 || a.ID != running[0].ID && a.ID != running[1].ID {
			s.Errorf("attempt %+v is to be cancelled", a)
		}
	}
	if other, err := store.Renew(s.Context(), "another"); err != nil || len(other.Cancelled) != 0 {
		s.Errorf("another owner is told of %+v, error %v", other, err)
	}
	if task := s.settle(store, running[0], async.Outcome{State: async.Pending, Delay: time.Hour}); task.State != async.Cancelled || task.Cancelling {
		s.Errorf("it is %+v, want it cancelled", task)
	}
	if task := s.settle(store, running[1], async.Outcome{State: async.Done}); task.State != async.Done {
		s.Errorf("it is %+v, want it done", task)
	}
	if renewal, err := store.Renew(s.Context(), owner); err != nil || len(renewal.Cancelled) != 0 {
		s.Errorf("Renew after the end: %+v, error %v", renewal, err)
	}
	// It is to be cancelled, and its owner is gone.
	if _, err := store.Cancel(s.Context(), running[2].ID); err != nil {
		s.Fatal(err)
	}
	store = s.lose(store)
	s.wantState(store, running[2], async.Cancelled)
	s.claimOne(store, "q", tasks[4])
}

func checkCancelRace(s *bench) {
	const count = 60
	store := s.open()
	tasks := s.puts(store, async.NewTask{Queue: "q"}, count)
	var (
		all     sync.WaitGroup
		mu      sync.Mutex
		settled = make(map[string]async.State)
	)
	all.Go(func() {
		for _, k := range rand.Perm(count) {
			if _, err := store.Cancel(s.Context(), tasks[k].ID); err != nil && !errors.Is(err, async.ErrFinished) {
				s.Errorf("Cancel: %v", err)
			}
		}
	})
	for range 3 {
		all.Go(func() {
			for {
				claimed, err := store.Claim(s.Context(), owner, "q", 1)
				if err != nil {
					s.Errorf("Claim: %v", err)
				}
				if len(claimed) == 0 {
					return
				}
				state := async.Done
				if rand.IntN(2) == 0 {
					state = async.Pending
				}
				task, err := store.Settle(s.Context(), claimed[0].ID, claimed[0].Attempt, async.Outcome{State: state})
				if err != nil {
					s.Errorf("Settle: %v", err)
				}
				mu.Lock()
				if before, twice := settled[task.ID]; twice && before.Final() {
					s.Errorf("a task was %s, and is %s", before, task.State)
				}
				settled[task.ID] = task.State
				mu.Unlock()
			}
		})
	}
	all.Wait()
	for _, t := range tasks {
		task := s.get(store, t.ID)
		if !task.State.Final() || settled[t.ID] == async.Done && task.State != async.Done {
			s.Errorf("it is %s, and its attempt was recorded as %s", task.State, settled[t.ID])
		}
	}
	if q := s.queue(store, "q"); q.Unfinished() != 0 || q.States[async.Done]+q.States[async.Cancelled] != count {
		s.Errorf("the queue is %+v", q)
	}
}

func checkRetry(s *bench) {
	store := s.open()
	tasks := s.puts(store, async.NewTask{Queue: "q", Group: "g", Expires: time.Hour}, 3)
	_, err := store.Retry(s.Context(), tasks[0].ID)
	s.wantErr("Retry of a pending task", err, async.ErrUnfinished)
	c := s.claimOne(store, "q", tasks[0])
	_, err = store.Retry(s.Context(), tasks[0].ID)
	s.wantErr("Retry of a running task", err, async.ErrUnfinished)
	s.settle(store, c, async.Outcome{State: async.Dead, Reason: "too often", Answer: answer(503, strings.Repeat("x", large))})
	task, err := store.Retry(s.Context(), tasks[0].ID)
	if err != nil || task.State != async.Pending || task.Counted != 0 || task.Attempt != 1 || task.Status != 0 || task.Reason != "" || !task.Ended.IsZero() || !task.Expires.IsZero() {
		s.Fatalf("Retry: %+v, error %v", task, err)
	}
	_, err = store.Result(s.Context(), tasks[0].ID)
	s.wantErr("Result after Retry", err, async.ErrNoResult)
	// It stands at the end of its group.
	s.settle(store, s.claimOne(store, "q", tasks[1]), async.Outcome{State: async.Done})
	_, err = store.Retry(s.Context(), tasks[1].ID)
	s.wantErr("Retry of a task that is done", err, async.ErrFinished)
	if _, err := store.Cancel(s.Context(), tasks[2].ID); err != nil {
		s.Fatal(err)
	}
	if _, err := store.Retry(s.Context(), tasks[2].ID); err != nil {
		s.Fatal(err)
	}
	again := s.claimOne(store, "q", tasks[0])
	if again.Attempt != 2 {
		s.Errorf("attempt %d follows 1", again.Attempt)
	}
	_, err = store.Settle(s.Context(), c.ID, c.Attempt, async.Outcome{State: async.Done})
	s.wantErr("Settle of the attempt before", err, async.ErrStale)
	s.settle(store, again, async.Outcome{State: async.Done})
	s.claimOne(store, "q", tasks[2])
}

func checkPurge(s *bench) {
	store := s.open()
	t := s.put(store, async.NewTask{Queue: "q", Keep: time.Hour, Group: "g"}, strings.Repeat("x", large))
	s.wantErr("Purge of a pending task", store.Purge(s.Context(), t.ID), async.ErrUnfinished)
	c := s.claimOne(store, "q", t)
	s.wantErr("Purge of a running task", store.Purge(s.Context(), t.ID), async.ErrUnfinished)
	s.settle(store, c, async.Outcome{State: async.Failed, Answer: answer(500, "x")})
	open, err := store.Body(s.Context(), t.ID)
	if err != nil {
		s.Fatal(err)
	}
	if err := store.Purge(s.Context(), t.ID); err != nil {
		s.Fatal(err)
	}
	if got := s.readAll(open, nil); len(got) != large {
		s.Errorf("a body that is read while its task is purged has %d bytes, want %d", len(got), large)
	}
	s.wantErr("Purge again", store.Purge(s.Context(), t.ID), async.ErrNotFound)
	if queues, err := store.Queues(s.Context()); err != nil || len(queues) != 0 {
		s.Errorf("there are queues: %v, error %v", queues, err)
	}
	if tasks := s.list(store, async.Filter{}); len(tasks) != 0 {
		s.Errorf("%d tasks are listed", len(tasks))
	}
}

func checkList(s *bench) {
	store := s.open()
	for _, queue := range []string{"bb", "a", "c"} {
		for _, t := range s.puts(store, async.NewTask{Queue: queue}, 7)[:2] {
			s.settle(store, s.claimOne(store, queue, t), async.Outcome{State: async.Dead})
		}
	}
	order := func(tasks []async.Task) (all []string) {
		for _, t := range tasks {
			all = append(all, t.Queue+" "+t.State.String()+" "+t.Client)
		}
		return all
	}
	var want []string
	for _, queue := range []string{"a", "bb", "c"} {
		for k := 2; k < 7; k++ {
			want = append(want, queue+" pending "+strconv.Itoa(k))
		}
		want = append(want, queue+" dead 0", queue+" dead 1")
	}
	for limit := range 23 {
		if got := order(s.list(store, async.Filter{Limit: limit})); !slices.Equal(got, want) {
			s.Fatalf("in pages of %d the list is %q, want %q", limit, got, want)
		}
	}
	for limit := range 8 {
		if got := order(s.list(store, async.Filter{Queue: "bb", Limit: limit})); !slices.Equal(got, want[7:14]) {
			s.Errorf("in pages of %d the list of a queue is %q, want %q", limit, got, want[7:14])
		}
		if got := order(s.list(store, async.Filter{State: async.Dead, Limit: limit})); len(got) != 6 || got[0] != "a dead 0" || got[5] != "c dead 1" {
			s.Errorf("in pages of %d the list of a state is %q", limit, got)
		}
		if got := order(s.list(store, async.Filter{Queue: "c", State: async.Pending, Limit: limit})); !slices.Equal(got, want[14:19]) {
			s.Errorf("in pages of %d the list of a queue and a state is %q, want %q", limit, got, want[14:19])
		}
	}
	if got := s.list(store, async.Filter{Queue: "unknown"}); len(got) != 0 {
		s.Errorf("an unknown queue has %d tasks", len(got))
	}
	if _, err := store.List(s.Context(), async.Filter{After: "nonsense"}); err == nil {
		s.Error("a list goes on from nonsense")
	}
	// What was the last one of a page may be gone.
	page, err := store.List(s.Context(), async.Filter{Queue: "a", State: async.Pending, Limit: 2})
	if err != nil {
		s.Fatal(err)
	}
	if _, err := store.Cancel(s.Context(), page.Tasks[1].ID); err != nil {
		s.Fatal(err)
	}
	if got := order(s.list(store, async.Filter{Queue: "a", State: async.Pending, After: page.Next})); !slices.Equal(got, want[2:5]) {
		s.Errorf("after the page there is %q, want %q", got, want[2:5])
	}
}

func checkProgress(s *bench) {
	store := s.open()
	t := s.put(store, async.NewTask{Queue: "q"}, "")
	s.wantErr("Progress of a pending task", store.Progress(s.Context(), t.ID, 0, 10), async.ErrStale)
	c := s.claimOne(store, "q", t)
	if c.Progress >= 0 {
		s.Errorf("the progress is %d at the beginning", c.Progress)
	}
	if err := store.Progress(s.Context(), t.ID, c.Attempt, 40); err != nil {
		s.Fatal(err)
	}
	if got := s.get(store, t.ID); got.Progress != 40 {
		s.Errorf("the progress is %d, want 40", got.Progress)
	}
	s.wantErr("Progress of another attempt", store.Progress(s.Context(), t.ID, c.Attempt+1, 50), async.ErrStale)
	s.settle(store, c, async.Outcome{State: async.Pending})
	s.wantErr("Progress after the attempt", store.Progress(s.Context(), t.ID, c.Attempt, 60), async.ErrStale)
	if again := s.claimOne(store, "q", t); again.Progress >= 0 {
		s.Errorf("the second attempt begins with progress %d", again.Progress)
	}
}

func checkWatch(s *bench) {
	store := s.open()
	var (
		mu   sync.Mutex
		seen []async.Change
	)
	stop := store.Watch(func(c async.Change) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, c)
	})
	t := s.put(store, async.NewTask{Queue: "q"}, "")
	s.settle(store, s.claimOne(store, "q", t), async.Outcome{State: async.Pending})
	s.settle(store, s.claimOne(store, "q", t), async.Outcome{State: async.Done})
	s.await("the last change", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Contains(seen, async.Change{Queue: "q", ID: t.ID, State: async.Done})
	})
	stop()
	mu.Lock()
	defer mu.Unlock()
	want := async.Change{Queue: "q", ID: t.ID, State: async.Pending}
	if !slices.Contains(seen, want) {
		s.Errorf("the changes are %v, want %v among them", seen, want)
	}
}

func checkCallback(s *bench) {
	store := s.open()
	n := async.NewTask{Queue: "q", Callback: "https://hooks.example.com/", Client: "c", Expires: 2 * time.Second}
	tasks := make([]async.Task, 5)
	for k := range tasks {
		tasks[k] = s.put(store, n, "")
	}
	silent := s.put(store, async.NewTask{Queue: "q"}, "")
	running := s.claim(store, "q", 3)
	s.settle(store, running[0], async.Outcome{State: async.Done, Answer: answer(200, "")})
	s.settle(store, running[1], async.Outcome{State: async.Pending, Delay: time.Hour})
	if _, err := store.Cancel(s.Context(), tasks[3].ID); err != nil {
		s.Fatal(err)
	}
	time.Sleep(2100 * time.Millisecond)
	s.sweep(store)
	store = s.reopen(store)
	if s.Shared {
		time.Sleep(s.Lease)
	}
	s.recover(store, "another", func(async.Task) async.Outcome { return async.Outcome{State: async.Dead} })
	ends := map[string]async.State{
		tasks[0].ID: async.Done, tasks[2].ID: async.Dead, tasks[3].ID: async.Cancelled, tasks[4].ID: async.Dead,
	}
	queue := async.CallbackQueue("q")
	callbacks := s.claim(store, queue, 10)
	if len(callbacks) != len(ends) {
		s.Fatalf("there are %d callbacks, want %d", len(callbacks), len(ends))
	}
	for _, c := range callbacks {
		body := s.readAll(store.Body(s.Context(), c.ID))
		found := ""
		for id, state := range ends {
			if strings.Contains(body, `"`+id+`"`) && strings.Contains(body, `"state":"`+state.String()+`"`) {
				found = id
			}
		}
		if found == "" || c.Request.Method != http.MethodPost || c.Request.URI != n.Callback || c.Client != "c" {
			s.Errorf("a callback is %+v with the body %s", c, body)
		}
		delete(ends, found)
		s.settle(store, c, async.Outcome{State: async.Done})
	}
	s.claimNone(store, queue)
	s.wantState(store, silent, async.Pending)
}

func checkRecover(s *bench) {
	const count = 230
	store := s.open()
	s.puts(store, async.NewTask{Queue: "q"}, count+1)
	claimed := s.claim(store, "q", count)
	never := func(t async.Task) async.Outcome {
		s.Errorf("client %s is not lost", t.Client)
		return async.Outcome{State: async.Dead}
	}
	s.recover(store, owner, never)
	store = s.reopen(store)
	mine, err := store.Claim(s.Context(), "another", "q", 1)
	if err != nil || len(mine) != 1 {
		s.Fatalf("Claim: %d tasks, error %v", len(mine), err)
	}
	if s.Shared {
		time.Sleep(s.Lease)
		if _, err := store.Renew(s.Context(), "another"); err != nil {
			s.Fatal(err)
		}
	}
	seen := make(map[string]int)
	n := s.recover(store, "another", func(t async.Task) async.Outcome {
		if t.ID == mine[0].ID {
			s.Error("an owner has lost its own attempt")
		}
		if t.State != async.Running || t.Attempt != 1 || t.Owner != owner {
			s.Errorf("the lost task is %+v", t)
		}
		seen[t.ID]++
		return async.Outcome{State: async.Pending, Reason: "lost"}
	})
	if n != count || len(seen) != count {
		s.Errorf("%d attempts of %d tasks were ended, want %d", n, len(seen), count)
	}
	_, err = store.Settle(s.Context(), claimed[0].ID, claimed[0].Attempt, async.Outcome{State: async.Done})
	s.wantErr("Settle by the owner that was gone", err, async.ErrStale)
	again := s.claim(store, "q", count+1)
	if !slices.Equal(ids(again), ids(claimed)) {
		s.Errorf("%d tasks were claimed again, want those %d", len(again), count)
	}
	for _, t := range again {
		if t.Attempt != 2 || t.Counted != 1 {
			s.Fatalf("it is %+v", t)
		}
	}
	_, err = store.Settle(s.Context(), claimed[0].ID, claimed[0].Attempt, async.Outcome{State: async.Done})
	s.wantErr("Settle by the owner that was gone", err, async.ErrStale)
	s.recover(store, owner, never)
}

func checkLease(s *bench) {
	a, b := s.open(), s.open()
	t := s.put(a, async.NewTask{Queue: "q"}, "")
	kept := s.put(a, async.NewTask{Queue: "q", Client: "kept"}, "")
	stands := s.claimOne(a, "q", t)
	if got, err := b.Claim(s.Context(), "another", "q", 1); err != nil || len(got) != 1 || got[0].ID != kept.ID {
		s.Fatalf("Claim: %s, error %v", clients(got), err)
	}
	lost := 0
	s.await("an attempt that is lost", func() bool {
		if _, err := b.Renew(s.Context(), "another"); err != nil {
			s.Fatalf("Renew: %v", err)
		}
		lost += s.recover(b, "another", func(t async.Task) async.Outcome {
			if t.ID == kept.ID {
				s.Error("an owner that renews its lease has lost it")
			}
			return async.Outcome{State: async.Pending}
		})
		return lost > 0
	})
	renewal, err := a.Renew(s.Context(), owner)
	if err != nil || !slices.Contains(renewal.Lost, async.Attempt{ID: t.ID, Attempt: stands.Attempt}) {
		s.Errorf("Renew: %+v, error %v; want to hear of what is lost", renewal, err)
	}
	_, err = a.Settle(s.Context(), t.ID, stands.Attempt, async.Outcome{State: async.Done})
	s.wantErr("Settle of a lost attempt", err, async.ErrStale)
	if got, err := b.Claim(s.Context(), "another", "q", 1); err != nil || len(got) != 1 || got[0].Attempt != 2 {
		s.Errorf("Claim: %+v, error %v", got, err)
	}
}

func checkContext(s *bench) {
	store := s.open()
	t := s.put(store, async.NewTask{Queue: "q"}, "")
	if _, _, err := store.Put(ended(), async.NewTask{Queue: "q"}, strings.NewReader("x")); err == nil {
		s.Error("Put succeeds")
	}
	if _, err := store.Claim(ended(), owner, "q", 1); err == nil {
		s.Error("Claim succeeds")
	}
	if _, err := store.Cancel(ended(), t.ID); err == nil {
		s.Error("Cancel succeeds")
	}
	if got := s.list(store, async.Filter{}); len(got) != 1 || got[0].State != async.Pending {
		s.Errorf("there is %+v", got)
	}
	s.claimOne(store, "q", t)
}

func checkClosed(s *bench) {
	store := s.open()
	t := s.put(store, async.NewTask{Queue: "q"}, "")
	for range 2 {
		if err := store.Close(); err != nil {
			s.Errorf("Close: %v", err)
		}
	}
	_, _, err := store.Put(s.Context(), async.NewTask{Queue: "q"}, strings.NewReader(strings.Repeat("x", large)))
	s.wantErr("Put", err, async.ErrClosed)
	_, err = store.Get(s.Context(), t.ID)
	s.wantErr("Get", err, async.ErrClosed)
	_, err = store.Claim(s.Context(), owner, "q", 1)
	s.wantErr("Claim", err, async.ErrClosed)
	_, err = store.Queues(s.Context())
	s.wantErr("Queues", err, async.ErrClosed)
	_, err = store.Sweep(s.Context())
	s.wantErr("Sweep", err, async.ErrClosed)
	store = s.open()
	if got := s.list(store, async.Filter{}); len(got) != 1 {
		s.Errorf("%d tasks are stored, want 1", len(got))
	}
}

func checkClock(s *bench) {
	const year = 365 * 24 * time.Hour
	store := s.open()
	t := s.put(store, async.NewTask{Queue: "q", Client: "t"}, "")
	keeps := s.put(store, async.NewTask{Queue: "q", Client: "keeps", Expires: 2 * time.Hour}, "")
	s.settle(store, s.claimOne(store, "q", t), async.Outcome{State: async.Pending, Delay: 100 * time.Millisecond})
	at := func(ahead time.Duration) async.Store {
		s.Helper()
		if err := store.Close(); err != nil {
			s.Fatal(err)
		}
		next, err := s.OpenAhead(s.place, ahead)
		if err != nil {
			s.Fatal(err)
		}
		s.Cleanup(func() { _ = next.Close() })
		return next
	}
	// Backwards: a short wait does not become a long one.
	store = at(-year)
	first := s.claimSoon(store, "q")
	for first.ID != t.ID {
		s.settle(store, first, async.Outcome{State: async.Pending, Delay: time.Hour})
		first = s.claimSoon(store, "q")
	}
	if first.Attempt != 2 {
		s.Errorf("it is attempt %d, want 2", first.Attempt)
	}
	s.settle(store, first, async.Outcome{State: async.Pending, Delay: 50 * time.Millisecond})
	// Forwards: nothing is ended that is under way, and nothing is executed twice.
	store = at(year)
	s.recover(store, owner, func(async.Task) async.Outcome { return async.Outcome{State: async.Pending} })
	second := s.claimSoon(store, "q")
	s.recover(store, owner, func(t async.Task) async.Outcome {
		s.Errorf("client %s has lost its attempt", t.Client)
		return async.Outcome{State: async.Dead}
	})
	if _, err := store.Settle(s.Context(), second.ID, second.Attempt-1, async.Outcome{State: async.Done}); !errors.Is(err, async.ErrStale) {
		s.Errorf("the attempt before is settled: %v", err)
	}
	s.settle(store, second, async.Outcome{State: async.Done})
	// And back: the time of the store goes on.
	store = at(0)
	fresh := s.put(store, async.NewTask{Queue: "fresh", Expires: 100 * time.Millisecond, Keep: 100 * time.Millisecond}, "")
	if old := s.get(store, keeps.ID); fresh.Accepted.Before(old.Accepted) {
		s.Errorf("the time of the store has gone back from %v to %v", old.Accepted, fresh.Accepted)
	}
	s.await("an end of the fresh task", func() bool {
		s.sweep(store)
		_, err := store.Get(s.Context(), fresh.ID)
		return errors.Is(err, async.ErrNotFound)
	})
}

func checkNewer(s *bench) {
	store := s.open()
	t := s.put(store, async.NewTask{Queue: "q"}, "")
	if err := store.Close(); err != nil {
		s.Fatal(err)
	}
	s.MakeNewer(s.T, s.place)
	for range 2 {
		store, err := s.Open(s.place)
		if err == nil {
			_ = store.Close()
		}
		newer, ok := errors.AsType[*async.NewerError](err)
		if !ok || newer.Found <= newer.Know || !strings.Contains(err.Error(), "newer") {
			s.Fatalf("Open of a newer store: error %v; task %s", err, t.ID)
		}
	}
}

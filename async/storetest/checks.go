package storetest

import (
	"errors"
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

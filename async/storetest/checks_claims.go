package storetest

import (
	"errors"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddy-usher/usher/async"
)

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

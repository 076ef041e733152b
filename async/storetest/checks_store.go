package storetest

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddy-usher/usher/async"
)

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

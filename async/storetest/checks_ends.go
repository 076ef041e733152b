package storetest

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/caddy-usher/usher/async"
)

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

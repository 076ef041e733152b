package async_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/async/file"
)

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

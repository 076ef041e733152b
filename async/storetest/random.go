package storetest

import (
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/caddy-usher/usher/async"
)

// modelTask is what the check expects of a task.
type modelTask struct {
	async.Task
	place   int
	waiting bool // for a time that does not come
}

// model is a store in the simplest form.
type model struct {
	tasks map[string]*modelTask
	place int
}

// first reports whether t is the first of its group that has not ended.
func (m *model) first(t *modelTask) bool {
	if t.Group == "" {
		return true
	}
	for _, o := range m.tasks {
		if o.Queue == t.Queue && o.Group == t.Group && !o.State.Final() && o.place < t.place {
			return false
		}
	}
	return true
}

func (m *model) held(exclusive string) bool {
	for _, o := range m.tasks {
		if exclusive != "" && o.Exclusive == exclusive && o.State == async.Running {
			return true
		}
	}
	return false
}

func (m *model) canBegin(t *modelTask) bool {
	return t.State == async.Pending && !t.waiting && !m.held(t.Exclusive) && m.first(t)
}

// next is the oldest task of a queue that can begin, or nil.
func (m *model) next(queue string) (next *modelTask) {
	for _, t := range m.tasks {
		if t.Queue == queue && m.canBegin(t) && (next == nil || t.place < next.place) {
			next = t
		}
	}
	return next
}

func (m *model) queue(name string) (q async.Queue) {
	exclusive := make(map[string]bool)
	for _, t := range m.tasks {
		if t.Queue != name {
			continue
		}
		q.States[t.State]++
		if m.canBegin(t) && !exclusive[t.Exclusive] {
			q.Runnable++
			exclusive[t.Exclusive] = t.Exclusive != ""
		}
	}
	return q
}

// pick returns any task, or nil.
func (m *model) pick() *modelTask {
	for _, t := range m.tasks { // in no order
		return t
	}
	return nil
}

// checkRandom compares the store with a model while it does anything at random.
func checkRandom(s *bench) {
	const steps = 1500
	seed := rand.Uint64()
	s.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	store := s.open()
	m := &model{tasks: make(map[string]*modelTask)}
	queues := []string{"a", "b", "aa"}
	for step := range steps {
		switch random.IntN(12) {
		case 0, 1, 2, 3:
			n := async.NewTask{Queue: queues[random.IntN(len(queues))], Client: strconv.Itoa(step)}
			if random.IntN(2) == 0 {
				n.Group = "g" + strconv.Itoa(random.IntN(3))
			}
			if random.IntN(3) == 0 {
				n.Exclusive = "x" + strconv.Itoa(random.IntN(2))
			}
			t := s.put(store, n, "")
			m.place++
			m.tasks[t.ID] = &modelTask{Task: t, place: m.place}
		case 4, 5, 6:
			queue := queues[random.IntN(len(queues))]
			want := m.next(queue)
			got := s.claim(store, queue, 1)
			if (want == nil) != (len(got) == 0) || want != nil && got[0].ID != want.ID {
				s.Fatalf("step %d: %s was claimed, want %+v", step, clients(got), want)
			}
			if want != nil {
				want.State, want.Attempt = async.Running, got[0].Attempt
			}
		case 7, 8:
			s.settleAny(store, m, random)
		case 9:
			if t := m.pick(); t != nil {
				task, err := store.Cancel(s.Context(), t.ID)
				if err == nil && task.State == async.Cancelled {
					t.State, t.waiting = async.Cancelled, false
				}
				t.Cancelling = task.Cancelling
			}
		case 10:
			if t := m.pick(); t != nil {
				if _, err := store.Retry(s.Context(), t.ID); err == nil {
					m.place++
					t.State, t.place = async.Pending, m.place
				}
			}
		case 11:
			if t := m.pick(); t != nil && random.IntN(3) == 0 {
				if err := store.Purge(s.Context(), t.ID); err == nil {
					delete(m.tasks, t.ID)
				}
			}
		}
		if step%100 == 99 {
			store = s.compare(store, m, queues, step)
		}
	}
}

// settleAny ends an attempt that is under way.
func (s *bench) settleAny(store async.Store, m *model, random *rand.Rand) {
	s.Helper()
	for _, t := range m.tasks {
		if t.State != async.Running {
			continue
		}
		o := async.Outcome{State: []async.State{async.Pending, async.Pending, async.Done, async.Failed, async.Dead}[random.IntN(5)]}
		if random.IntN(3) == 0 {
			o.Delay = time.Hour
		}
		task := s.settle(store, t.Task, o)
		want := o.State
		if t.Cancelling && want == async.Pending {
			want = async.Cancelled
		}
		if task.State != want {
			s.Fatalf("client %s is %s, want %s", t.Client, task.State, want)
		}
		t.State, t.waiting, t.Cancelling = want, want == async.Pending && o.Delay > 0, false
		return
	}
}

// compare compares all that the store tells with the model.
func (s *bench) compare(store async.Store, m *model, queues []string, step int) async.Store {
	s.Helper()
	for _, name := range queues {
		got, want := s.queue(store, name), m.queue(name)
		if got.States != want.States || got.Runnable != want.Runnable {
			s.Fatalf("step %d: queue %s is %+v, want %+v", step, name, got, want)
		}
	}
	listed := s.list(store, async.Filter{Limit: 7})
	if len(listed) != len(m.tasks) {
		s.Fatalf("step %d: %d tasks are listed, want %d", step, len(listed), len(m.tasks))
	}
	for _, t := range listed {
		want := m.tasks[t.ID]
		if want == nil || t.State != want.State || t.Attempt != want.Attempt || t.Cancelling != want.Cancelling {
			s.Fatalf("step %d: %+v is listed, want %+v", step, t, want)
		}
	}
	return store
}

package hub

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/reserver"
)

// TaskPlace is the place in a configuration at which the stored requests of a service
// are executed.
type TaskPlace interface {
	Policy() async.Policy
	Slot(ctx context.Context) (async.Slot, error)
}

// TaskStore describes the store of a configuration.
type TaskStore struct {
	// Name tells stores apart: two descriptions with equal names are of the same one.
	Name   string
	Opener async.Opener
	Key    string
}

// tasksGrace is how long attempts may go on when Caddy exits. After that they count
// as failed.
const tasksGrace = 10 * time.Second

// Tasks executes the stored requests of all services. It is made when the first
// configuration with stored requests comes into force, and lives as long as the hub.
type Tasks struct {
	Store      async.Store
	Dispatcher *async.Dispatcher

	hub   *Hub
	name  string // TaskStore.Name
	begin func() // lets the dispatcher run
	stop  context.CancelFunc
	done  chan struct{}
	off   func()

	mu      sync.Mutex
	places  map[string]TaskPlace
	waiting map[string]map[chan struct{}]bool // what waits for a change, by task
	logged  time.Time
	closed  bool
}

// troublePause is the shortest time between two log lines about the store.
const troublePause = time.Minute

// Tasks returns what executes stored requests; nil before a configuration has any.
func (h *Hub) Tasks() *Tasks { return h.tasks.Load() }

// openTasks opens the store of g, if it has one and none is open.
func (h *Hub) openTasks(g *Generation) error {
	if g.TaskStore == nil {
		return nil
	}
	if t := h.tasks.Load(); t != nil {
		if t.name != g.TaskStore.Name {
			return errors.New("the store of tasks, or its key, cannot change while Caddy runs: restart Caddy")
		}
		return nil
	}
	store, err := g.TaskStore.Opener.Open(async.Env{DataDir: h.host.DataDir, Key: g.TaskStore.Key})
	if err != nil {
		return fmt.Errorf("async: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	t := &Tasks{
		Store: store, hub: h, name: g.TaskStore.Name, stop: stop, done: make(chan struct{}),
		waiting: make(map[string]map[chan struct{}]bool),
	}
	t.Dispatcher = async.NewDispatcher(store, t, async.Options{Owner: rand.Text(), Grace: tasksGrace, Report: countAttempt, Trouble: t.trouble})
	t.off = store.Watch(t.changed)
	t.begin = sync.OnceFunc(func() {
		go func() {
			defer close(t.done)
			t.Dispatcher.Run(ctx)
		}()
	})
	h.tasks.Store(t)
	return nil
}

// useTasks lets the tasks of each service be executed at the place of the newest
// configuration that has one. The lock of h is held.
func (h *Hub) useTasks() {
	t := h.tasks.Load()
	if t == nil {
		return
	}
	places := make(map[string]TaskPlace)
	for _, g := range h.generations {
		maps.Copy(places, g.Tasks)
	}
	t.mu.Lock()
	t.places = places
	t.mu.Unlock()
	// Not before there are places: what an earlier process has left under way is decided
	// first, by their policies.
	t.begin()
	t.Dispatcher.Wake()
}

// resumeTasks lets the tasks of a service ask for slots again at once.
func (h *Hub) resumeTasks(service string) {
	if t := h.tasks.Load(); t != nil {
		t.Dispatcher.Resume(service)
	}
}

// endTasks lets no attempt begin any more.
func (h *Hub) endTasks() {
	if t := h.tasks.Load(); t != nil {
		t.stop()
	}
}

// closeTasks waits until all attempts have ended, and closes the store.
func (h *Hub) closeTasks() {
	t := h.tasks.Load()
	if t == nil {
		return
	}
	t.stop()
	t.begin() // if no configuration came into force
	<-t.done
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.closed = true
	t.off()
	if err := t.Store.Close(); err != nil {
		h.logs.logger.Error("the store of tasks could not be closed", zap.Error(err))
	}
}

// TaskWaits counts one task more, or with -1 less, that waits for a slot.
func (s *Service) TaskWaits(n int32) { s.tasksWaiting.Add(n) }

// visitorsAndTasks parts those that wait as visitors.
func (s *Service) visitorsAndTasks(stats reserver.Stats) (visitors, tasks int) {
	tasks = min(int(s.tasksWaiting.Load()), stats.Visitors)
	return stats.Visitors - tasks, tasks
}

func (t *Tasks) place(queue string) TaskPlace {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.places[queue]
}

// Policy implements async.Services.
func (t *Tasks) Policy(queue string) (async.Policy, bool) {
	p := t.place(queue)
	if p == nil {
		return async.Policy{}, false
	}
	return p.Policy(), true
}

// errNoPlace says that a configuration no longer has stored requests for a service.
var errNoPlace = errors.New("no configuration in force executes the tasks of the service")

// Slot implements async.Services.
func (t *Tasks) Slot(ctx context.Context, queue string) (async.Slot, error) {
	p := t.place(queue)
	if p == nil {
		return nil, errNoPlace
	}
	return p.Slot(ctx)
}

// trouble logs what goes wrong with the store, now and then.
func (t *Tasks) trouble(err error) {
	t.mu.Lock()
	now := time.Now()
	quiet := now.Sub(t.logged) < troublePause
	if !quiet {
		t.logged = now
	}
	t.mu.Unlock()
	if !quiet {
		t.hub.logs.logger.Error("the store of tasks has failed; stored requests wait until it works again", zap.Error(err))
	}
}

// changed wakes what waits for a task.
func (t *Tasks) changed(c async.Change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ch := range t.waiting[c.ID] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Follow returns a channel that gets something when the task may have changed, until
// stop is called.
func (t *Tasks) Follow(id string) (changes <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting[id] == nil {
		t.waiting[id] = make(map[chan struct{}]bool)
	}
	t.waiting[id][ch] = true
	return ch, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.waiting[id], ch)
		if len(t.waiting[id]) == 0 {
			delete(t.waiting, id)
		}
	}
}

var _ async.Services = (*Tasks)(nil)

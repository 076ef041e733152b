package liveview

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
)

const (
	// tasksPause is the time between two looks at how many requests are stored.
	tasksPause = time.Second

	// tasksPatience is how long the store may take for an answer: a page that is opened
	// waits for it.
	tasksPatience = 2 * time.Second

	// shownDead is how many dead letters of a queue are shown.
	shownDead = 20
)

// tasksView is the stored requests, in numbers, as the live view shows them.
type tasksView struct {
	Queues []hub.TaskQueue `json:"queues"` // by service, or callback:<service>

	// Error says why the store cannot be read.
	Error string `json:"error,omitempty"`
}

// sameCounts reports whether nothing has changed, but for the age of the oldest: that
// the page counts on by itself.
func (v *tasksView) sameCounts(other *tasksView) bool {
	if v == nil || other == nil {
		return v == other
	}
	if v.Error != other.Error || len(v.Queues) != len(other.Queues) {
		return false
	}
	for k, q := range v.Queues {
		q.OldestMS = other.Queues[k].OldestMS
		if q != other.Queues[k] {
			return false
		}
	}
	return true
}

// tasksOf returns nil if no requests are stored.
func tasksOf(ctx context.Context, h *hub.Hub) *tasksView {
	t := h.Tasks()
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tasksPatience)
	defer cancel()
	queues, err := t.Queues(ctx)
	v := &tasksView{Queues: queues}
	if err != nil {
		v.Error = hub.Cut(err.Error())
	}
	return v
}

// taskCounter looks at the stored requests now and then. A store may take its time, so
// frames do not wait for it.
type taskCounter struct{ latest atomic.Pointer[tasksView] }

func (c *taskCounter) run(h *hub.Hub, stop <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-stop
		cancel()
	}()
	tick := time.NewTicker(tasksPause)
	defer tick.Stop()
	for {
		c.latest.Store(tasksOf(ctx, h))
		select {
		case <-tick.C:
		case <-stop:
			return
		}
	}
}

// deadLetter is a task that Usher has given up. What stands in its query is not
// shown: it can be a secret.
type deadLetter struct {
	ID       string    `json:"id"`
	Queue    string    `json:"queue"`
	Method   string    `json:"method"`
	Path     string    `json:"path"`
	Reason   string    `json:"reason"`
	Attempts int       `json:"attempts"`
	Accepted time.Time `json:"accepted"`
	Ended    time.Time `json:"ended"`
}

// deadLetters returns the oldest dead letters of a service, and of its callbacks.
func deadLetters(ctx context.Context, h *hub.Hub, service string) []deadLetter {
	all := []deadLetter{}
	t := h.Tasks()
	if t == nil {
		return all
	}
	ctx, cancel := context.WithTimeout(ctx, tasksPatience)
	defer cancel()
	for _, queue := range []string{service, async.CallbackQueue(service)} {
		page, err := t.Store.List(ctx, async.Filter{Queue: queue, State: async.Dead, Limit: shownDead})
		if err != nil {
			return all // the counts say why
		}
		for _, task := range page.Tasks {
			path, _, _ := strings.Cut(task.Request.URI, "?")
			all = append(all, deadLetter{
				ID: task.ID, Queue: task.Queue, Method: task.Request.Method, Path: path, Reason: hub.Cut(task.Reason),
				Attempts: task.Attempt, Accepted: task.Accepted.UTC(), Ended: task.Ended.UTC(),
			})
		}
	}
	return all
}

// operateTask tries a task again that has ended, or removes it.
func operateTask(ctx context.Context, h *hub.Hub, id, what string) error {
	t := h.Tasks()
	if t == nil {
		return answer.ApiError(http.StatusNotFound, "no requests are stored")
	}
	switch what {
	case "retry":
		_, err := t.Store.Retry(ctx, id)
		return answer.OperationError(err)
	case "purge":
		return answer.OperationError(t.Store.Purge(ctx, id))
	}
	return answer.ApiError(http.StatusBadRequest, "there is nothing like '%s' to do with a task: use retry or purge", what)
}

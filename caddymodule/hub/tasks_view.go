package hub

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/caddy-usher/usher/async"
)

// TaskSummary is a task as operators see it.
type TaskSummary struct {
	ID       string     `json:"id"`
	Service  string     `json:"service"`
	State    string     `json:"state"`
	Reason   string     `json:"reason,omitempty"`
	Method   string     `json:"method"`
	URI      string     `json:"uri"`
	Client   string     `json:"client,omitempty"`
	Group    string     `json:"group,omitempty"`
	Attempts int        `json:"attempts"`
	Counted  int        `json:"counted"`
	Progress *int       `json:"progress,omitempty"`
	Accepted time.Time  `json:"accepted"`
	Due      *time.Time `json:"due,omitempty"`
	Started  *time.Time `json:"started,omitempty"`
	Expires  *time.Time `json:"expires,omitempty"`
	Ended    *time.Time `json:"ended,omitempty"`
	BodySize int64      `json:"body_size"`
	Status   int        `json:"status,omitempty"`
	Size     int64      `json:"size,omitempty"`
}

// TaskList is a page of tasks.
type TaskList struct {
	Tasks []TaskSummary `json:"tasks"`

	// Next is where the next page begins; empty on the last one.
	Next string `json:"next,omitempty"`

	// Queues are the counts of all services, whatever the list has.
	Queues []TaskQueue `json:"queues"`
}

// TaskQueue is the tasks of a service, in numbers.
type TaskQueue struct {
	Service   string `json:"service"`
	Pending   int    `json:"pending"`
	Running   int    `json:"running"`
	Done      int    `json:"done"`
	Failed    int    `json:"failed"`
	Dead      int    `json:"dead"`
	Cancelled int    `json:"cancelled"`

	// Runnable is how many of the pending ones could begin now, and OldestMS for how
	// long the oldest of them has waited since it was accepted.
	Runnable int   `json:"runnable"`
	OldestMS int64 `json:"oldest_ms"`
}

// SummarizeTask returns t as operators see it.
func SummarizeTask(t async.Task) TaskSummary {
	s := TaskSummary{
		ID: t.ID, Service: t.Queue, State: t.State.String(), Reason: t.Reason, Method: t.Request.Method, URI: t.Request.URI,
		Client: t.Client, Group: t.Group, Attempts: t.Attempt, Counted: t.Counted, Accepted: t.Accepted.UTC(),
		BodySize: t.BodySize, Status: t.Status, Size: t.ResultSize,
	}
	if t.Cancelling {
		s.Reason = "it is to be cancelled"
	}
	if t.Progress >= 0 && t.State == async.Running {
		s.Progress = &t.Progress
	}
	for to, from := range map[**time.Time]time.Time{&s.Due: t.Due, &s.Started: t.Started, &s.Expires: t.Expires, &s.Ended: t.Ended} {
		if from = from.UTC(); !from.IsZero() {
			*to = &from
		}
	}
	return s
}

// TaskStateOf returns the state with that name.
func TaskStateOf(name string) (async.State, error) {
	for _, s := range async.States {
		if s.String() == name {
			return s, nil
		}
	}
	return 0, fmt.Errorf("a task has no state '%s': use pending, running, done, failed, dead or cancelled", name)
}

// List returns a page of the tasks.
func (t *Tasks) List(ctx context.Context, f async.Filter) (list TaskList, err error) {
	list.Tasks = []TaskSummary{}
	page, err := t.Store.List(ctx, f)
	if err != nil {
		return list, err
	}
	for _, task := range page.Tasks {
		list.Tasks = append(list.Tasks, SummarizeTask(task))
	}
	list.Next = page.Next
	list.Queues, err = t.Queues(ctx)
	return list, err
}

// Queues returns the counts of all services, by their names.
func (t *Tasks) Queues(ctx context.Context) ([]TaskQueue, error) {
	all := []TaskQueue{}
	queues, err := t.Store.Queues(ctx)
	if err != nil {
		return all, err
	}
	for _, name := range slices.Sorted(maps.Keys(queues)) {
		q := queues[name]
		all = append(all, TaskQueue{
			Service: name, Pending: q.States[async.Pending], Running: q.States[async.Running], Done: q.States[async.Done],
			Failed: q.States[async.Failed], Dead: q.States[async.Dead], Cancelled: q.States[async.Cancelled],
			Runnable: q.Runnable, OldestMS: q.Oldest.Milliseconds(),
		})
	}
	return all, nil
}

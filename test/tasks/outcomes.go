package tasks

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
)

// outcome is what the store says of a task.
type outcome struct {
	ID       string `json:"id"`
	Service  string `json:"service"`
	State    string `json:"state"`
	Reason   string `json:"reason"`
	Attempts int    `json:"attempts"`
	Status   int    `json:"status"`
	Size     int    `json:"size"`
	Ended    string `json:"ended"`
}

// queue is what the store says of the tasks of a service.
type queue struct {
	Service                                         string
	Pending, Running, Done, Failed, Dead, Cancelled int
}

// page is a part of the list of tasks.
type page struct {
	Tasks  []outcome
	Next   string
	Queues []queue
}

// page asks a Caddy for a part of the list.
func (w *World) page(limit int, after string) (p page, err error) {
	r := w.Caddys[w.awake(0)].Admin("GET", fmt.Sprintf("/usher/tasks?limit=%d&after=%s", limit, url.QueryEscape(after)), "")
	if r.Err != nil || r.Status != http.StatusOK {
		return p, fmt.Errorf("the list of tasks: status %d, error %v: %s", r.Status, r.Err, r.Body)
	}
	return p, json.Unmarshal([]byte(r.Body), &p)
}

// queues are the counts of all services.
func (w *World) queues() any {
	p, err := w.page(1, "")
	if err != nil {
		return err
	}
	return p.Queues
}

// allEnded reports whether no task is left that has not ended.
func (w *World) allEnded() bool {
	p, err := w.page(1, "")
	if err != nil {
		return false // the database may just have been started
	}
	for _, q := range p.Queues {
		if q.Pending+q.Running > 0 {
			return false
		}
	}
	return true
}

// outcomes lists all tasks, by id.
func (w *World) outcomes() map[string]outcome {
	w.t.Helper()
	all := make(map[string]outcome)
	for after := ""; ; {
		p, err := w.page(1000, after)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, o := range p.Tasks {
			if _, twice := all[o.ID]; twice {
				w.t.Errorf("task %s is in the list twice", o.ID)
			}
			all[o.ID] = o
		}
		if after = p.Next; after == "" {
			return all
		}
	}
}

// check compares what clients were promised, what the store says, and what the
// instances have noted.
func (w *World) check() {
	w.t.Helper()
	before := w.outcomes()
	w.KillCaddy(0)
	after := w.outcomes()
	b := newBooks(w.jobs, w.promises)
	for id, o := range before {
		if after[id] != o {
			b.finding(id, "task %s was %+v, and is %+v after Caddy was killed", id, o, after[id])
		}
	}
	journal := w.Caddys[0].Journal()
	for _, e := range journal {
		b.read(e)
	}
	b.settle(after)
	kept := w.checkResults(b, after)
	w.t.Logf("%s; %s; %d answers are kept", w.tally(), b.tally(), kept)
	w.mu.Lock()
	defer w.mu.Unlock()
	all := append(w.problems, b.findings...)
	for _, text := range all[:min(len(all), 20)] {
		w.t.Error(text)
	}
	if len(all) > 20 {
		w.t.Errorf("%d findings, of which these were 20", len(all))
	}
	if len(all) > 0 {
		w.t.Logf("the journal of the first of these tasks, and what was killed:\n%s", b.about(journal))
	}
}

// checkResults fetches the answers that are kept, and returns how many there are.
func (w *World) checkResults(b *books, all map[string]outcome) int64 {
	const readers = 16
	var (
		reading sync.WaitGroup
		kept    atomic.Int64
	)
	for k := range readers {
		reading.Go(func() {
			c := newClient()
			defer c.CloseIdleConnections()
			r := rand.New(rand.NewPCG(w.seed, 3<<40+uint64(k)))
			for seq := k; seq < len(w.jobs); seq += readers {
				j, p := w.jobs[seq], w.promises[seq]
				if all[p.id()].Status == 0 {
					continue
				}
				status, _, text := w.send(c, r, http.MethodGet, p.url+"/result", j)
				if status != all[p.id()].Status || text != j.body() {
					w.problem("job %d: its result is status %d, %.100q", seq, status, text)
				}
				kept.Add(1)
			}
		})
	}
	reading.Wait()
	return kept.Load()
}

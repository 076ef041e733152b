package marathonsim

import (
	"context"
	"crypto/tls"
	"slices"
	"time"
)

// readinessState is what the readiness checks of one task have said. They run
// only while a deployment waits for the task.
type readinessState struct {
	timer   *timer
	results map[int]readinessResult
}

type readinessResult struct {
	ready       bool
	asked       bool
	status      int
	contentType string
	body        string
}

func anyCertificate() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// ready tells whether every readiness check of the instance has passed.
func (a *action) ready(i *instance) bool {
	if len(a.def.readinessChecks) == 0 {
		return true
	}
	s := a.readiness[i.task.id]
	if s == nil {
		return false
	}
	for n := range a.def.readinessChecks {
		if !s.results[n].ready {
			return false
		}
	}
	return true
}

// watchReadiness begins with the tasks of the new version that are running.
func (a *action) watchReadiness() {
	if len(a.def.readinessChecks) == 0 {
		return
	}
	for _, i := range a.e.run(a.app).instances {
		if i.condition != running || !i.def.version.Equal(a.def.version) || a.readiness[i.task.id] != nil {
			continue
		}
		s := &readinessState{results: map[int]readinessResult{}}
		a.readiness[i.task.id] = s
		for n := range a.def.readinessChecks {
			a.askReadiness(i.task, s, n)
		}
	}
}

// askReadiness asks until the answer is yes.
func (a *action) askReadiness(t *task, s *readinessState, n int) {
	c := a.def.readinessChecks[n]
	port := slices.IndexFunc(a.def.ports, func(p portSpec) bool { return p.name == c.portName })
	address, ok := t.endpoint(max(port, 0))
	if !ok {
		return
	}
	timeout := max(a.e.clock.wall(c.timeout), 10*time.Millisecond)
	a.e.side.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		go func() {
			select {
			case <-a.e.stopping:
				cancel()
			case <-ctx.Done():
			}
		}()
		status, answer, err := fetch(ctx, c.https, address, c.path)
		a.e.post(func() {
			if a.done || a.readiness[t.id] != s {
				return
			}
			r := readinessResult{ready: err == nil && slices.Contains(c.statuses, status), asked: err == nil}
			if err == nil {
				r.status, r.contentType, r.body = status, answer.contentType, answer.body
			}
			s.results[n] = r
			if r.ready {
				a.e.pokeLater(a.app)
				return
			}
			s.timer = a.e.after(c.interval, func() { a.askReadiness(t, s, n) })
		})
	})
}

// readinessJSON are the results of an app's tasks, as they are seen while
// the deployment runs.
func (a *action) readinessJSON() []any {
	out := []any{}
	for _, id := range sortedKeys(a.readiness) {
		for n, c := range a.def.readinessChecks {
			r, ok := a.readiness[id].results[n]
			if !ok {
				continue
			}
			o := object{{"name", c.name}, {"taskId", id}, {"ready", r.ready}}
			if r.asked && c.preserve {
				o = append(o, member{"lastResponse", object{
					{"status", r.status}, {"contentType", r.contentType}, {"body", r.body},
				}})
			}
			out = append(out, o)
		}
	}
	return out
}

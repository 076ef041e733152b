package marathon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	gomarathon "github.com/gambol99/go-marathon"

	"github.com/caddy-usher/usher/scaler"
)

// read reads the app once, takes in what it says, and reports it.
func (a *app) read() {
	a.mu.Lock()
	a.begun++
	began := time.Now()
	c := a.cluster
	a.mu.Unlock()

	var doc *appJSON
	var item *queueItemJSON
	var queueErr error
	doc, err := a.readApp(c)
	if err == nil && doc.Instances > active(doc) {
		// Tasks that have no place yet are nowhere but in the queue. An error
		// here costs the reason for the wait, not the state of the app.
		item, queueErr = a.readQueue(c)
	}
	if a.ctx.Err() != nil {
		return
	}
	a.mu.Lock()
	stale := false
	if err == nil {
		stale = a.take(doc, item, queueErr == nil)
	}
	a.failure(err)
	if !stale {
		a.report()
	}
	clear := a.clearable(item)
	a.ended++
	a.readBegan, a.endedAt = began, time.Now()
	a.readErr = err
	if stale {
		a.readErr = errStale
	}
	close(a.told)
	a.told = make(chan struct{})
	a.mu.Unlock()
	if clear {
		a.clearDelay(c)
	}
}

var errStale = errors.New("the answer was older than what is known")

// active counts the tasks in a document that Marathon has given a place.
func active(doc *appJSON) int {
	n := 0
	for _, t := range doc.Tasks {
		switch t.State {
		case taskStaging, taskStarting, taskRunning:
			n++
		}
	}
	return n
}

func (a *app) readApp(c *cluster) (*appJSON, error) {
	var answer struct {
		App *appJSON `json:"app"`
	}
	err := c.ask(a.ctx, func(ctx context.Context, m *member) error {
		answer.App = nil
		if err := m.call(ctx, http.MethodGet, "/v2/apps"+a.id, nil, &answer); err != nil {
			return err
		}
		if answer.App == nil || answer.App.ID != a.id {
			return errors.New(m.base + ": the answer holds no app " + a.id)
		}
		return nil
	})
	return answer.App, err
}

func (a *app) readQueue(c *cluster) (*queueItemJSON, error) {
	var answer queueJSON
	err := c.ask(a.ctx, func(ctx context.Context, m *member) error {
		answer = queueJSON{}
		return m.call(ctx, http.MethodGet, "/v2/queue", nil, &answer)
	})
	for k := range answer.Queue {
		if item := &answer.Queue[k]; item.App != nil && item.App.ID == a.id {
			return item, err
		}
	}
	return nil, err
}

// failure takes note of whether the app can be read. The lock is held.
func (a *app) failure(err error) {
	now := time.Now()
	s, _ := errors.AsType[*statusError](err)
	missing := s != nil && s.status == http.StatusNotFound
	if !missing {
		a.missing = time.Time{}
	}
	switch {
	case err == nil:
		a.outage, a.failing, a.failed = nil, time.Time{}, 0
		return
	case missing:
		a.outage, a.failing, a.failed = appMissing(a.id), time.Time{}, 0
		if a.missing.IsZero() {
			a.missing = now
		}
		a.gone(now)
		return
	case a.failing.IsZero():
		a.failing = now
	}
	a.failed++
	f := asFailure(err)
	// One answer that fails is no outage: members and leaders change. Being
	// refused is no matter of time.
	if f.Reason == scaler.ReasonForbidden || a.failed > 1 || now.Sub(a.failing) >= outageFrom {
		a.outage = f
	}
}

// gone deals with the app not being there: its tasks are being stopped, and
// cannot be asked for any more. They get nothing new, and what they have they
// may finish as long as a kill may take. The lock is held.
func (a *app) gone(now time.Time) {
	for _, t := range a.tasks {
		switch {
		case now.Sub(a.missing) > forgetMissing:
			t.phase = scaler.PhaseEnded
		case t.phase != scaler.PhaseEnded:
			t.phase, t.missed = scaler.PhaseStopping, true
		}
	}
	a.known, a.calm = true, now.Sub(a.missing) > closeLook
	a.state, a.surplusFrom = state{}, time.Time{}
}

// forgetMissing is how long the tasks of a deleted app are still taken for
// running.
const forgetMissing = time.Minute

// take takes in what a read says. It returns true, and takes nothing, if what
// was read is older than what is known. The lock is held.
func (a *app) take(doc *appJSON, item *queueItemJSON, queueKnown bool) (stale bool) {
	now := time.Now()
	s := state{instances: doc.Instances, version: when(doc.Version), queueKnown: queueKnown}
	if doc.VersionInfo != nil {
		s.config = doc.VersionInfo.LastConfigChangeAt
	}
	for _, d := range doc.Deployments {
		s.deployments = append(s.deployments, d.ID)
	}
	if item != nil {
		s.queued = item.Count
	}
	if a.isStale(s, now) {
		a.calm = false
		return true
	}
	before := a.state
	if !s.locked() {
		a.blocked = nil
	}
	if a.known && before.config != "" && before.config != s.config {
		// What failed was another app, in a way: what Marathon still holds
		// back is not held back for this one.
		a.crashing = nil
		a.hurry = now.Add(hurryFor)
	}
	a.state = s
	a.takeTasks(doc, s.instances < before.instances, now)
	a.takeFailure(doc.LastTaskFailure)
	a.known = true
	a.takeQueue(item)

	for id := range a.own {
		if !slices.Contains(s.deployments, id) && !slices.Contains(before.deployments, id) {
			delete(a.own, id)
		}
	}
	a.calm = !s.locked() && s.queued == 0
	n := 0
	for _, t := range a.tasks {
		if t.counted() {
			n++
		}
		a.calm = a.calm && t.absent.IsZero() && (t.phase == scaler.PhaseStarting || t.phase == scaler.PhaseReady) && t.address != ""
	}
	a.calm = a.calm && n == s.instances
	return false
}

// isStale says whether s is older than what is known: the answer of a member
// that is behind. That is believed for a while only. The lock is held.
func (a *app) isStale(s state, now time.Time) bool {
	if e := a.expect; now.Before(e.until) && s.version.Before(e.version) && s.instances != e.instances {
		return true
	}
	if s.version.Before(a.state.version) && now.Before(a.takenAt.Add(staleFor)) {
		return true
	}
	a.takenAt = now
	return false
}

// expectAfter notes what a read has to show after a change of Usher's own.
func (a *app) expectAfter(version time.Time) {
	a.expect = expectation{version: version, instances: a.state.instances, until: time.Now().Add(staleFor)}
}

// takeTasks takes in the list of tasks. The lock is held.
func (a *app) takeTasks(doc *appJSON, fewer bool, now time.Time) {
	for id, until := range a.seen {
		if now.After(until) {
			delete(a.seen, id)
		}
	}
	listed := make(map[string]bool, len(doc.Tasks))
	for _, j := range doc.Tasks {
		listed[j.ID] = true
		if f := doc.LastTaskFailure; f != nil && f.TaskID == j.ID && over(f.State) && !over(j.State) {
			// The failure is kept elsewhere at Marathon, and the list is behind.
			behind := *j
			behind.State = f.State
			j = &behind
		}
		t := a.tasks[j.ID]
		if t == nil {
			if _, ended := a.seen[j.ID]; ended || over(j.State) {
				// The list shows tasks that have ended, and an old list shows
				// tasks that run no more.
				continue
			}
			t = &task{id: j.ID, name: j.ID, owner: a.newest(), since: now}
			a.tasks[j.ID] = t
		}
		if t.stop && t.survives(j.State, a.state, now) {
			t.revive()
		}
		t.take(doc, j)
		if over(j.State) {
			a.seen[t.id] = now.Add(forgetOver)
		}
	}
	failed := doc.LastTaskFailure
	for _, t := range a.tasks {
		if listed[t.id] || t.phase == scaler.PhaseEnded {
			continue
		}
		// A list can be old: a task that has only just begun is not on it.
		// One that was told to stop, or whose end is on record, has ended.
		if t.absent.IsZero() {
			t.absent, t.taken = now, a.state.locked()
		}
		t.unhealthy = true
		f := taskFailure(failed, t.id)
		if fewer || t.missed {
			t.phase = scaler.PhaseStopping // stopped on request
		} else if !t.stop && f == nil && now.Sub(t.absent) < vanishAfter {
			continue
		} else if t.taken && f == nil {
			// A deployment was at work, and a crash would be on record.
			t.phase = scaler.PhaseStopping
		}
		if t.stop || f != nil {
			a.seen[t.id] = now.Add(forgetOver)
		}
		t.end(f)
	}
	a.markExtra(doc, now)
}

// vanishAfter is how long a task has to be missing from the list to be taken
// for gone: longer than an answer can be behind.
const vanishAfter = 2500 * time.Millisecond

// survives says whether a task that was to stop runs on. One that Marathon had
// lost was only let go; a foreign deployment may have been cancelled
// before it killed the task.
func (t *task) survives(state string, s state, now time.Time) bool {
	return state == taskRunning && (lost(t.state) || !s.locked() && now.Sub(t.stopAt) > survivalAfter)
}

// survivalAfter is how long a task that was stopped may run on without any
// deployment at work: longer than Marathon takes to repeat a kill.
const survivalAfter = time.Minute

// revive makes t an instance anew: the one that it was has been stopped.
func (t *task) revive() {
	t.lives++
	t.name = fmt.Sprintf("%s~%d", t.id, t.lives)
	t.stop, t.stopped = false, false
	t.askFrom, t.confirmed = time.Time{}, true
	t.phase = scaler.PhaseStarting
}

// take takes in what the list says about t.
func (t *task) take(doc *appJSON, j *gomarathon.Task) {
	if at := when(j.StartedAt); !at.IsZero() {
		t.since = at
	} else if at := when(j.StagedAt); !at.IsZero() {
		t.since = at
	}
	if v := when(j.Version); !v.IsZero() {
		t.config = v
	}
	if t.phase == scaler.PhaseEnded {
		return
	}
	t.state, t.missed, t.absent = j.State, false, time.Time{}
	t.unhealthy, t.extra = false, lost(j.State)
	switch {
	case over(j.State):
		f := taskFailure(doc.LastTaskFailure, t.id)
		if f == nil && j.State == taskKilled {
			t.phase = scaler.PhaseStopping // by some client
		}
		if f == nil && j.State != taskKilled {
			f = &scaler.Failure{Reason: scaler.ReasonExit, Short: "the task ended", Detail: "task " + t.id + " is in state " + j.State}
			if j.State == taskFinished {
				f.Short = "exit status 0"
			}
		}
		t.end(f)
	case t.stop || j.State == taskKilling:
		t.phase = scaler.PhaseStopping
	case j.State == taskRunning:
		// Known, then known for ever: a task does not move. A host's name is
		// resolved anew for each connection.
		t.address, t.failure = doc.endpoint(j, t.owner.port)
		t.unhealthy = negative(j)
		t.phase = scaler.PhaseStarting
		if doc.positive(j) {
			t.phase = scaler.PhaseReady
		}
	case lost(j.State):
		// It may well go on serving: what is known about it stays.
	default:
		t.phase = scaler.PhaseStarting
	}
}

// end marks t as ended. A task that was stopped on request has not failed.
func (t *task) end(f *scaler.Failure) {
	switch {
	case t.stop || t.phase == scaler.PhaseStopping:
		t.stop, f = true, nil
	case f == nil:
		f = &scaler.Failure{Reason: scaler.ReasonExit, Short: "the task is gone", Detail: "task " + t.id + " is gone, and Marathon does not say why"}
	}
	t.phase, t.failure = scaler.PhaseEnded, f
}

// markExtra marks the tasks that are about to be replaced, or were a moment ago: while a
// deployment is at work and more run than are wanted, those of earlier versions of the
// app first. They serve as long as they run, but are not counted on. The list can be
// behind the end of the deployment, so for a while it makes no difference.
func (a *app) markExtra(doc *appJSON, now time.Time) {
	surplus := a.listed() - doc.Instances
	switch {
	case surplus <= 0 || a.state.locked():
		a.surplusFrom = time.Time{}
	case a.surplusFrom.IsZero():
		a.surplusFrom = now
	}
	if !a.state.locked() && !a.unsettled(now) {
		return
	}
	var changed time.Time
	if doc.VersionInfo != nil {
		changed = when(doc.VersionInfo.LastConfigChangeAt)
	}
	for _, id := range slices.Sorted(maps.Keys(a.tasks)) {
		t := a.tasks[id]
		if surplus > 0 && t.counted() && t.absent.IsZero() && !t.config.IsZero() && t.config.Before(changed) {
			t.extra = true
			surplus--
		}
	}
}

// listed counts the tasks that the last read has listed and that Marathon counts. The
// lock is held.
func (a *app) listed() int {
	n := 0
	for _, t := range a.tasks {
		if t.counted() && t.absent.IsZero() {
			n++
		}
	}
	return n
}

// unsettled says whether more tasks are listed than are wanted, and that can still be
// because the list is behind. The lock is held.
func (a *app) unsettled(now time.Time) bool {
	return !a.surplusFrom.IsZero() && now.Sub(a.surplusFrom) < vanishAfter
}

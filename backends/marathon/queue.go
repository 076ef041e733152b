package marathon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	gomarathon "github.com/gambol99/go-marathon"

	"github.com/caddy-usher/usher/scaler"
)

// hurryFor is how long after a word from an operator, or after a change of the
// app, pauses of Marathon's own are cleared.
const hurryFor = 10 * time.Second

// noOffersAfter is how long a start may wait without any offer before that is
// worth a word: Marathon asks for offers every 5 s, or in 1.8 every 30 s.
const noOffersAfter = 35 * time.Second

// takeFailure takes in the last failure of a task. One of a task that was
// never seen is a start that failed between two reads. The lock is held.
func (a *app) takeFailure(last *gomarathon.LastTaskFailure) {
	if last == nil || last.TaskID == "" {
		return
	}
	word := last.TaskID + " " + last.Timestamp
	if word == a.lastFail {
		return
	}
	a.lastFail = word
	f := taskFailure(last, last.TaskID)
	if _, seen := a.seen[last.TaskID]; !a.known || f == nil || seen || a.tasks[last.TaskID] != nil {
		// Before the first read it is of the past.
		return
	}
	a.tasks[last.TaskID] = &task{
		id: last.TaskID, name: last.TaskID, owner: a.newest(), state: last.State, since: when(last.Timestamp),
		phase: scaler.PhaseEnded, failure: f,
	}
	a.seen[last.TaskID] = time.Now().Add(forgetOver)
}

// takeQueue finds out what keeps starts waiting. The lock is held.
func (a *app) takeQueue(item *queueItemJSON) {
	if a.state.instances == 0 {
		a.crashing, a.starved = nil, nil
		return
	}
	if item == nil || item.Count == 0 {
		a.starved = nil
		return
	}
	if left := item.Delay.TimeLeftSeconds; !item.Delay.Overdue && left > 0 {
		a.crashing = a.heldBack(time.Duration(left) * time.Second)
	}
	if item.Delay.Overdue {
		a.starved = starvation(a.id, item, time.Now())
	}
}

// heldBack words a launch back-off. It stays in force until a task has proved
// that starts succeed again: between two tries nothing is better.
func (a *app) heldBack(left time.Duration) *scaler.Failure {
	if a.lastDeath == nil {
		return &scaler.Failure{
			Reason: scaler.ReasonCrashLoop, Short: "held back by Marathon after failed starts",
			Detail: fmt.Sprintf("Marathon starts the next task of %s in %v, at %s", a.id, left, time.Now().Add(left).UTC().Format(time.TimeOnly)),
		}
	}
	return &scaler.Failure{
		Reason: scaler.ReasonCrashLoop, Short: a.lastDeath.Short + ", the next start is held back by Marathon",
		Detail: fmt.Sprintf("Marathon starts the next task of %s in %v, at %s UTC; the last one: %s",
			a.id, left, time.Now().Add(left).UTC().Format(time.TimeOnly), a.lastDeath.Detail),
	}
}

// proved takes note that a start has succeeded. The lock is held.
func (a *app) proved() {
	if a.crashing != nil {
		a.crashing = nil
		a.report()
	}
}

// starvation words why no offer fits, or returns nil while it is too early to
// say.
func starvation(id string, item *queueItemJSON, now time.Time) *scaler.Failure {
	p := item.Processed
	if p.Unused == 0 {
		since := when(item.Since)
		if p.Processed > 0 || since.IsZero() || now.Sub(since) < noOffersAfter {
			return nil
		}
		return &scaler.Failure{
			Reason: scaler.ReasonUnschedulable, Short: "no offers from Mesos",
			Detail: fmt.Sprintf("%d instances of %s wait since %s, and Mesos has offered nothing; look at its agents, and whether Marathon is connected to Mesos", item.Count, id, item.Since),
		}
	}
	var lack, counts []string
	for _, r := range p.Last {
		if r.Declined > 0 {
			lack = append(lack, reject(r.Reason))
			counts = append(counts, fmt.Sprintf("%s (%d of %d offers)", r.Reason, r.Declined, r.Processed))
		}
	}
	slices.Sort(lack)
	f := &scaler.Failure{
		Reason: scaler.ReasonUnschedulable, Short: "no matching offer",
		Detail: fmt.Sprintf("%d instances of %s wait for an offer, %d were declined", item.Count, id, p.Unused),
	}
	if len(lack) > 0 {
		f.Short += ": " + strings.Join(lack, ", ")
		f.Detail += ": " + strings.Join(counts, ", ") + "; add agents, or ask for less in the app"
	}
	return f
}

// reject words a reason of Marathon's for declining an offer.
func reject(reason string) string {
	words := map[string]string{
		"InsufficientCpus": "not enough cpus", "InsufficientMemory": "not enough memory",
		"InsufficientDisk": "not enough disk", "InsufficientGpus": "not enough gpus",
		"InsufficientPorts": "no free ports", "UnfulfilledConstraint": "a constraint is not met",
		"UnfulfilledRole": "no resources of its role", "AgentMaintenance": "agents are in maintenance",
		"NoCorrespondingReservationFound": "no reservation fits", "DeclinedScarceResources": "only scarce resources are left",
	}
	if w, ok := words[reason]; ok {
		return w
	}
	return reason
}

// clearable says whether a pause of Marathon's own should be cleared now. The
// lock is held.
func (a *app) clearable(item *queueItemJSON) bool {
	if item == nil || item.Count == 0 || item.Delay.Overdue || time.Now().After(a.hurry) {
		return false
	}
	a.hurry = time.Time{}
	return true
}

// clearDelay ends the pause before the next launch. That is possible only
// while something is queued, so never before the order that queues it.
func (a *app) clearDelay(c *cluster) {
	err := c.change(a.ctx, func(ctx context.Context, m *member) error {
		return m.call(ctx, http.MethodDelete, "/v2/queue"+a.id+"/delay", nil, nil)
	})
	if s, ok := errors.AsType[*statusError](err); ok && s.status == http.StatusNotFound {
		// It was launched meanwhile.
		return
	}
	log := a.logger()
	switch {
	case log == nil || a.ctx.Err() != nil:
	case err != nil:
		log.Warn("Marathon's launch delay could not be cleared", slog.String("app", a.id), slog.Any("error", err))
	default:
		log.Info("cleared Marathon's launch delay", slog.String("app", a.id))
		a.mu.Lock()
		a.crashing = nil
		a.report()
		a.mu.Unlock()
		a.kick()
	}
}

package marathon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	gomarathon "github.com/gambol99/go-marathon"

	"github.com/caddy-usher/usher/scaler"
)

// runner is one revision on an app: the Scaler.
type runner struct {
	env  scaler.Env
	port port
	app  *app // set by join
	left bool // it was closed; guarded by apps

	// cluster names the cluster, by the URLs with which it was opened.
	cluster string

	// orders is full while an order is on its way. Close ends ctx, and with it
	// that order.
	orders chan struct{}
	ctx    context.Context
	cancel context.CancelFunc
}

func open(app string, port port, a access, env scaler.Env) (scaler.Scaler, error) {
	r := &runner{env: env, port: port, cluster: "marathon " + strings.Join(a.urls, " "), orders: make(chan struct{}, 1)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	watch(app, a, r)
	return r, nil
}

// Traits names the cluster: a start waits for no other cluster's.
func (r *runner) Traits() scaler.Traits {
	return scaler.Traits{Platform: r.cluster}
}

// Close ends the watch, and an order on its way. The tasks are left as they
// are.
func (r *runner) Close(ctx context.Context, _ time.Duration) error {
	r.cancel()
	var err error
	select {
	case r.orders <- struct{}{}:
		defer func() { <-r.orders }()
	case <-ctx.Done():
		err = ctx.Err()
	}
	return errors.Join(err, r.app.leave(ctx, r))
}

// begin begins an order: it ends when ctx does or r is closed. end is called
// after it.
func (r *runner) begin(ctx context.Context) (order context.Context, end func(), err error) {
	select {
	case r.orders <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, &scaler.Failure{Reason: scaler.ReasonConflict, Short: "another order for the app is on its way", Err: ctx.Err()}
	}
	if r.ctx.Err() != nil {
		<-r.orders
		return nil, nil, &scaler.Failure{
			Reason: scaler.ReasonPlatform, Short: "the backend is closed",
			Detail: "service " + r.env.Service + ", revision " + r.env.Revision + " takes no orders any more",
		}
	}
	order, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(r.ctx, cancel)
	return order, func() { stop(); cancel(); <-r.orders }, nil
}

// Update takes over another access to the same app: other URLs of the same
// cluster, other credentials.
func (r *runner) Update(b scaler.Backend) bool {
	next, ok := b.(*Backend)
	if !ok || next.plan == nil || next.plan.app != r.app.id || next.plan.port != r.port {
		return false
	}
	to, missing := next.plan.complete()
	if missing != nil {
		return false
	}
	apps.Lock()
	defer apps.Unlock()
	same := func(u string) bool { return slices.Contains(to.urls, u) }
	if !slices.ContainsFunc(r.app.access.urls, same) {
		// Another cluster, for all that is known: its app is another one.
		return false
	}
	r.app.reach(to)
	return true
}

// confirmAge is how old the end of a read may be that confirms a task: when
// calls are slow, each probe would wait for a read of its own in vain.
const confirmAge = time.Second

// Confirm tells whether the task was running when it was probed, by a read
// that began after that: a port that a task has left is given to another one
// at once. What cannot be asked is not confirmed.
//
// A task that was confirmed before has refused connections since, so it may
// well have ended. It is not taken back before an answer that is behind would
// have caught up.
func (r *runner) Confirm(ctx context.Context, id string) error {
	a := r.app
	a.mu.Lock()
	now := time.Now()
	fresh := false
	if t := a.named(id); t != nil {
		if t.askFrom.IsZero() {
			t.askFrom = now
			if t.confirmed {
				t.askFrom = now.Add(vanishAfter)
			}
		}
		if now.Before(t.askFrom) {
			a.mu.Unlock()
			return errors.New("the task has refused connections; whether it still runs shows in a moment")
		}
		fresh = a.readErr == nil && a.readBegan.After(t.askFrom) && now.Sub(a.endedAt) < confirmAge
	}
	a.mu.Unlock()
	if !fresh {
		if err := a.fresh(ctx); err != nil {
			return fmt.Errorf("whether the task still runs cannot be asked: %w", err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.named(id)
	switch {
	case t == nil || t.phase == scaler.PhaseEnded || t.phase == scaler.PhaseStopping:
		return errors.New("the task runs no more; what answered is not it")
	case t.state != taskRunning:
		return fmt.Errorf("the task is in state %s; what answered need not be it", t.state)
	case t.unhealthy:
		return errors.New("the task is not on the list, or its health check there fails")
	}
	t.askFrom, t.confirmed = time.Time{}, true
	a.proved()
	return nil
}

// Verify tells whether a task that has served is still there: a port that a task
// has left is given to another one at once. While Marathon cannot be asked it
// starts nothing that could have it, so the last known truth holds, and so it
// does for a task on an agent that is out of sight: nothing new is started
// there either.
func (r *runner) Verify(ctx context.Context, id string) error {
	a := r.app
	a.mu.Lock()
	patience := vouchWait
	if a.outage != nil {
		patience = vouchWaitOut
	}
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := a.fresh(ctx)
	for err != nil && !notFound(err) && sleep(ctx, paceFirst) {
		err = a.fresh(ctx)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.named(id)
	switch {
	case t == nil || t.phase == scaler.PhaseEnded || t.phase == scaler.PhaseStopping:
		return errors.New("the task runs no more; what answered is not it")
	case err != nil:
		return nil
	case t.unhealthy:
		return errors.New("the task is not on the list, or its health check there fails")
	case t.state != taskRunning && !lost(t.state):
		return fmt.Errorf("the task is in state %s; what answered need not be it", t.state)
	}
	return nil
}

// How long an answer about a task that has served is waited for: until an
// outage is taken for one, and less in the midst of one.
const (
	vouchWait    = outageFrom
	vouchWaitOut = 300 * time.Millisecond
)

// named returns the task that is an instance. The lock is held.
func (a *app) named(instance string) *task {
	for _, t := range a.tasks {
		if t.name == instance {
			return t
		}
	}
	return nil
}

// SkipBackoff clears the pause that Marathon makes after failed starts, now or after
// the next order: an operator who asks by hand may have fixed the cause.
func (r *runner) SkipBackoff() {
	r.app.mu.Lock()
	r.app.hurry = time.Now().Add(hurryFor)
	r.app.mu.Unlock()
	r.app.kick()
}

// Restart has Marathon replace all tasks by the app's own upgrade strategy.
func (r *runner) Restart(ctx context.Context) error {
	ctx, end, err := r.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	a := r.app
	if err := a.takeTurn(ctx); err != nil {
		return err
	}
	defer a.endTurn()
	var done gomarathon.DeploymentID
	err = a.reached().change(ctx, func(ctx context.Context, m *member) error {
		return m.call(ctx, http.MethodPost, "/v2/apps"+a.id+"/restart", struct{}{}, &done)
	})
	switch s, ok := errors.AsType[*statusError](err); {
	case ok && len(s.locks) > 0:
		return conflict(a.id, s.locks, "a deployment", err)
	case notFound(err):
		return appMissing(a.id)
	case err != nil:
		return asFailure(err)
	}
	a.mu.Lock()
	a.own[done.DeploymentID] = restarting
	a.crashing = nil
	a.mu.Unlock()
	a.kick()
	return nil
}

// Interface guards.
var (
	_ scaler.Scaler         = (*runner)(nil)
	_ scaler.Confirmer      = (*runner)(nil)
	_ scaler.Verifier       = (*runner)(nil)
	_ scaler.Updater        = (*runner)(nil)
	_ scaler.Restarter      = (*runner)(nil)
	_ scaler.BackoffSkipper = (*runner)(nil)
)

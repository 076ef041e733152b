package marathon

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"time"

	gomarathon "github.com/gambol99/go-marathon"

	"github.com/caddy-usher/usher/scaler"
)

// The patience of an order. What is not done by then is given back with words,
// and ordered again.
const (
	patienceUp   = 10 * time.Second // for a foreign deployment, or a leader
	patienceDown = 5 * time.Second  // to stop something is never urgent
	wordsBefore  = 2 * time.Second  // of the deadline of the order
	mostSteps    = 30
)

// order is an order on its way.
type order struct {
	app   *app
	r     *runner
	o     scaler.Order
	began time.Time
	raise bool // something is to be started
	known bool // that Marathon cannot be asked was known before
}

// Scale carries out an order. It reads first, because other clients
// can change the number of an app; it makes one change after the other; and after
// each it knows what Marathon works towards.
func (r *runner) Scale(ctx context.Context, o scaler.Order) error {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-wordsBefore))
		defer cancel()
	}
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
	a.mu.Lock()
	known := a.outage != nil
	a.mu.Unlock()
	w := &order{app: a, r: r, o: o, began: time.Now(), known: known}
	return w.carryOut(ctx)
}

// takeTurn waits until no other order for the app is on its way.
func (a *app) takeTurn(ctx context.Context) error {
	select {
	case a.ordering <- struct{}{}:
		return nil
	case <-ctx.Done():
		return &scaler.Failure{Reason: scaler.ReasonConflict, Short: "another order for the app is on its way", Err: ctx.Err()}
	}
}

func (a *app) endTurn() { <-a.ordering }

func (w *order) carryOut(ctx context.Context) error {
	a := w.app
	fresh := false
	for range mostSteps {
		if !fresh {
			if err := w.read(ctx); err != nil {
				return err
			}
		}
		a.mu.Lock()
		s, f := a.plan(w.r, w.o)
		if s.kind == nothing && f == nil {
			// What the order was given on may be old: now it is told.
			a.blocked = nil
			a.report()
		}
		a.mu.Unlock()
		if f != nil {
			return f
		}
		if s.kind == nothing {
			return nil
		}
		w.raise = s.direction() == up
		deployment, version, err := w.make(ctx, s)
		if err == nil {
			a.mu.Lock()
			a.did(s, deployment, version)
			a.mu.Unlock()
			a.kick()
			fresh = true
			continue
		}
		fresh = false
		if err := w.refused(ctx, s, err); err != nil {
			return err
		}
	}
	return &scaler.Failure{
		Reason: scaler.ReasonConflict, Short: "another client keeps changing the app",
		Detail: "app " + a.id + " was different after every step of the order; Usher tries again",
	}
}

// read waits for a read of the app, for as long as an outage may be a change
// of the leader. One that is known to be more than that is told at once.
func (w *order) read(ctx context.Context) error {
	for {
		err := w.app.fresh(ctx)
		switch {
		case err == nil:
			return nil
		case notFound(err):
			return appMissing(w.app.id)
		case !elsewhere(err):
			return asFailure(err)
		case ctx.Err() != nil || w.known || time.Since(w.began) > patienceDown:
			return asFailure(err)
		}
		if !sleep(ctx, paceFirst) {
			return asFailure(err)
		}
	}
}

// make makes a change.
func (w *order) make(ctx context.Context, s step) (deployment, version string, err error) {
	a := w.app
	var done gomarathon.DeploymentID
	err = a.reached().change(ctx, func(ctx context.Context, m *member) error {
		switch s.kind {
		case setNumber:
			err := m.patch(ctx, a.id, s.number, &done)
			if st, ok := errors.AsType[*statusError](err); !ok || st.status != http.StatusMethodNotAllowed {
				return err
			}
			// Before 1.4 there is no PATCH. A PUT, which would make a missing app,
			// is safe here: the app was there a moment ago.
			return m.call(ctx, http.MethodPut, "/v2/apps"+a.id, map[string]any{"id": a.id, "instances": s.number}, &done)
		case stopThese:
			return m.call(ctx, http.MethodPost, "/v2/tasks/delete?scale=true", map[string][]string{"ids": s.ids}, &done)
		default:
			// Without scale no deployment is made.
			return m.call(ctx, http.MethodPost, "/v2/tasks/delete", map[string][]string{"ids": s.ids}, nil)
		}
	})
	if err == nil {
		w.r.env.Logger().Debug("Marathon has accepted a change", slog.String("app", a.id), slog.Int("instances", s.after()),
			slog.Any("stop", s.ids), slog.String("deployment", done.DeploymentID))
	}
	return done.DeploymentID, done.Version, err
}

// patch sets the number of an app. A PUT would make an app where there is none, and be
// answered with an error about that.
func (m *member) patch(ctx context.Context, id string, n int, done *gomarathon.DeploymentID) error {
	return m.call(ctx, http.MethodPatch, "/v2/apps"+id, map[string]int{"instances": n}, done)
}

// refused deals with a change that Marathon did not accept, or may not have
// accepted. It returns nil if the order is to go on from a new read.
func (w *order) refused(ctx context.Context, s step, err error) error {
	st, _ := errors.AsType[*statusError](err)
	switch {
	case ctx.Err() != nil:
		return asFailure(err)
	case st != nil && len(st.locks) > 0:
		return w.locked(ctx, st.locks, err)
	case st != nil && st.status/100 == 3:
		// Every member that is known names one that is not.
		return asFailure(err)
	case unsure(err):
		return w.settle(ctx, s, err)
	case unsent(err):
		if _, ok := errors.AsType[*credentialError](err); ok || time.Since(w.began) > w.patience() {
			return asFailure(err)
		}
		sleep(ctx, 3*paceFirst)
		return nil
	case st != nil && st.status == http.StatusNotFound:
		// The app, or all of its tasks, have gone: the next read says which.
		if time.Since(w.began) > w.patience() {
			return asFailure(err)
		}
		sleep(ctx, paceFirst)
		return nil
	}
	return asFailure(err)
}

func (w *order) patience() time.Duration {
	if w.raise {
		return patienceUp
	}
	return patienceDown
}

// locked deals with deployments that hold the app. A scale-up of one's own is
// given up, by its id and without force: what it has queued stays so, and the
// next number includes it. One's own scale-down is awaited; to force a start
// past it would succeed at once, and start nothing, because Marathon counts
// those that are dying. Usher waits for a foreign deployment only
// while requests wait for a start.
func (w *order) locked(ctx context.Context, ids []string, err error) error {
	a := w.app
	a.mu.Lock()
	var foreign, given []string
	for _, id := range ids {
		d, own := a.own[id]
		switch {
		case !own:
			foreign = append(foreign, id)
		case d == up:
			given = append(given, id)
			a.own[id] = down // not twice
		}
	}
	what := "a deployment"
	if len(foreign) == 0 {
		what = "an earlier scale-down or restart by Usher"
	} else if f := conflict(a.id, foreign, what, err); w.raise && a.blocked == nil {
		a.blocked = f
		a.report()
	}
	a.mu.Unlock()
	if len(foreign) == 0 && len(given) > 0 {
		return w.giveUp(ctx, given)
	}
	limit := w.patience()
	if w.raise && len(foreign) == 0 {
		limit = time.Hour // as long as the order may take: it ends by itself
	}
	if len(foreign) > 0 && !w.raise {
		return conflict(a.id, foreign, what, err)
	}
	for time.Since(w.began) < limit {
		if a.next(ctx) != nil {
			break
		}
		a.mu.Lock()
		held := slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(a.state.deployments, id) })
		held = held && a.readErr == nil
		a.mu.Unlock()
		if !held {
			return nil
		}
	}
	return conflict(a.id, ids, what, err)
}

// giveUp ends deployments of Usher's own. go-marathon's DeleteDeployment does
// not pass force on, without which Marathon makes a new deployment to undo the
// old one, and takes the empty answer for an error. The force is meant for
// this one deployment, and cannot hit another.
func (w *order) giveUp(ctx context.Context, ids []string) error {
	for _, id := range ids {
		err := w.app.reached().change(ctx, func(ctx context.Context, m *member) error {
			return m.call(ctx, http.MethodDelete, "/v2/deployments/"+url.PathEscape(id)+"?force=true", nil, nil)
		})
		if err != nil && !notFound(err) && !unsure(err) {
			return asFailure(err)
		}
	}
	return nil
}

// settle finds out whether a change was made whose answer was lost. It is not
// sent again before that is known: it could be refused because of itself.
func (w *order) settle(ctx context.Context, s step, err error) error {
	a := w.app
	if s.kind == replaceThese {
		// To stop a task twice is to stop it.
		return w.wait(ctx, err)
	}
	a.mu.Lock()
	before := slices.Clone(a.state.deployments)
	a.mu.Unlock()
	// An answer may be behind: that nothing has changed is believed only
	// after a while.
	for began := time.Now(); time.Since(began) < vanishAfter; {
		if err := w.read(ctx); err != nil {
			return err
		}
		a.mu.Lock()
		made := a.state.instances == s.after()
		var added []string
		for _, id := range a.state.deployments {
			if !slices.Contains(before, id) {
				added = append(added, id)
			}
		}
		if made {
			a.did(s, "", "")
		}
		a.mu.Unlock()
		if made {
			w.takeOver(ctx, added, s.direction())
			return nil
		}
		if !sleep(ctx, 3*paceFirst) {
			break
		}
	}
	return w.wait(ctx, err)
}

// wait lets a moment pass, and returns nil if the order may still go on.
func (w *order) wait(ctx context.Context, err error) error {
	if time.Since(w.began) > w.patience() || !sleep(ctx, 3*paceFirst) {
		return asFailure(err)
	}
	return nil
}

// takeOver takes those of the deployments for Usher's own that came up with a
// change of Usher's and do what that was to do: scale this app and no other.
func (w *order) takeOver(ctx context.Context, ids []string, d direction) {
	if len(ids) == 0 {
		return
	}
	var all []deploymentJSON
	err := w.app.reached().ask(ctx, func(ctx context.Context, m *member) error {
		return m.call(ctx, http.MethodGet, "/v2/deployments", nil, &all)
	})
	if err != nil {
		return
	}
	for _, dep := range all {
		if !slices.Contains(ids, dep.ID) || !scalesOnly(dep, w.app.id) {
			continue
		}
		w.app.mu.Lock()
		w.app.own[dep.ID] = d
		w.app.mu.Unlock()
	}
}

func scalesOnly(d deploymentJSON, id string) bool {
	for _, s := range d.Steps {
		for _, action := range s.Actions {
			if cmp.Or(action.Type, action.Action) != "ScaleApplication" || action.App != id {
				return false
			}
		}
	}
	return len(d.Steps) > 0
}

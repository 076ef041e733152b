package docker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/caddy-usher/usher/scaler"
)

// work makes the next call that brings a container nearer to what it is to be.
// The lock is held.
func (r *runner) work(m *member) {
	if m.busy || r.closed || r.engine.outage != nil || clientOf(r.engine) == nil {
		return
	}
	v, i := m.view, m.instance
	switch {
	case m.leaving != nil:
		if v.runs() {
			r.workDown(m)
		}
	case m.dying != nil:
	case m.discard || i == nil && r.spent(m):
		if m.id != "" && v != nil {
			r.call(m, background, r.remove(m.id), nil)
		}
	case i != nil && !i.runs():
		r.workUp(m, i)
	case i == nil && m.made && v == nil && m.id == "" && m.tag != "":
		r.make(m, r.ctx)
	}
}

// background is for calls that an order or Close does not end: stops go on.
var background = context.Background()

// spent says whether a container is of no more use: it is gone, or Usher has made
// it, and it has stopped. The lock is held.
func (r *runner) spent(m *member) bool {
	switch {
	case m.gone:
		return true
	case !m.made || m.view == nil:
		return false
	case m.view.state == container.StateExited || m.view.state == container.StateDead:
		return true
	}
	return m.of != "" && r.member(m.of) == nil
}

// workDown pauses or stops a container. The lock is held.
func (r *runner) workDown(m *member) {
	i := m.leaving
	if since := m.refused; !since.IsZero() && time.Since(since) < stopAgain {
		return
	}
	switch {
	case m.pausing && m.view.paused():
		r.observeLeaving(m)
	case m.pausing:
		r.call(m, background, r.pause(m.id), func(err error) {
			if err != nil && m.view.active() && !unreached(err) {
				r.env.Logger().Warn("the container cannot be paused, and is stopped instead", slog.String("container", m.view.name), slog.Any("error", err))
				m.pausing = false
			}
		})
	case m.view.paused():
		// Some engines stop no container that is paused.
		r.call(m, background, r.unpause(m.id), r.stopped(m))
	default:
		r.call(m, background, r.halt(m.id, i.stopTimeout), r.stopped(m))
	}
}

// stopAgain is the pause before a stop is tried again that the engine refused.
const stopAgain = time.Second

// stopped returns what follows a call that is to stop a container: if the engine
// refuses, another try.
func (r *runner) stopped(m *member) func(error) {
	return func(err error) {
		if err == nil || !m.view.runs() || r.closed {
			return
		}
		m.refused = time.Now()
		r.env.Logger().Warn("the container cannot be stopped; Usher tries again", slog.String("container", m.view.name), slog.Any("error", callFailure(err)))
		time.AfterFunc(stopAgain+stopAgain/10, func() {
			r.engine.mu.Lock()
			defer r.engine.mu.Unlock()
			r.work(m)
		})
	}
}

// workUp makes, starts or unpauses a container. The lock is held.
func (r *runner) workUp(m *member, i *instance) {
	v := m.view
	switch {
	case v == nil && m.id == "":
		r.make(m, i.ctx)
	case v == nil:
		r.drop(m)
	case v.paused():
		r.call(m, i.ctx, r.resume(m.id, v), r.upped(m, i, "unpausing container "+v.name))
	case v.state == container.StateRestarting:
		m.instance = nil
		r.died(m, i)
	default:
		before := v.started
		answered := r.upped(m, i, "starting container "+v.name)
		r.call(m, i.ctx, r.start(m.id), func(err error) {
			if answered(err); m.instance == i && err == nil && !m.view.runs() && m.view != nil && m.view.started != before {
				// It has run, and has ended already.
				m.instance = nil
				r.died(m, i)
			}
		})
	}
}

// upped returns what follows a call that is to start a container.
func (r *runner) upped(m *member, i *instance, what string) func(error) {
	return func(err error) {
		if err == nil || m.instance != i || i.runs() {
			return
		}
		if unreached(err) && i.listed {
			// It may have been started all the same. It is looked at, and
			// started again, when the engine can be asked.
			r.engine.kick()
			return
		}
		m.instance, m.foreign = nil, true
		if m.made {
			m.discard = true
		}
		r.end(i, startFailure(err, what))
	}
}

// call makes one call about a container, looks at what the container is then,
// and goes on from there. Then is called with the lock held. The lock is held.
func (r *runner) call(m *member, ctx context.Context, do func(context.Context, *client.Client) error, then func(error)) {
	m.busy = true
	r.jobs.Go(func() {
		c, err := r.engine.api()
		if err == nil {
			err = do(ctx, c)
		}
		if id := r.idOf(m); id != "" && r.ctx.Err() == nil && !errors.Is(err, errResumed) {
			// It may have been carried out all the same. If the engine cannot
			// be asked, what comes of it shows when it can.
			look, cancel := context.WithTimeout(background, callTimeout)
			_, _ = r.engine.inspect(look, id)
			cancel()
		}
		r.engine.mu.Lock()
		defer r.engine.mu.Unlock()
		m.busy = false
		if errors.Is(err, errResumed) {
			err = nil
		}
		if then != nil {
			then(err)
		}
		switch {
		case r.closed:
		case err != nil && unreached(err) && r.has(m.instance):
			// It goes on when the engine has been listed again.
			r.report()
		default:
			r.observe(m, m.view)
		}
	})
}

// idOf returns the id of a container, once it has one.
func (r *runner) idOf(m *member) string {
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	return m.id
}

// The calls.

func (r *runner) start(id string) func(context.Context, *client.Client) error {
	return func(ctx context.Context, c *client.Client) error {
		// One that takes long may hang: a look at the engine finds out.
		late := time.AfterFunc(callTimeout, r.engine.kick)
		defer late.Stop()
		// The engine carries a start out whether it is waited for or not. What
		// came of it is known only if it is.
		call, cancel := context.WithCancel(background)
		defer cancel()
		defer context.AfterFunc(ctx, func() {
			if sleep(call, startGrace) {
				cancel()
			}
		})()
		_, err := c.ContainerStart(call, id, client.ContainerStartOptions{})
		return err
	}
}

// startGrace is how long the answer to a start is waited for that is not wanted
// any more.
const startGrace = 3 * time.Second

func (r *runner) pause(id string) func(context.Context, *client.Client) error {
	return bounded(callTimeout, func(ctx context.Context, c *client.Client) error {
		_, err := c.ContainerPause(ctx, id, client.ContainerPauseOptions{})
		return err
	})
}

func (r *runner) unpause(id string) func(context.Context, *client.Client) error {
	return bounded(callTimeout, func(ctx context.Context, c *client.Client) error {
		_, err := c.ContainerUnpause(ctx, id, client.ContainerUnpauseOptions{})
		return err
	})
}

// errResumed says that a container is as it was before it was paused, so it need
// not be looked at: a look takes as long as everything else that Usher does.
var errResumed = errors.New("resumed")

// resume unpauses a container that was seen before.
func (r *runner) resume(id string, before *view) func(context.Context, *client.Client) error {
	return func(ctx context.Context, c *client.Client) error {
		if err := r.unpause(id)(ctx, c); err != nil {
			return err
		}
		now := *before
		now.state = container.StateRunning
		r.engine.assume(id, &now)
		return errResumed
	}
}

// halt stops a container. The engine counts in whole seconds.
func (r *runner) halt(id string, timeout time.Duration) func(context.Context, *client.Client) error {
	seconds := int((timeout + time.Second - 1) / time.Second)
	return bounded(timeout+3*callTimeout, func(ctx context.Context, c *client.Client) error {
		_, err := c.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: &seconds})
		return err
	})
}

// remove removes a container of Usher's own, with the volumes that have no name.
func (r *runner) remove(id string) func(context.Context, *client.Client) error {
	return bounded(3*callTimeout, func(ctx context.Context, c *client.Client) error {
		_, err := c.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		return err
	})
}

func bounded(limit time.Duration, do func(context.Context, *client.Client) error) func(context.Context, *client.Client) error {
	return func(ctx context.Context, c *client.Client) error {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return do(ctx, c)
	}
}

// Close ends the runner. Its containers end with it if they are this Caddy's and
// are not to be kept; others are left as they are.
func (r *runner) Close(ctx context.Context, stopTimeout time.Duration) error {
	e := r.engine
	e.mu.Lock()
	if r.closed {
		e.mu.Unlock()
		return nil
	}
	r.closed = true
	if r.retry != nil {
		r.retry.Stop()
	}
	for _, m := range r.members {
		if m.until != nil {
			m.until.Stop()
			m.until = nil
		}
	}
	e.mu.Unlock()
	r.cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.jobs.Wait()
		if r.owned && !r.env.Local().Keep {
			r.dissolve(stopTimeout)
		}
		e.leave(r)
		e.release()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dissolve stops what belongs to this Caddy, and removes what Usher has made.
func (r *runner) dissolve(stopTimeout time.Duration) {
	e := r.engine
	e.mu.Lock()
	members := slices.Clone(r.members)
	outage := e.outage
	c := clientOf(e)
	e.mu.Unlock()
	if c != nil && outage == nil {
		ctx, cancel := context.WithTimeout(background, dissolveWait)
		if err := e.alive(ctx); err != nil {
			outage = callFailure(err)
		}
		cancel()
	}
	if c == nil || outage != nil {
		if len(members) > 0 {
			r.env.Logger().Warn("the containers of the service cannot be stopped now; those that Usher has made are removed when Caddy starts again", slog.Any("error", outage))
		}
		return
	}
	places := make(chan struct{}, 8)
	for _, m := range members {
		if m.id == "" {
			continue
		}
		places <- struct{}{}
		r.jobs.Go(func() {
			defer func() { <-places }()
			r.dismiss(c, m, stopTimeout)
		})
	}
	r.jobs.Wait()
	r.sweep(c)
}

// dissolveWait is how long an engine may take to show a sign of life before its
// containers are left to the next Caddy.
const dissolveWait = 2 * time.Second

// dismiss stops one container, and removes it if Usher has made it.
func (r *runner) dismiss(c *client.Client, m *member, stopTimeout time.Duration) {
	ctx, cancel := context.WithTimeout(background, stopTimeout+3*callTimeout)
	defer cancel()
	v, err := r.engine.inspect(ctx, m.id)
	if v.paused() {
		err = r.unpause(m.id)(ctx, c)
	}
	if v.runs() {
		err = r.halt(m.id, stopTimeout)(ctx, c)
	}
	if m.made {
		err = r.remove(m.id)(ctx, c)
	}
	if err != nil && !isNotFound(err) {
		r.env.Logger().Warn("a container of the service cannot be stopped", slog.String("container", short(m.id)), slog.Any("error", callFailure(err)))
	}
}

// sweep removes what r has made and never got to know: a call may be carried out
// whose answer was not waited for.
func (r *runner) sweep(c *client.Client) {
	ctx, cancel := context.WithTimeout(background, 2*callTimeout)
	defer cancel()
	res, err := c.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", labelRun+"="+r.token)})
	if err != nil {
		r.env.Logger().Warn("the containers of the service cannot be listed", slog.Any("error", callFailure(err)))
		return
	}
	for _, item := range res.Items {
		_ = r.remove(item.ID)(ctx, c) // if it fails, the next Caddy removes it
	}
}

// failed is the failure of a container that cannot be made. The lock is held.
func (r *runner) failed(f *scaler.Failure) {
	r.spoiled = f
	r.failures++
	if r.retry != nil {
		r.retry.Stop()
	}
	pause := min(time.Second<<min(r.failures, 12), aheadMost)
	r.retry = time.AfterFunc(pause, func() {
		r.engine.mu.Lock()
		defer r.engine.mu.Unlock()
		r.retry = nil
		r.ahead()
	})
}

// aheadMost is the longest pause between two tries to make a container ahead.
const aheadMost = 5 * time.Minute

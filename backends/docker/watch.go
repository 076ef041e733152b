package docker

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"github.com/caddy-usher/usher/scaler"
)

// run watches the engine until it is released.
func (e *engine) run() {
	defer close(e.done)
	pause := backoffFirst
	for {
		established, err := e.session()
		if e.ctx.Err() != nil {
			return
		}
		e.mu.Lock()
		was := e.outage
		e.mu.Unlock()
		if established {
			pause = backoffFirst
		}
		if was == nil && established {
			// The stream was lost. It is an outage only if there is no other.
			e.logger().Debug("the event stream of the container engine ended", slog.Any("error", err))
			continue
		}
		e.lost(err)
		select {
		case <-e.ctx.Done():
			return
		case <-e.kicks:
			// An order asks for the engine: but not in a busy loop.
			if !sleep(e.ctx, backoffFirst) {
				return
			}
		case <-time.After(pause/2 + rand.N(pause)):
			pause = min(2*pause, backoffMost)
		}
	}
}

// lost takes note that the engine cannot be asked. What is known goes on
// holding.
func (e *engine) lost(err error) {
	f := e.outageFailure(err)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.outage != nil && e.outage.Reason == f.Reason && e.outage.Short == f.Short {
		return
	}
	e.outage = f
	e.settle()
}

// session connects to the engine, and follows it until something fails: it
// subscribes first and lists then, so no change falls in between. It was
// established if everything could be listed.
func (e *engine) session() (established bool, err error) {
	c, err := e.connect()
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(e.ctx)
	var stream sync.WaitGroup
	defer stream.Wait()
	defer cancel()
	subscribed := make(chan client.EventsResult, 1)
	stream.Go(func() {
		// Containers and images, whatever happens to them: the names of what
		// happens differ between engines.
		filters := make(client.Filters).Add("type", string(events.ContainerEventType), string(events.ImageEventType))
		subscribed <- c.Events(ctx, client.EventsListOptions{Filters: filters})
	})
	var res client.EventsResult
	select {
	case res = <-subscribed:
		subscribed = nil
	case <-time.After(streamWait):
		// Some engines send nothing before the first event.
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if err := e.list(); err != nil {
		return false, err
	}
	again := time.NewTicker(resync)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return true, ctx.Err()
		case res = <-subscribed:
			subscribed = nil
		case err := <-res.Err:
			if err == nil {
				err = errors.New("the event stream ended")
			}
			return true, err
		case m := <-res.Messages:
			err = e.happened(m)
		case <-e.kicks:
			err = e.list()
		case <-again.C:
			err = e.list()
		}
		if err != nil {
			return true, err
		}
	}
}

// connect makes a client, which finds out the version that the engine speaks.
func (e *engine) connect() (*client.Client, error) {
	opts := []client.Opt{client.WithHost(e.access.Host), client.WithUserAgent("usher")}
	if e.access.tls() {
		opts = append(opts, client.WithTLSClientConfig(e.access.CAFile, e.access.CertFile, e.access.KeyFile))
	}
	c, err := client.New(opts...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(e.ctx, callTimeout)
	defer cancel()
	if _, err := c.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true}); err != nil {
		_ = c.Close() // the error of the call says more
		return nil, err
	}
	found := learn(ctx, c)
	e.mu.Lock()
	e.facts = found
	e.mu.Unlock()
	if before := exchange(e, c); before != nil {
		_ = before.Close() // calls that use it go on
	}
	return c, nil
}

// happened takes an event as a hint: what is, says an inspection.
func (e *engine) happened(m events.Message) error {
	if m.Type == events.ImageEventType {
		e.mu.Lock()
		defer e.mu.Unlock()
		for _, r := range e.runners {
			r.checkImage()
		}
		return nil
	}
	action, _, _ := strings.Cut(string(m.Action), ":")
	switch {
	case m.Actor.ID == "", strings.HasPrefix(action, "exec_"):
		return nil
	case action == "attach", action == "detach", action == "top", action == "resize", action == "copy", action == "export":
		return nil
	case action == string(events.ActionKill):
		e.mu.Lock()
		e.kills[m.Actor.ID] = m.Actor.Attributes["signal"]
		e.mu.Unlock()
	}
	e.mu.Lock()
	if !lasting[action] {
		e.pokeSearches()
	}
	before := e.views[m.Actor.ID]
	concern := before != nil || e.concerns(m.Actor.ID, m.Actor.Attributes["name"], m.Actor.Attributes)
	e.mu.Unlock()
	// Old engines leave the labels out: what is new is looked at.
	if !concern && action != string(events.ActionCreate) && action != string(events.ActionRename) && action != string(events.ActionStart) {
		return nil
	}
	_, err := e.inspect(e.ctx, m.Actor.ID)
	if err == nil && action == string(events.ActionStart) {
		e.mu.Lock()
		delete(e.kills, m.Actor.ID)
		e.mu.Unlock()
	}
	return err
}

// lasting are the events after which a container is there as before: with the same
// name and labels. Others may be those of a container that has come or gone.
var lasting = map[string]bool{
	string(events.ActionStart): true, string(events.ActionStop): true, string(events.ActionDie): true, "died": true,
	string(events.ActionKill): true, string(events.ActionRestart): true, string(events.ActionPause): true,
	string(events.ActionUnPause): true, string(events.ActionOOM): true, "health_status": true,
}

// list looks at everything that concerns a runner.
func (e *engine) list() error {
	c, err := e.api()
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.calls++
	call := e.calls
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(e.ctx, callTimeout)
	defer cancel()
	res, err := c.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return err
	}
	listed := make(map[string]bool, len(res.Items))
	var look []string
	e.mu.Lock()
	for _, item := range res.Items {
		listed[item.ID] = true
		name := ""
		if len(item.Names) > 0 {
			name = strings.TrimPrefix(item.Names[0], "/")
		}
		if e.concerns(item.ID, name, item.Labels) {
			look = append(look, item.ID)
		}
	}
	var gone []string
	for id, s := range e.views {
		if listed[id] {
			continue
		}
		if s.view != nil && s.call < call {
			gone = append(gone, id)
		}
		if s.view == nil {
			delete(e.views, id)
		}
	}
	e.mu.Unlock()
	for _, id := range gone {
		e.take(id, nil, call)
	}
	if err := e.inspectAll(look); err != nil {
		return err
	}
	e.listed()
	return nil
}

// inspectAll looks at many containers, some at a time.
func (e *engine) inspectAll(ids []string) error {
	const atOnce = 4
	var wg sync.WaitGroup
	places := make(chan struct{}, atOnce)
	var mu sync.Mutex
	var failed error
	for _, id := range ids {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			if _, err := e.inspect(e.ctx, id); err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return failed
}

// listed takes note that everything was looked at.
func (e *engine) listed() {
	e.mu.Lock()
	defer e.mu.Unlock()
	was := e.outage
	e.known, e.outage = true, nil
	for _, r := range e.runners {
		r.listed()
	}
	e.settle()
	if was != nil && len(e.runners) > 0 {
		e.runners[0].env.Logger().Info("the container engine answers again", slog.String("host", e.access.Host))
	}
}

// outageFailure words the failure of an engine that cannot be asked.
func (e *engine) outageFailure(err error) *scaler.Failure {
	f := callFailure(err)
	if f.Reason != scaler.ReasonForbidden {
		f.Reason = scaler.ReasonPlatform
	}
	f.ForGood = false
	if hint := e.access.hint(err); hint != "" {
		f.Detail = hint
	}
	return f
}

// sleep waits, and returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

package marathonsim

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// firstCheckAfter is the longest time until the first tick of a check that
// Marathon runs. The ticks begin with the deployment, not with the task: a
// task that comes up after the first tick waits for the next.
const firstCheckAfter = 5 * time.Second

// A checker is one health check of one version of an app.
type checker struct {
	def   *definition
	n     int
	timer *timer
}

// A healthResult is kept for an instance and a check. Marathon keeps it in
// memory only.
type healthResult struct {
	firstSuccess, lastSuccess, lastFailure time.Time
	cause                                  string
	consecutive                            int
}

func (h *healthResult) alive() bool {
	return !h.lastSuccess.IsZero() && (h.lastFailure.IsZero() || h.lastSuccess.After(h.lastFailure))
}

// healthy is for an instance with results, all of them good.
func (i *instance) healthy() bool {
	if len(i.health) < len(i.def.healthChecks) {
		return false
	}
	for _, h := range i.health {
		if !h.alive() {
			return false
		}
	}
	return true
}

// ensureCheckers starts the checks of a version, unless they run already.
func (e *engine) ensureCheckers(d *definition) {
	e.stopCheckers(d.id, false)
	for _, c := range e.checkers[d.id] {
		if c.def.version.Equal(d.version) {
			return
		}
	}
	for n, h := range d.healthChecks {
		c := &checker{def: d, n: n}
		e.checkers[d.id] = append(e.checkers[d.id], c)
		e.bus.healthCheckAdded(d.id, d.version, h)
		if !h.mesos() {
			c.timer = e.after(min(h.interval, firstCheckAfter), func() { e.tickCheck(c) })
		}
	}
}

// stopCheckers ends the checks of versions of which there is nothing left.
func (e *engine) stopCheckers(app string, all bool) {
	e.checkers[app] = slices.DeleteFunc(e.checkers[app], func(c *checker) bool {
		inUse := e.root[app] != nil && e.root[app].version.Equal(c.def.version)
		for _, i := range e.run(app).instances {
			inUse = inUse || i.def.version.Equal(c.def.version)
		}
		if inUse && !all {
			return false
		}
		c.timer.stop()
		return true
	})
}

// tickCheck is one round of a check that Marathon's leader runs.
func (e *engine) tickCheck(c *checker) {
	h := c.def.healthChecks[c.n]
	c.timer = e.after(h.interval, func() { e.tickCheck(c) })
	for _, i := range e.run(c.def.id).instances {
		if i.def.version.Equal(c.def.version) && i.condition == running {
			t := i.task
			e.probe(t, h, func(cause string) { e.checked(i, t, c.n, cause, false) })
		}
	}
}

// watchHealth begins the checks that the agent runs, for a task that has
// started.
func (e *engine) watchHealth(t *task) {
	for n, h := range t.def.healthChecks {
		if !h.mesos() {
			continue
		}
		var round func()
		round = func() {
			if t.proc == nil {
				return
			}
			e.probe(t, h, func(cause string) {
				if t.proc == nil {
					return
				}
				t.agentChecked(e, n, cause)
				e.after(h.interval, round)
			})
		}
		e.after(h.delay, round)
	}
}

// agentChecked is a result of the agent's. It travels as a status update:
// RUNNING once more.
func (t *task) agentChecked(e *engine, n int, cause string) {
	deliver := func() {
		e.whenLeading(func() {
			if i := e.instances[t.instance]; i != nil && i.task == t && i.condition == running {
				e.checked(i, t, n, cause, true)
			}
		})
	}
	if t.agent.partitioned || t.agent.lost {
		t.agent.unsent = append(t.agent.unsent, deliver)
		return
	}
	deliver()
}

// probe runs a check outside the engine, and brings its result back: the
// empty cause is success. Its timeout is in wall time, as is the process.
func (e *engine) probe(t *task, h healthCheck, result func(cause string)) {
	address, ok := t.endpoint(h.portIndex)
	if h.port > 0 {
		host, _, err := net.SplitHostPort(address)
		address, ok = fmt.Sprintf("%s:%d", host, h.port), err == nil
	}
	env := e.commandOf(t).env
	timeout := max(e.clock.wall(h.timeout), 10*time.Millisecond)
	e.side.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		go func() {
			select {
			case <-e.stopping:
				cancel()
			case <-ctx.Done():
			}
		}()
		cause := ""
		switch kind := strings.TrimPrefix(h.protocol, "MESOS_"); {
		case kind == "COMMAND":
			cmd := exec.CommandContext(ctx, "sh", "-c", h.command)
			cmd.Env = env
			if err := cmd.Run(); err != nil {
				cause = "Command " + err.Error()
			}
		case !ok:
			cause = "no port to check"
		case kind == "TCP":
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err != nil {
				cause = "ConnectException: Connection refused"
			} else {
				conn.Close()
			}
		default:
			status, _, err := fetch(ctx, kind == "HTTPS", address, h.path)
			if err != nil {
				cause = "ConnectException: Connection refused"
			} else if status < 200 || status > 399 {
				cause = fmt.Sprintf("%d %s", status, http.StatusText(status))
			}
		}
		e.post(func() { result(cause) })
	})
}

// fetch asks once, on a connection of its own.
func fetch(ctx context.Context, tls bool, address, path string) (int, fetched, error) {
	scheme := "http"
	if tls {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address+"/"+strings.TrimPrefix(path, "/"), nil)
	if err != nil {
		return 0, fetched{}, err
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: anyCertificate()},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, fetched{}, err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 10<<10))
	return resp.StatusCode, fetched{resp.Header.Get("Content-Type"), string(body)}, nil
}

type fetched struct{ contentType, body string }

// checked is the result of a check of an instance.
func (e *engine) checked(i *instance, t *task, n int, cause string, mesos bool) {
	if e.instances[i.id] != i || i.task != t || i.condition != running || !e.leading {
		return
	}
	h := t.def.healthChecks[n]
	r := i.health[n]
	if r == nil {
		r = &healthResult{}
	}
	before := r.alive()
	now := e.now()
	if cause == "" {
		if r.firstSuccess.IsZero() {
			r.firstSuccess = now
		}
		r.lastSuccess, r.consecutive = now, 0
	} else {
		if r.firstSuccess.IsZero() && now.Before(t.startedAt.Add(h.grace)) {
			return // it may still be starting
		}
		r.lastFailure, r.cause = now, cause
		r.consecutive++
		e.bus.failedCheck(i, h)
	}
	fresh := i.health[n] == nil
	if i.health == nil {
		i.health = map[int]*healthResult{}
	}
	i.health[n] = r
	if before != r.alive() || fresh && mesos {
		if mesos {
			e.bus.statusUpdate(t)
		}
		e.log("health", i.app, i.id, "alive %v %s", r.alive(), cause)
		e.bus.healthChanged(i, r.alive())
	}
	e.showLater(i)
	e.pokeLater(i.app)
	if cause != "" && tooManyFailures(h, r, mesos) {
		e.killUnhealthy(i, t, cause)
	}
}

// tooManyFailures reads a maximum of 0 as its two readers do: Marathon never
// kills, Mesos does at once.
func tooManyFailures(h healthCheck, r *healthResult, mesos bool) bool {
	if mesos {
		return r.consecutive >= max(1, h.maxFailures)
	}
	return h.maxFailures > 0 && r.consecutive >= h.maxFailures
}

// killUnhealthy ends a task for its health; the goal stays, so that there is
// another soon. It is no failure in the sense of the back-off.
func (e *engine) killUnhealthy(i *instance, t *task, cause string) {
	if i.killSent {
		return
	}
	e.bus.unhealthyKill(i, cause)
	e.run(i.app).lastFailure = &taskFailure{
		taskID: t.id, state: "TASK_KILLED", message: "Task was killed since health check failed. Reason: " + cause,
		host: t.agent.hostname, slaveID: t.agent.id, version: t.def.version, at: e.now(),
	}
	e.kill(i)
}

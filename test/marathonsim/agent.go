package marathonsim

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// An agent is a simulated machine of Mesos: a loopback address, resources,
// and a small range of ports, so that ports are used again soon. What is on
// it goes on whether or not Marathon has a leader, or can reach it.
type agent struct {
	id         string
	hostname   string
	ip         string
	attributes map[string]string
	cpus, mem  float64
	disk       float64
	firstPort  int
	lastPort   int

	usedCPUs, usedMem, usedDisk float64
	ports                       map[int]bool // in use
	freed                       []int        // the ports that were given back, latest last
	containerIPs                int

	tasks       []*task
	draining    bool // makes no offers
	partitioned bool
	lost        bool
	unsent      []func() // status updates that cannot get out
}

// say sends a status update, now or when the agent is back.
func (e *engine) say(t *task, state, message string) {
	t.reported = state
	a := t.agent
	if a.partitioned || a.lost {
		a.unsent = append(a.unsent, func() { e.update(t, state, message) })
		return
	}
	e.update(t, state, message)
}

// place starts a task on its agent: after the launch delay, which is what an
// image costs, the executor says STARTING, and RUNNING as soon as there is a
// process. That the process serves is not known, and not meant.
func (e *engine) place(t *task) {
	a := t.agent
	a.tasks = append(a.tasks, t)
	a.usedCPUs, a.usedMem, a.usedDisk = a.usedCPUs+t.def.cpus, a.usedMem+t.def.mem, a.usedDisk+t.def.disk
	delay := e.between(e.cfg.LaunchDelay)
	if d, ok := e.faults.launchDelay(t.app); ok {
		delay = d
	}
	t.launch = e.after(delay, func() {
		t.launch = nil
		e.say(t, "STARTING", "")
		e.spawn(t)
	})
}

// spawn starts the process, outside the engine's goroutine.
func (e *engine) spawn(t *task) {
	spec := e.commandOf(t)
	e.procs.start(spec, func(p *process, err error) {
		e.post(func() {
			if err != nil {
				e.release(t)
				e.say(t, "FAILED", "Failed to launch: "+err.Error())
				return
			}
			t.proc = p
			e.log("process", t.app, t.id, "pid %d", p.pid)
			if t.released {
				p.signal(sigkill) // its agent went down meanwhile
			}
			if t.order.asked {
				e.carryOutKill(t) // the order came while it was being started
			}
			e.say(t, "RUNNING", "")
			e.watchHealth(t)
			e.faults.started(t)
		})
	}, func(x exit) {
		e.post(func() { e.exited(t, x) })
	})
}

// exited is the end of a task's process.
func (e *engine) exited(t *task, x exit) {
	e.log("process", t.app, t.id, "ended: %s", x)
	t.order.escalate.stop()
	t.proc = nil
	e.release(t)
	delete(e.tasks, t.id)
	switch {
	case t.agent.lost:
		// The agent cannot be reached.
	case t.order.asked:
		e.say(t, "KILLED", "Command terminated with signal Terminated")
	case x.signal != "":
		e.say(t, "FAILED", "Command terminated with signal "+x.signal)
	case x.status == 0:
		e.say(t, "FINISHED", "Command exited with status 0")
	default:
		e.say(t, "FAILED", fmt.Sprintf("Command exited with status %d", x.status))
	}
}

// release gives back what the task had of its agent.
func (e *engine) release(t *task) {
	if t.released {
		return
	}
	t.released = true
	a := t.agent
	a.tasks = slices.DeleteFunc(a.tasks, func(o *task) bool { return o == t })
	a.usedCPUs, a.usedMem, a.usedDisk = a.usedCPUs-t.def.cpus, a.usedMem-t.def.mem, a.usedDisk-t.def.disk
	for n, spec := range portsOnAgent(t.def) {
		_ = spec
		if n < len(t.ports) {
			delete(a.ports, t.ports[n])
			a.freed = append(a.freed, t.ports[n])
		}
	}
	e.scheduleOffers()
}

// A killOrder is what an agent knows of an order to end a task.
type killOrder struct {
	asked    bool
	escalate *timer
}

// orderKill sends the order to the agent; it can get lost.
func (e *engine) orderKill(t *task) {
	if t.agent.partitioned || t.agent.lost || e.faults.losesKill(t.app) {
		e.log("kill", t.app, t.id, "the order is lost")
		return
	}
	if t.order.asked {
		return // it is dying
	}
	t.order.asked = true
	if e.cfg.TaskKilling {
		e.say(t, "KILLING", "")
	}
	if t.launch != nil {
		t.launch.stop()
		t.launch = nil
		e.release(t)
		delete(e.tasks, t.id)
		// A status update takes its way through the agent: nothing that gives
		// an order sees the effect within the same step.
		e.after(0, func() { e.say(t, "KILLED", "Killed before it was launched") })
		return
	}
	if t.proc != nil {
		e.carryOutKill(t)
	}
}

// carryOutKill is TERM to the process group and, after the grace period,
// KILL.
func (e *engine) carryOutKill(t *task) {
	p := t.proc
	e.log("kill", t.app, t.id, "TERM, and KILL after %s", t.def.killGrace)
	term := func() { p.signal(sigterm) }
	if d, ignored := e.faults.termDelay(t.app); ignored {
		term = func() {}
	} else if d > 0 {
		e.after(d, func() { p.signal(sigterm) })
		term = func() {}
	}
	term()
	t.order.escalate = e.after(t.def.killGrace, func() {
		e.log("kill", t.app, t.id, "KILL")
		p.signal(sigkill)
	})
}

// partition cuts the agent off. Its tasks go on; Marathon hears that they are
// unreachable, and nothing else.
func (e *engine) partition(a *agent) {
	if a.partitioned || a.lost {
		return
	}
	a.partitioned = true
	e.log("agent", "", a.id, "partitioned")
	for _, t := range slices.Clone(a.tasks) {
		e.update(t, "UNREACHABLE", "Slave "+a.hostname+" was removed: health check timed out")
	}
}

// heal brings a partitioned or lost agent back. It tells what has happened
// to its tasks and that the others are running as ever.
func (e *engine) heal(a *agent) {
	wasLost := a.lost
	if !a.partitioned && !wasLost {
		return
	}
	a.partitioned, a.lost = false, false
	e.log("agent", "", a.id, "back")
	unsent := a.unsent
	a.unsent = nil
	for _, f := range unsent {
		f()
	}
	for _, t := range slices.Clone(a.tasks) {
		if t.proc != nil && t.reported == "RUNNING" {
			e.update(t, "RUNNING", "Reconciliation: Latest task state")
		}
	}
	e.scheduleOffers()
}

// lose is the sudden end of a machine: its processes are gone at once,
// without a message. Mesos finds out, and calls it unreachable; what was there
// is reported as gone when the machine is back.
func (e *engine) lose(a *agent) {
	if a.lost {
		return
	}
	a.lost = true
	e.log("agent", "", a.id, "lost")
	for _, t := range slices.Clone(a.tasks) {
		t.launch.stop()
		t.launch = nil
		if t.proc != nil {
			t.proc.signal(sigkill)
		} else {
			e.release(t)
		}
		a.unsent = append(a.unsent, func() { e.update(t, "GONE", "Slave "+a.hostname+" was restarted") })
		e.update(t, "UNREACHABLE", "Slave "+a.hostname+" was removed: health check timed out")
	}
}

// commandOf is what the process of the task is started with.
func (e *engine) commandOf(t *task) command {
	d, a := t.def, t.agent
	sandbox := filepath.Join(e.cfg.Dir, a.id, t.id)
	c := command{dir: sandbox}
	switch {
	case len(d.args) > 0:
		c.argv = d.args
	case d.cmd != "":
		c.argv = []string{"sh", "-c", d.cmd}
	default:
		// Images are not simulated: a container without a command of its own
		// is what its label says.
		c.argv = []string{"sh", "-c", asString(d.labels["MARATHONSIM_CMD"], "exec sleep 1000000")}
	}
	if argv, ok := e.faults.replaceCommand(t.app); ok {
		c.argv = argv
	}

	env := map[string]string{}
	// The process is to bind where it can be reached. On a real agent that is
	// any address of the machine or of its own network namespace, and HOST is
	// only a name; here the address stands for both.
	host := a.ip
	if d.containerIP {
		host = t.ip
		env["MESOS_CONTAINER_IP"] = t.ip
	}
	env["HOST"] = host
	env["PATH"], env["LANG"], env["HOME"] = e.cfg.Path, "C.UTF-8", sandbox
	var ports []string
	taken := 0
	for n, spec := range d.ports {
		port := spec.containerPort
		if spec.hostPort && taken < len(t.ports) {
			port = t.ports[taken]
			taken++
		}
		s := strconv.Itoa(port)
		ports = append(ports, s)
		env["PORT"+strconv.Itoa(n)] = s
		if spec.name != "" {
			env["PORT_"+envName(spec.name)] = s
		}
	}
	if len(ports) > 0 {
		env["PORT"] = ports[0]
	}
	env["PORTS"] = strings.Join(ports, ",")
	env["MARATHON_APP_ID"] = d.id
	env["MARATHON_APP_VERSION"] = stamp(d.version)
	var labels []string
	for _, k := range sortedKeys(d.labels) {
		labels = append(labels, envName(k))
		env["MARATHON_APP_LABEL_"+envName(k)] = asString(d.labels[k], "")
	}
	env["MARATHON_APP_LABELS"] = strings.Join(labels, " ")
	env["MARATHON_APP_RESOURCE_CPUS"] = strconv.FormatFloat(d.cpus, 'f', 1, 64)
	env["MARATHON_APP_RESOURCE_MEM"] = strconv.FormatFloat(d.mem, 'f', 1, 64)
	env["MARATHON_APP_RESOURCE_DISK"] = strconv.FormatFloat(d.disk, 'f', 1, 64)
	env["MARATHON_APP_RESOURCE_GPUS"] = strconv.FormatFloat(d.gpus, 'f', 0, 64)
	env["MESOS_TASK_ID"], env["MESOS_SANDBOX"] = t.id, sandbox
	for k, v := range d.env {
		if s, ok := v.(string); ok {
			env[k] = s
		} else if asMap(v)["secret"] != nil {
			env[k] = "the secret " + asString(asMap(v)["secret"], "")
		}
	}
	for _, k := range sortedKeys(env) {
		c.env = append(c.env, k+"="+env[k])
	}
	return c
}

// envName is a name as Marathon puts it into the environment.
func envName(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '_'
	}, strings.ToUpper(s))
}

// portsOnAgent are the entries that take a port of the agent; only those have
// a place in task.ports.
func portsOnAgent(d *definition) []portSpec {
	var out []portSpec
	for _, p := range d.ports {
		if p.hostPort {
			out = append(out, p)
		}
	}
	return out
}

// endpoint is where the n-th port of the task can be reached.
func (t *task) endpoint(n int) (string, bool) {
	if n >= len(t.def.ports) {
		return "", false
	}
	taken := 0
	for i, spec := range t.def.ports {
		if i == n {
			if !spec.hostPort {
				return t.ip + ":" + strconv.Itoa(spec.containerPort), true
			}
			if taken < len(t.ports) {
				return t.agent.ip + ":" + strconv.Itoa(t.ports[taken]), true
			}
			return "", false
		}
		if spec.hostPort {
			taken++
		}
	}
	return "", false
}

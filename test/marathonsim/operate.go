package marathonsim

import (
	"fmt"
	"slices"
	"time"
)

// What happens to a Marathon from outside of its API: faults that are set,
// and accidents that happen once. A test calls the methods; the command
// offers them at its control address.

// Inject puts a fault in force; the returned function takes it back.
func (s *Sim) Inject(f Fault) (remove func()) {
	id := s.engine.faults.add(f)
	return func() { s.engine.faults.remove(id) }
}

// ClearFaults takes all faults back.
func (s *Sim) ClearFaults() { s.engine.faults.clear() }

// SetAuth changes what requests must carry, from now on.
func (s *Sim) SetAuth(a Auth) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.auth = a
}

// Advance puts the clock forward: what would have happened meanwhile happens
// now, in its order.
func (s *Sim) Advance(d time.Duration) {
	s.engine.do(func() { s.engine.clock.offset.Add(int64(d)) })
}

// Agents are the addresses of the agents, in the order in which the other
// methods count them, from 0.
func (s *Sim) Agents() []string {
	var out []string
	for _, a := range s.agents {
		out = append(out, a.ip)
	}
	return out
}

// Partition cuts an agent off from Mesos: its tasks go on, serve, and are
// reported as unreachable.
func (s *Sim) Partition(agent int) { s.engine.do(func() { s.engine.partition(s.agents[agent]) }) }

// Heal brings a partitioned or lost agent back.
func (s *Sim) Heal(agent int) { s.engine.do(func() { s.engine.heal(s.agents[agent]) }) }

// Lose ends an agent as a power cut does: the processes are gone, without a
// message until Heal.
func (s *Sim) Lose(agent int) { s.engine.do(func() { s.engine.lose(s.agents[agent]) }) }

// Drain stops or resumes the agent's offers.
func (s *Sim) Drain(agent int, drain bool) {
	s.engine.do(func() {
		s.agents[agent].draining = drain
		s.engine.scheduleOffers()
	})
}

// KillTask kills a task's processes from outside, as the machine does when
// memory runs out. It tells whether there was one.
func (s *Sim) KillTask(id string) bool {
	found := false
	s.engine.do(func() {
		if t := s.engine.tasks[id]; t != nil && t.proc != nil {
			t.proc.signal(sigkill)
			found = true
		}
	})
	return found
}

// CrashNode ends a node: its address refuses, and what was open is reset. A
// leader leaves its place to another one. The node stays away until StartNode.
func (s *Sim) CrashNode(n int) {
	nd := s.nodes[n]
	nd.setAway(true)
	s.mu.Lock()
	led := s.leading == nd
	if led {
		s.leading = nil
	}
	s.mu.Unlock()
	if led {
		s.engine.do(func() {
			s.engine.stepDown()
			s.engine.after(s.engine.between(s.cfg.ElectionGap), s.electAny)
		})
	}
	nd.crash()
}

// StartNode brings a node back, as a standby.
func (s *Sim) StartNode(n int) {
	s.nodes[n].setAway(false)
	s.engine.do(func() { s.restartLater(s.nodes[n], 0) })
}

// Leader is the number of the leading node, or -1.
func (s *Sim) Leader() int {
	l := s.leader()
	return slices.IndexFunc(s.nodes, func(nd *node) bool { return nd == l })
}

// Abdicate lets the leader go as DELETE /v2/leader does, at once.
func (s *Sim) Abdicate() {
	if l := s.leader(); l != nil {
		s.crashLeader(l)
	}
}

// DropStreams ends all event streams, as a proxy on the way does.
func (s *Sim) DropStreams() {
	for _, sub := range s.engine.bus.list() {
		sub.close()
	}
}

// SilenceStreams lets all event streams say nothing any more, and stay open:
// a connection whose other end has gone without a word.
func (s *Sim) SilenceStreams() {
	for _, sub := range s.engine.bus.list() {
		sub.silent.Store(true)
	}
}

// SendEvent sends an event that nothing has caused. body is one line of JSON,
// or what else is to stand there.
func (s *Sim) SendEvent(kind, body string) {
	frame := []byte("event: " + kind + "\r\ndata: " + body + "\r\n\r\n")
	for _, sub := range s.engine.bus.list() {
		s.engine.post(func() { s.engine.bus.push(sub, frame) })
	}
}

// Lock is a foreign deployment that holds the app and does not end:
// an upgrade whose new tasks do not get ready. It returns the id and what
// lets it end. By force, or by a DELETE, it can be cancelled as any other.
func (s *Sim) Lock(app string) (id string, release func(), err error) {
	var d *deployment
	s.engine.do(func() { d = s.engine.hold(absoluteID(app)) })
	if d == nil {
		return "", nil, fmt.Errorf("marathonsim: %s does not exist or is locked", app)
	}
	return d.id, func() { s.engine.do(d.release) }, nil
}

// hold starts such a deployment.
func (e *engine) hold(app string) *deployment {
	def := e.root[app]
	if def == nil || e.locked(app) || !e.leading {
		return nil
	}
	d := &deployment{
		e: e, id: e.uuid(), version: e.nextVersion(), affected: []string{app},
		original: map[string]*definition{app: def}, target: map[string]*definition{app: def},
	}
	a := d.action(scaleApplication, app, def)
	a.held = true
	d.steps = [][]*action{{a}}
	e.log("deployment", app, d.id, "held")
	e.deployments = append(e.deployments, d)
	d.start()
	return d
}

// release lets a held deployment go on to its end.
func (d *deployment) release() {
	for _, a := range d.steps[0] {
		a.held = false
		if a.begun && !a.done {
			a.look()
		}
	}
	d.check()
}

// A TaskRecord is a task as the agents know it.
type TaskRecord struct {
	ID    string `json:"id"`
	App   string `json:"app"`
	Agent string `json:"agent"`
	State string `json:"state"`
	Goal  string `json:"goal"` // of the instance; empty when Marathon has none
	PID   int    `json:"pid"`  // 0 when there is no process
	Ports []int  `json:"ports"`
	IP    string `json:"ip"`
}

// Tasks are the simulator's books: every task of which an agent still holds
// something, whatever Marathon knows of it.
func (s *Sim) Tasks() []TaskRecord {
	out := []TaskRecord{}
	s.engine.do(func() {
		for _, id := range sortedKeys(s.engine.tasks) {
			t := s.engine.tasks[id]
			if t.released {
				continue
			}
			r := TaskRecord{ID: t.id, App: t.app, Agent: t.agent.id, State: "TASK_" + t.state, Ports: t.ports, IP: t.ip}
			if i := s.engine.instances[t.instance]; i != nil && i.task == t {
				r.Goal = i.goal
			}
			if t.proc != nil {
				r.PID = t.proc.pid
			}
			out = append(out, r)
		}
	})
	return out
}

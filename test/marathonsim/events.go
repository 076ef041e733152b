package marathonsim

import (
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// maxOutstanding is how far a consumer of events may fall behind.
const maxOutstanding = 1024

// An event is one entry of the stream: its body as it is written, and, where
// versions differ in it, the longer form.
type event struct {
	kind  string
	body  object
	heavy object // with the whole groups in the plan; nil when there is none
}

// A bus hands events to the consumers. It promises little, as Marathon does:
// every consumer gets every event late by a time of its own, so that order is
// not kept, and neither is the order of events and what the API shows.
type bus struct {
	e *engine

	mu          sync.Mutex
	subscribers map[*subscriber]struct{}
}

// A subscriber is one open stream.
type subscriber struct {
	conn   net.Conn
	types  map[string]bool // nil is all
	light  bool
	remote string

	queue chan []byte // frames
	gone  chan struct{}
	once  sync.Once

	// silent is a fault: the stream is open and says nothing, not even a
	// heartbeat.
	silent atomic.Bool
}

// close ends the stream, also one whose consumer does not read.
func (s *subscriber) close() {
	s.once.Do(func() {
		close(s.gone)
		s.conn.Close()
	})
}

func newBus(e *engine) *bus { return &bus{e: e, subscribers: map[*subscriber]struct{}{}} }

// attach opens a stream, and tells everybody of it, the new one too.
func (b *bus) attach(s *subscriber) {
	b.mu.Lock()
	b.subscribers[s] = struct{}{}
	b.mu.Unlock()
	b.publish("event_stream_attached", object{{"remoteAddress", s.remote}})
}

func (b *bus) detach(s *subscriber) {
	b.mu.Lock()
	_, there := b.subscribers[s]
	delete(b.subscribers, s)
	b.mu.Unlock()
	s.close()
	if there {
		b.publish("event_stream_detached", object{{"remoteAddress", s.remote}})
	}
}

func (b *bus) list() []*subscriber {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*subscriber
	for s := range b.subscribers {
		out = append(out, s)
	}
	return out
}

func (b *bus) close() {
	for _, s := range b.list() {
		s.close()
	}
}

// publish sends an event with the two members that all have, except for those
// that bring a time of their own.
func (b *bus) publish(kind string, body object) { b.publishHeavy(kind, body, nil) }

func (b *bus) publishHeavy(kind string, body, heavy object) {
	tail := object{{"eventType", kind}, {"timestamp", stamp(b.e.now())}}
	ev := event{kind: kind, body: append(body, tail...)}
	if heavy != nil {
		ev.heavy = append(heavy, tail...)
	}
	b.e.log("event", "", "", "%s", kind)
	for _, s := range b.list() {
		if s.types != nil && !s.types[kind] {
			continue
		}
		b.deliver(s, ev)
	}
}

// deliver puts the event on its way to one consumer.
func (b *bus) deliver(s *subscriber, ev event) {
	body := ev.body
	if ev.heavy != nil && !s.light {
		body = ev.heavy
	}
	frame := []byte("event: " + ev.kind + "\r\ndata: " + string(marshal(body)) + "\r\n\r\n")
	if _, ok := b.e.faults.strike(FaultUnknownEvent, nil); ok {
		b.after(s, 0, []byte("event: moon_phase_event\r\ndata: {\"phase\":[1,null],\"eventType\":\"moon_phase_event\"}\r\n\r\n"))
	}
	if _, ok := b.e.faults.strike(FaultHugeEvent, nil); ok {
		huge := object{{"clientIp", "127.0.0.1"}, {"uri", "/v2/apps/huge"}, {"appDefinition", object{
			{"id", "/huge"}, {"cmd", strings.Repeat("x", 1<<20)},
		}}, {"eventType", "api_post_event"}, {"timestamp", stamp(b.e.now())}}
		b.after(s, 0, []byte("event: api_post_event\r\ndata: "+string(marshal(huge))+"\r\n\r\n"))
	}
	copies, delay := b.e.faults.eventFate(b.e.between(b.e.cfg.EventDelay))
	for range copies {
		b.after(s, delay, frame)
	}
}

func (b *bus) after(s *subscriber, delay time.Duration, frame []byte) {
	b.e.after(delay, func() { b.push(s, frame) })
}

func (b *bus) push(s *subscriber, frame []byte) {
	select {
	case <-s.gone:
	case s.queue <- frame:
	default:
		if b.e.profile.slowConsumer {
			b.e.log("event", "", "", "a consumer is too slow and is disconnected")
			s.close()
		}
	}
}

// statusUpdate is what Mesos said of a task.
func (b *bus) statusUpdate(t *task) {
	b.publish("status_update_event", object{
		{"slaveId", t.agent.id},
		{"taskId", t.id},
		{"taskStatus", "TASK_" + t.state},
		{"message", t.message},
		{"appId", t.app},
		{"host", t.agent.hostname},
		{"ipAddresses", t.addresses()},
		{"ports", intsOf(t.ports)},
		{"version", stamp(t.def.version)},
	})
}

// instanceChanged is also sent when only the goal has changed.
func (b *bus) instanceChanged(i *instance) {
	o := object{{"instanceId", i.id}, {"condition", i.condition}, {"runSpecId", i.app}}
	if i.condition != scheduled && i.task != nil {
		o = append(o, member{"agentId", i.task.agent.id}, member{"host", i.task.agent.hostname})
	}
	b.publish("instance_changed_event", append(o, member{"runSpecVersion", stamp(i.def.version)}))
}

func (b *bus) healthChanged(i *instance, alive bool) {
	b.publish("instance_health_changed_event", object{
		{"instanceId", i.id}, {"runSpecId", i.app}, {"healthy", alive}, {"runSpecVersion", stamp(i.def.version)},
	})
	b.publish("health_status_changed_event", object{
		{"appId", i.app}, {"instanceId", i.id}, {"version", stamp(i.def.version)}, {"alive", alive},
	})
}

// failedCheck names an instance where its member says task.
func (b *bus) failedCheck(i *instance, h healthCheck) {
	b.publish("failed_health_check_event", object{{"appId", i.app}, {"taskId", i.id}, {"healthCheck", h.json}})
}

func (b *bus) unhealthyKill(i *instance, reason string) {
	b.publish("unhealthy_instance_kill_event", object{
		{"appId", i.app},
		{"taskId", i.task.id},
		{"instanceId", i.id},
		{"version", stamp(i.def.version)},
		{"reason", reason},
		{"host", i.task.agent.hostname},
		{"slaveId", i.task.agent.id},
	})
}

func (b *bus) healthCheckAdded(app string, version time.Time, h healthCheck) {
	b.publish("add_health_check_event", object{{"appId", app}, {"version", stamp(version)}, {"healthCheck", h.json}})
}

func (b *bus) unknownTerminated(t *task, condition string) {
	b.publish("unknown_instance_terminated_event", object{
		{"instanceId", t.instance}, {"runSpecId", t.app}, {"condition", condition},
	})
}

// appTerminated is for apps that are deleted; a scaling to nothing has none.
func (b *bus) appTerminated(app string) { b.publish("app_terminated_event", object{{"appId", app}}) }

func (b *bus) apiPost(clientIP, uri string, app object) {
	b.publish("api_post_event", object{{"clientIp", clientIP}, {"uri", uri}, {"appDefinition", app}})
}

func (b *bus) groupChanged(group string, version time.Time) {
	b.publish("group_change_success", object{{"groupId", group}, {"version", stamp(version)}})
}

func (b *bus) deploymentStep(kind string, d *deployment) {
	step := object{{"actions", actionsJSON(d.steps[d.current])}}
	b.plan(kind, d, func(plan object) object { return object{{"plan", plan}, {"currentStep", step}} })
}

// deploymentOver is the end of a deployment, with a reason if it did not
// succeed.
func (b *bus) deploymentOver(d *deployment, reason string) {
	kind := "deployment_success"
	if reason != "" {
		kind = "deployment_failed"
	}
	b.plan(kind, d, func(plan object) object {
		o := object{{"id", d.id}, {"plan", plan}}
		if reason != "" {
			o = append(o, member{"reason", reason})
		}
		return o
	})
}

func (b *bus) plan(kind string, d *deployment, body func(object) object) {
	light := object{{"id", d.id}, {"steps", stepsJSON(d)}, {"version", stamp(d.version)}}
	var heavy object
	if b.e.profile.heavyPlans {
		heavy = body(object{
			{"id", d.id},
			{"original", groupJSON(b.e, d, d.original)},
			{"target", groupJSON(b.e, d, d.target)},
			{"steps", stepsJSON(d)},
			{"version", stamp(d.version)},
		})
	}
	b.publishHeavy(kind, body(light), heavy)
}

// groupJSON is the root group as it was before or is after a deployment, flat:
// which groups there are below it is of no use to a client that scales.
func groupJSON(e *engine, d *deployment, changed map[string]*definition) object {
	apps := []any{}
	seen := map[string]bool{}
	for _, id := range append(sortedKeys(e.root), sortedKeys(changed)...) {
		def := e.root[id]
		if c, ok := changed[id]; ok {
			def = c
		}
		if def != nil && !seen[id] {
			seen[id] = true
			apps = append(apps, def.json())
		}
	}
	return object{
		{"id", "/"},
		{"apps", apps},
		{"groups", []any{}},
		{"pods", []any{}},
		{"dependencies", []any{}},
		{"version", stamp(d.version)},
	}
}

func stepsJSON(d *deployment) []any {
	out := []any{}
	for _, step := range d.steps {
		out = append(out, object{{"actions", actionsJSON(step)}})
	}
	return out
}

func actionsJSON(step []*action) []any {
	out := []any{}
	for _, a := range step {
		out = append(out, object{{"action", a.kind}, {"app", a.app}})
	}
	return out
}

func intsOf(list []int) []int {
	if list == nil {
		return []int{}
	}
	return list
}

// eventTypes reads the filter of a request for events.
func eventTypes(values []string) map[string]bool {
	if len(values) == 0 {
		return nil
	}
	m := map[string]bool{}
	for _, v := range values {
		m[strings.TrimSpace(v)] = true
	}
	return m
}

package marathonsim

import (
	"fmt"
	"regexp"
	"slices"
	"time"
)

// rejectReasons is the funnel through which every offer goes, in Marathon's
// order: what an earlier reason declines, a later one does not see.
var rejectReasons = []string{
	"UnfulfilledRole", "UnfulfilledConstraint", "NoCorrespondingReservationFound", "AgentMaintenance",
	"InsufficientCpus", "InsufficientMemory", "InsufficientDisk", "InsufficientGpus", "InsufficientPorts",
	"DeclinedScarceResources",
}

// maxInstancesPerOffer is Marathon's --max_instances_per_offer.
const maxInstancesPerOffer = 5

// offerStats is what the queue tells of the offers that an app has seen since
// its present attempt to launch began, and in the latest cycle.
type offerStats struct {
	processed, unused    int
	lastUsed, lastUnused time.Time
	attempt, last        map[string]int
	lastProcessed        int
}

// scheduleOffers sees to it that offers come while something waits: the first
// ones when Marathon has revived, which it does not do too often, and Mesos
// has allocated; then in every cycle.
func (e *engine) scheduleOffers() {
	if e.offerTimer != nil || !e.leading || !e.anyQueued() {
		return
	}
	wait := e.lastRevive.Add(e.reviveInterval()).Sub(e.now())
	e.lastRevive = e.now().Add(max(wait, 0))
	e.offerTimer = e.after(max(wait, 0)+e.between(Range{0, e.cfg.OfferInterval}), e.offerCycle)
}

func (e *engine) reviveInterval() time.Duration {
	if e.cfg.ReviveInterval > 0 {
		return e.cfg.ReviveInterval
	}
	return e.profile.reviveInterval
}

func (e *engine) anyQueued() bool {
	for _, i := range e.instances {
		if i.condition == scheduled {
			return true
		}
	}
	return false
}

// offerCycle is one round of offers: every agent offers all that it has.
func (e *engine) offerCycle() {
	e.offerTimer = nil
	if !e.leading {
		return
	}
	if !e.faults.withholdOffers() {
		for _, r := range e.runs {
			r.offers.last, r.offers.lastProcessed = nil, 0
		}
		order := e.rng.Perm(len(e.agents))
		for _, n := range order {
			e.offer(e.agents[n])
		}
	}
	if e.anyQueued() {
		e.offerTimer = e.after(e.cfg.OfferInterval, e.offerCycle)
	}
}

// offer goes through everything that waits, in turns between the apps.
func (e *engine) offer(a *agent) {
	if a.lost || a.partitioned {
		return
	}
	launched := 0
	for _, id := range sortedKeys(e.runs) {
		r := e.runs[id]
		for _, i := range slices.Clone(r.instances) {
			if i.condition != scheduled || i.goal != goalRunning || e.now().Before(e.deadline(i.def)) {
				continue
			}
			if launched == maxInstancesPerOffer {
				return
			}
			reason, ports := e.match(a, i)
			r.offers.processed++
			r.offers.lastProcessed++
			if reason != "" {
				r.offers.decline(reason)
				r.offers.unused++
				r.offers.lastUnused = e.now()
				break // another instance of the same app fares no better
			}
			r.offers.lastUsed = e.now()
			launched++
			e.launch(i, a, ports)
		}
	}
}

func (s *offerStats) decline(reason string) {
	if s.attempt == nil {
		s.attempt = map[string]int{}
	}
	if s.last == nil {
		s.last = map[string]int{}
	}
	s.attempt[reason]++
	s.last[reason]++
}

// summary are the ten rows of the funnel.
func summary(declined map[string]int, processed int) []any {
	out := []any{}
	for _, reason := range rejectReasons {
		n := declined[reason]
		out = append(out, object{{"reason", reason}, {"declined", n}, {"processed", processed}})
		processed -= n
	}
	return out
}

// match tells the first reason for which the offer does not do, or the ports
// that the task gets.
func (e *engine) match(a *agent, i *instance) (string, []int) {
	d := i.def
	short := e.faults.starved()
	switch {
	case short["role"]:
		return "UnfulfilledRole", nil
	case !e.constraintsHold(a, i):
		return "UnfulfilledConstraint", nil
	case a.draining:
		return "AgentMaintenance", nil
	case short["cpus"] || a.usedCPUs+d.cpus > a.cpus+1e-9:
		return "InsufficientCpus", nil
	case short["mem"] || a.usedMem+d.mem > a.mem+1e-9:
		return "InsufficientMemory", nil
	case a.usedDisk+d.disk > a.disk+1e-9:
		return "InsufficientDisk", nil
	case d.gpus > 0:
		return "InsufficientGpus", nil
	}
	ports, ok := e.choosePorts(a, d)
	if short["ports"] || !ok {
		return "InsufficientPorts", nil
	}
	return "", ports
}

// choosePorts takes ports from the agent's range. One that has just been
// given back is as good as any other, and in a small range soon taken.
func (e *engine) choosePorts(a *agent, d *definition) ([]int, bool) {
	var out []int
	taken := func(p int) bool { return a.ports[p] || slices.Contains(out, p) || p < a.firstPort || p > a.lastPort }
	for _, spec := range portsOnAgent(d) {
		if d.requirePorts && !d.containerIP {
			if taken(spec.servicePort) {
				return nil, false
			}
			out = append(out, spec.servicePort)
			continue
		}
		var free []int
		for p := a.firstPort; p <= a.lastPort; p++ {
			if !taken(p) {
				free = append(free, p)
			}
		}
		if len(free) == 0 {
			return nil, false
		}
		port := free[e.rng.IntN(len(free))]
		if e.faults.reusePorts() {
			for _, p := range slices.Backward(a.freed) {
				if !taken(p) {
					port = p
					break
				}
			}
		}
		out = append(out, port)
	}
	return out, true
}

// launch accepts the offer.
func (e *engine) launch(i *instance, a *agent, ports []int) {
	t := e.newTask(i, a)
	t.ports = ports
	for _, p := range ports {
		a.ports[p] = true
	}
	t.ip = a.ip
	if i.def.containerIP {
		t.ip = e.containerAddress(a)
	}
	i.task = t
	e.log("launch", i.app, t.id, "on %s, ports %v, address %s", a.id, ports, t.ip)
	e.setCondition(i, provisioned)
	e.launched(i.app)
	e.place(t)
}

// containerAddress is an address for a task of its own; they are used again
// like ports, though not as soon.
func (e *engine) containerAddress(a *agent) string {
	for {
		e.agents[0].containerIPs++
		ip := fmt.Sprintf("127.64.%d.%d", e.cfg.subnet, 1+e.agents[0].containerIPs%250)
		inUse := false
		for _, t := range e.tasks {
			inUse = inUse || t.ip == ip && !t.released
		}
		if !inUse {
			return ip
		}
	}
}

// constraintsHold looks at the placement rules of the app.
func (e *engine) constraintsHold(a *agent, i *instance) bool {
	for _, c := range i.def.constraints {
		if len(c) < 2 {
			continue
		}
		field, operator, value := c[0], c[1], ""
		if len(c) > 2 {
			value = c[2]
		}
		here, has := a.attribute(field)
		counts := map[string]int{}
		for _, o := range e.run(i.app).instances {
			if o != i && o.task != nil && o.active() {
				v, _ := o.task.agent.attribute(field)
				counts[v]++
			}
		}
		ok := true
		switch operator {
		case "UNIQUE":
			ok = has && counts[here] == 0
		case "CLUSTER", "IS":
			ok = has && (value == "" && (len(counts) == 0 || counts[here] > 0) || value != "" && here == value)
		case "LIKE":
			ok = has && fullMatch(value, here)
		case "UNLIKE":
			ok = !has || !fullMatch(value, here)
		case "MAX_PER":
			ok = has && counts[here] < asInt(num(parseFloat(value)), 1)
		case "GROUP_BY":
			least := -1
			for _, other := range e.agents {
				if v, ok := other.attribute(field); ok && (least < 0 || counts[v] < least) {
					least = counts[v]
				}
			}
			ok = has && counts[here] <= least
		}
		if !ok {
			return false
		}
	}
	return true
}

func (a *agent) attribute(field string) (string, bool) {
	if field == "hostname" || field == "@hostname" {
		return a.hostname, true
	}
	v, ok := a.attributes[field]
	return v, ok
}

func fullMatch(pattern, s string) bool {
	re, err := regexp.Compile("^(?:" + pattern + ")$")
	return err == nil && re.MatchString(s)
}

func parseFloat(s string) float64 {
	var f float64
	_, _ = fmt.Sscanf(s, "%g", &f)
	return f
}

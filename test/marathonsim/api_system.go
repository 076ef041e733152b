package marathonsim

import (
	"math"
	"net/http"
)

// listDeployments is GET /v2/deployments: an array, not an object.
func (s *Sim) listDeployments() *response {
	out := []any{}
	for _, d := range s.engine.deployments {
		at := min(d.current, len(d.steps)-1)
		current := []any{}
		for _, a := range d.steps[at] {
			current = append(current, object{{"action", a.kind}, {"app", a.app}, {"readinessCheckResults", a.readinessJSON()}})
		}
		out = append(out, object{
			{"id", d.id},
			{"version", stamp(d.version)},
			{"affectedApps", d.affected},
			{"affectedPods", []any{}},
			{"steps", stepsJSON(d)},
			{"currentActions", current},
			{"currentStep", at + 1},
			{"totalSteps", len(d.steps)},
		})
	}
	return answer(http.StatusOK, out)
}

// deleteDeployment rolls back, which is a deployment itself, or, with force,
// just drops it: the apps keep their new definitions.
func (s *Sim) deleteDeployment(q *request, id string) *response {
	e := s.engine
	for _, d := range e.deployments {
		if d.id != id {
			continue
		}
		if q.flag("force", false) {
			e.cancel(d)
			return &response{status: http.StatusAccepted}
		}
		back, bad := e.deploy(d.rollback())
		if bad != nil {
			return bad
		}
		return deployed(http.StatusOK, back)
	}
	return message(http.StatusNotFound, "DeploymentPlan %s does not exist", id)
}

// listQueue is GET /v2/queue. An app is in it while something of it waits for
// an offer or for the first word of its agent.
func (s *Sim) listQueue() *response {
	e := s.engine
	out := []any{}
	for _, id := range sortedKeys(e.runs) {
		r := e.runs[id]
		n := 0
		var d *definition
		for _, i := range r.instances {
			if i.queued() {
				n++
				d = i.def
			}
		}
		if n == 0 || s.denied(id) {
			continue
		}
		left := e.deadline(d).Sub(e.now())
		o := object{{"count", n}}
		if e.profile.incarnations {
			o = append(o, member{"role", asString(d.fields["role"], "*")})
		}
		offers := object{{"processedOffersCount", r.offers.processed}, {"unusedOffersCount", r.offers.unused}}
		if !r.offers.lastUnused.IsZero() {
			offers = append(offers, member{"lastUnusedOfferAt", stamp(r.offers.lastUnused)})
		}
		if !r.offers.lastUsed.IsZero() {
			offers = append(offers, member{"lastUsedOfferAt", stamp(r.offers.lastUsed)})
		}
		offers = append(
			offers, member{"rejectSummaryLastOffers", summary(r.offers.last, r.offers.lastProcessed)},
			member{"rejectSummaryLaunchAttempt", summary(r.offers.attempt, r.offers.processed)},
		)
		out = append(out, append(
			o,
			member{"delay", object{
				{"timeLeftSeconds", int(math.Ceil(max(left, 0).Seconds()))}, {"overdue", left <= 0},
			}},
			member{"since", stamp(r.since)}, member{"processedOffersSummary", offers}, member{"app", d.json()},
		))
	}
	return answer(http.StatusOK, object{{"queue", out}})
}

// resetDelay is DELETE /v2/queue/{id}/delay. There is something to reset only
// while something waits.
func (s *Sim) resetDelay(id string) *response {
	if s.denied(id) {
		return forbidden()
	}
	if r := s.engine.runs[id]; r != nil {
		for _, i := range r.instances {
			if i.condition == scheduled {
				s.engine.resetDelay(id)
				s.engine.scheduleOffers()
				return &response{status: http.StatusNoContent}
			}
		}
	}
	return message(http.StatusNotFound, "Application %s not found in tasks queue.", id)
}

// leaderResource is /v2/leader.
func (s *Sim) leaderResource(q *request) *response {
	leader := s.leader()
	switch {
	case leader == nil:
		return message(http.StatusNotFound, "There is no leader")
	case q.method == http.MethodGet:
		return answer(http.StatusOK, object{{"leader", leader.addr}})
	case q.method == http.MethodDelete:
		s.engine.after(s.cfg.AbdicateDelay, func() { s.background.Go(func() { s.crashLeader(leader) }) })
		return message(http.StatusOK, "Leadership abdicated")
	}
	return &response{status: http.StatusMethodNotAllowed}
}

// infoJSON has what a client looks at, and leaves out most of the
// configuration.
func (s *Sim) infoJSON() object {
	leader := ""
	if l := s.leader(); l != nil {
		leader = l.addr
	}
	features := []any{}
	if s.cfg.TaskKilling {
		features = append(features, "task_killing")
	}
	return object{
		{"name", "marathon"},
		{"version", s.engine.profile.version},
		{"buildref", "marathonsim"},
		{"elected", true},
		{"leader", leader},
		{"frameworkId", s.frameworkID},
		{"marathon_config", object{
			{"features", features},
			{"framework_name", "marathon"},
			{"ha", true},
			{"hostname", "127.0.0.1"},
			{"local_port_max", 20000},
			{"local_port_min", 10000},
			{"task_launch_timeout", 300000},
			{"task_reservation_timeout", 20000},
			{"max_instances_per_offer", maxInstancesPerOffer},
			{"min_revive_offers_interval", s.engine.reviveInterval().Milliseconds()},
			{"checkpoint", true},
			{"failover_timeout", 604800},
			{"mesos_role", nil},
			{"mesos_user", nil},
		}},
		{"zookeeper_config", object{{"zk", "zk://127.0.0.1:2181/marathon"}, {"zk_timeout", 10000}}},
		{"http_config", object{{"http_port", 8080}, {"https_port", 8443}}},
	}
}

package hub

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

// The metrics live as long as the process: Caddy makes a new registry for
// every configuration, and counters shall survive that.
var (
	waitSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "usher", Name: "wait_seconds",
		Help:    "Time that requests waited for a slot, by what became of them.",
		Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120},
	}, []string{"service", "outcome"})

	coldStartSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "usher", Name: "cold_start_seconds",
		Help:    "Time from the request that woke a service to its first ready instance.",
		Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120},
	}, []string{"service"})

	reservationsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "usher", Name: "reservations_total",
		Help: "Requests that asked for a slot, by what became of them.",
	}, []string{"service", "outcome"})

	decisionsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "usher", Name: "decisions_total",
		Help: "Changes of the target, by direction.",
	}, []string{"service", "direction"})

	startFailuresTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "usher", Name: "start_failures_total",
		Help: "Starts of instances that failed, by reason.",
	}, []string{"service", "reason"})

	sessionsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "usher", Name: "sessions_total",
		Help: "Requests of sessions that got a slot, by what that means for the session.",
	}, []string{"service", "outcome"})

	handoverSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "usher", Name: "handover_seconds",
		Help:    "Time that another Caddy took to give slots back, since the one that leads asked it to.",
		Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5},
	}, []string{"service"})

	taskAttemptsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "usher", Name: "task_attempts_total",
		Help: "Attempts of stored requests, by the state of the request after them.",
	}, []string{"service", "state"})

	taskWaitSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "usher", Name: "task_wait_seconds",
		Help:    "Time that stored requests waited for an attempt, since they were accepted or due again.",
		Buckets: []float64{.01, .1, 1, 10, 60, 300, 1800, 3600, 21600, 86400, 259200},
	}, []string{"service"})

	taskDurationSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "usher", Name: "task_duration_seconds",
		Help:    "Time that attempts of stored requests took.",
		Buckets: []float64{.01, .1, 1, 10, 60, 300, 1800, 3600, 21600},
	}, []string{"service"})

	tasksRefusedTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "usher", Name: "tasks_refused_total",
		Help: "Requests that should have been stored and were answered 503, by reason.",
	}, []string{"service", "reason"})

	splitRequestsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "usher", Name: "split_requests_total",
		Help: "Requests of a split, by the side that they went to.",
	}, []string{"split", "service"})

	gauges = newGaugeCollector()
)

// RegisterMetrics adds the metrics to a configuration's registry.
func RegisterMetrics(reg *prometheus.Registry) error {
	for _, c := range []prometheus.Collector{
		waitSeconds, coldStartSeconds, reservationsTotal, decisionsTotal, startFailuresTotal, sessionsTotal, handoverSeconds,
		taskAttemptsTotal, taskWaitSeconds, taskDurationSeconds, tasksRefusedTotal, splitRequestsTotal, gauges,
	} {
		if err := reg.Register(c); err != nil {
			if _, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); !ok {
				return err
			}
		}
	}
	return nil
}

// OutcomeGranted is the outcome of a request that got a slot.
const OutcomeGranted = "granted"

// serviceMetrics are the series of one service. A service that no request has
// asked for has none; the most frequent ones are looked up once.
type serviceMetrics struct {
	gone    atomic.Bool // nothing is counted any more: it would come back
	granted atomic.Pointer[outcomeSeries]
}

// outcomeSeries are the series of one outcome of one service.
type outcomeSeries struct {
	total prometheus.Counter
	wait  prometheus.Observer
}

func newOutcomeSeries(service, code string) *outcomeSeries {
	return &outcomeSeries{total: reservationsTotal.WithLabelValues(service, code), wait: waitSeconds.WithLabelValues(service, code)}
}

// Outcome counts what became of a request that asked for a slot.
func (s *Service) Outcome(code string, waited time.Duration) {
	m := &s.metrics
	if m.gone.Load() {
		return
	}
	var series *outcomeSeries
	switch {
	case code != OutcomeGranted:
		series = newOutcomeSeries(s.Name, code)
	case m.granted.Load() == nil:
		// Two at the same time make the same.
		series = newOutcomeSeries(s.Name, code)
		m.granted.Store(series)
	default:
		series = m.granted.Load()
	}
	if waited > 0 && code == OutcomeGranted {
		s.Loop.Waited(waited)
	}
	series.total.Inc()
	series.wait.Observe(waited.Seconds())
}

// count counts what happened to a service.
func (m *serviceMetrics) count(e Entry) {
	if m.gone.Load() {
		return
	}
	switch event := e.Event.(type) {
	case control.Decision:
		direction := "up"
		if event.To < event.From {
			direction = "down"
		}
		decisionsTotal.WithLabelValues(e.Service, direction).Inc()
	case control.StartFailure:
		startFailuresTotal.WithLabelValues(e.Service, string(event.Reason)).Inc()
	case control.ColdStart:
		coldStartSeconds.WithLabelValues(e.Service).Observe(event.Ready.Seconds())
	}
}

// forget removes all series of the service.
func (m *serviceMetrics) forget(name string) {
	m.gone.Store(true)
	match := prometheus.Labels{"service": name}
	waitSeconds.DeletePartialMatch(match)
	coldStartSeconds.DeletePartialMatch(match)
	reservationsTotal.DeletePartialMatch(match)
	decisionsTotal.DeletePartialMatch(match)
	startFailuresTotal.DeletePartialMatch(match)
	sessionsTotal.DeletePartialMatch(match)
	handoverSeconds.DeletePartialMatch(match)
	taskAttemptsTotal.DeletePartialMatch(match)
	taskWaitSeconds.DeletePartialMatch(match)
	taskDurationSeconds.DeletePartialMatch(match)
	tasksRefusedTotal.DeletePartialMatch(match)
}

// gaugeCollector reads the gauges from the services when they are asked for.
type gaugeCollector struct {
	clusterMembers, clusterView, clusterIsolated, shares, tasks, tasksOldest, taskStoreUp, splitWeight *prometheus.Desc

	waiting, waitingBound, sessionKeys, visitors, maxWaiting, slots, instances, target, predicted, idleSeconds, avoidable, platformUp, state *prometheus.Desc
}

func newGaugeCollector() *gaugeCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName("caddy", "usher", name), help, append([]string{"service"}, labels...), nil)
	}
	return &gaugeCollector{
		clusterMembers:  prometheus.NewDesc("caddy_usher_cluster_members", "Caddys of the cluster, by state.", []string{"state"}, nil),
		clusterView:     prometheus.NewDesc("caddy_usher_cluster_view", "The number of the view that this Caddy follows.", nil, nil),
		clusterIsolated: prometheus.NewDesc("caddy_usher_cluster_isolated", "1 while this Caddy has no lease: it is cut off from its cluster.", nil, nil),
		shares:          desc("shares", "Slots that this Caddy holds, and, of the one that leads, those that lost Caddys may hold.", "state"),
		tasks:           desc("tasks", "Stored requests, by state.", "state"),
		tasksOldest:     desc("tasks_oldest_seconds", "For how long the oldest stored request that could begin has waited since it was accepted."),
		taskStoreUp:     prometheus.NewDesc("caddy_usher_task_store_up", "Whether the store of tasks can be read.", nil, nil),
		splitWeight:     prometheus.NewDesc("caddy_usher_split_weight", "The weight in force of a side of a split.", []string{"split", "service"}, nil),
		waiting:         desc("waiting", "Requests in the queue."),
		waitingBound:    desc("waiting_bound", "Requests in the queue that wait for the instance of their session alone."),
		sessionKeys:     desc("session_keys", "Keys of sessions that are remembered."),
		visitors:        desc("visitors", "Those who wait in their browser, with the waiting page."),
		maxWaiting:      desc("max_waiting", "The limit of the queue."),
		slots:           desc("slots", "Slots of the instances that take requests; those of instances without a limit are not counted.", "state"),
		instances:       desc("instances", "Instances, by state.", "state"),
		target:          desc("target", "How many instances are wanted."),
		predicted:       desc("predicted", "How many instances are there because of what the policy expects."),
		idleSeconds:     desc("idle_seconds_total", "Time that ready instances had no request inside, summed up."),
		avoidable:       desc("avoidable_cold_starts_total", "Cold starts that the last instance would have spared, had it stayed for idle_timeout."),
		platformUp:      desc("platform_up", "Whether the platform can be asked."),
		state:           desc("state", "1 for the state that the service is in; there is no series for the others.", "state"),
	}
}

// Describe implements prometheus.Collector.
func (g *gaugeCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{g.clusterMembers, g.clusterView, g.clusterIsolated, g.shares, g.tasks, g.tasksOldest, g.taskStoreUp, g.splitWeight, g.waiting, g.waitingBound, g.sessionKeys, g.visitors, g.maxWaiting, g.slots, g.instances, g.target, g.predicted, g.idleSeconds, g.avoidable, g.platformUp, g.state} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g *gaugeCollector) Collect(ch chan<- prometheus.Metric) {
	h := Latest.Load()
	if h == nil {
		return
	}
	g.collectCluster(h, ch)
	g.collectTasks(h, ch)
	g.collectSplits(h, ch)
	for _, s := range h.All() {
		gauge := func(d *prometheus.Desc, v int, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), append([]string{s.Name}, labels...)...)
		}
		stats, status := s.Reserver.Stats(), s.Loop.Status()
		gauge(g.waiting, stats.Waiting)
		if sessions := s.Sessions.Load(); sessions != nil {
			gauge(g.waitingBound, stats.Bound)
			if sessions.Remembers() {
				gauge(g.sessionKeys, stats.Sessions)
			}
		}
		visitors, _ := s.visitorsAndTasks(stats)
		gauge(g.visitors, visitors)
		gauge(g.maxWaiting, s.Live.Load().maxWaiting)
		gauge(g.state, 1, string(status.State))
		gauge(g.slots, stats.InUse, "in_use")
		if !stats.Unlimited {
			gauge(g.slots, stats.Slots, "total")
		}
		gauge(g.instances, status.Starting, "starting")
		gauge(g.instances, status.Ready, "ready")
		gauge(g.instances, status.Ejected, "ejected")
		gauge(g.instances, status.Draining, "draining")
		gauge(g.target, status.Target)
		gauge(g.predicted, status.Outlook.Predicted)
		counter := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, s.Name)
		}
		counter(g.idleSeconds, status.IdleTime.Seconds())
		counter(g.avoidable, float64(status.Avoidable))
		up := 1
		if status.Trouble != nil && status.Trouble.Reason == scaler.ReasonPlatform {
			up = 0
		}
		gauge(g.platformUp, up)
	}
}

// Why a request that should have been stored was not, and the client may try again.
const (
	RefusedFull  = "full"  // the service has max_tasks
	RefusedStore = "store" // the store does not work
)

// TaskRefused counts a request that could not be stored for that reason.
func (s *Service) TaskRefused(reason string) {
	if !s.metrics.gone.Load() {
		tasksRefusedTotal.WithLabelValues(s.Name, reason).Inc()
	}
}

// countAttempt counts an attempt of a stored request.
func countAttempt(r async.Report) {
	taskAttemptsTotal.WithLabelValues(r.Task.Queue, r.Task.State.String()).Inc()
	taskWaitSeconds.WithLabelValues(r.Task.Queue).Observe(r.Wait.Seconds())
	taskDurationSeconds.WithLabelValues(r.Task.Queue).Observe(r.Duration.Seconds())
}

// collectTasks reads how many requests are stored. The store may be remote, so it has
// a moment only.
func (g *gaugeCollector) collectTasks(h *Hub, ch chan<- prometheus.Metric) {
	t := h.Tasks()
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	queues, err := t.Store.Queues(ctx)
	up := 1.0
	if err != nil {
		t.trouble(err)
		up = 0
	}
	ch <- prometheus.MustNewConstMetric(g.taskStoreUp, prometheus.GaugeValue, up)
	for name, q := range queues {
		for _, state := range async.States {
			ch <- prometheus.MustNewConstMetric(g.tasks, prometheus.GaugeValue, float64(q.States[state]), name, state.String())
		}
		ch <- prometheus.MustNewConstMetric(g.tasksOldest, prometheus.GaugeValue, q.Oldest.Seconds(), name)
	}
}

// collectCluster reads what there is of a cluster, if this Caddy is in one.
func (g *gaugeCollector) collectCluster(h *Hub, ch chan<- prometheus.Metric) {
	st := h.ClusterStatus()
	if st == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	members, lost := 0, 0
	for _, m := range st.Members {
		if m.Lost {
			lost++
		} else {
			members++
		}
	}
	gauge(g.clusterMembers, members, "member")
	gauge(g.clusterMembers, lost, "lost")
	gauge(g.clusterView, int(min(st.View, math.MaxInt32)))
	isolated := 0
	if st.Isolated {
		isolated = 1
	}
	gauge(g.clusterIsolated, isolated)
	for _, s := range st.Services {
		gauge(g.shares, s.Held, s.Service, "held")
		gauge(g.shares, s.Lost, s.Service, "lost")
	}
}

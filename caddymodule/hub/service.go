package hub

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
	"github.com/caddy-usher/usher/scaler/policies"
)

// Service is one service, as long as the hub knows it. Handlers hold a
// pointer to it from their provisioning on.
type Service struct {
	Name      string
	Hub       *Hub
	Reserver  *reserver.Service
	Loop      *control.Loop
	metrics   serviceMetrics
	ColdTrace ColdTrace
	Visitors  Visitors
	Changes   signal // of what a visitor can see

	tasksWaiting atomic.Int32 // tasks that wait for a slot, as visitors of the reserver

	// What the next change of state is said to come from. The loop calls one
	// method of its observer at a time.
	lastFailure *scaler.Failure
	coldStart   time.Duration

	// shared is this Caddy's part in the cluster that shares the instances; nil
	// without one. It is set before the service is active.
	shared *membership

	// live are the options that requests look at.
	Live atomic.Pointer[LiveOptions]

	// Sessions finds the sessions of requests; nil without affinity.
	Sessions atomic.Pointer[Sessions]

	// remembers says whether the memory of the policy is stored.
	remembers atomic.Bool

	// trouble is what keeps requests from being sent; nil without any.
	Trouble atomic.Pointer[Trouble]

	// astray is when it was logged last that a connection led elsewhere.
	Astray atomic.Int64

	// logger is nil until there is something to log.
	logger atomic.Pointer[zap.Logger]

	// output is nil until an instance has written something, or a follower
	// waits for that.
	output atomic.Pointer[Output]

	// history is nil until something happens.
	history atomic.Pointer[history]

	// Guarded by the hub's lock.
	users      int32 // generations, active or not, that name it
	active     bool  // some generation that defines it was in force
	retired    bool
	definition *Definition // the one in force
	suspension *Suspension
	operated   bool // an operator has suspended or resumed it since it was made
}

// Trouble is what keeps requests from being sent to the instances of a service.
type Trouble struct {
	Source  any // what has met it
	Advice  string
	Message string
	Logged  time.Time
}

// LiveOptions do not change: services with equal options share them.
type LiveOptions struct {
	DetailFull bool
	max        int
	maxWaiting int
}

// What holds until a definition is in force.
var (
	undefined         = &LiveOptions{max: 1, maxWaiting: defaultMaxWaiting}
	undefinedSettings = &control.Settings{Max: 1, Policy: policies.Default}
)

func newService(h *Hub, name string) *Service {
	s := &Service{Name: name, Hub: h}
	s.Live.Store(undefined)
	s.Visitors.service = s
	s.Loop = control.NewLoop(scaler.Env{
		Service: name, Logger: s.slog, Host: h.host, Output: func(l scaler.OutputLine) { s.Outputs().Add(l) },
	}, undefinedSettings, h.budget, &h.timers, (*observer)(s))
	s.Reserver = reserver.New(reserver.Options{MaxWaiting: defaultMaxWaiting}, h.waiting, s.Loop.Hooks())
	s.Loop.Attach(s.Reserver)
	return s
}

// Log returns the logger of the service.
func (s *Service) Log() *zap.Logger {
	if l := s.logger.Load(); l != nil {
		return l
	}
	// Two at once make two: they write the same.
	l := s.Hub.logs.forService(s.Name)
	s.logger.Store(l)
	return l
}

// slog returns the logger of the service for the control loop and backends.
func (s *Service) slog() *slog.Logger { return slogTo(s.Log()) }

// apply makes d the definition in force. If anyway is true, this includes a
// backend that cannot be opened now: the service is failing then. The hub's lock
// is held.
func (s *Service) apply(d *Definition, anyway bool) error {
	if err := s.applySharing(d); err != nil {
		return err
	}
	s.Reserver.SetOptions(d.Service.reserving())
	s.Loop.Apply(s.Hub.settings(d))
	set := s.Loop.SetBackend
	if anyway {
		set = s.Loop.SetBackendAnyway
	}
	if err := set(d.Backend); err != nil {
		return err
	}
	s.Live.Store(&d.live)
	s.Sessions.Store(newSessions(s.Name, d.Service.Affinity, s.Hub.seal.Load()))
	_, remembers := d.policy.(scaler.Rememberer)
	s.remembers.Store(remembers)
	s.definition = d
	s.active = true
	return nil
}

// applySharing makes the service one that is shared with other Caddys, if this
// Caddy is in a cluster and the definition allows it.
func (s *Service) applySharing(d *Definition) error {
	m := s.Hub.member.Load()
	switch {
	case m == nil || d.shared() == (s.shared != nil):
		return nil
	case s.definition != nil || s.shared != nil:
		return fmt.Errorf("its backend changes from one that Caddys share to one that they do not, or back: give the service another name, or restart Caddy")
	}
	s.shared = m
	m.share(s)
	return nil
}

// Forecast says when a request that came now, and asked for that, could have a
// slot: when an instance is ready, and all requests before it in the queue were
// served. Those leave the queue after held at the latest, so it takes no longer.
func (s *Service) Forecast(ask reserver.Ask, held time.Duration) time.Duration {
	wait := s.Loop.ReadyIn()
	stats := s.Reserver.Stats()
	waiting, slots, unlimited, elsewhere := stats.Waiting, stats.Slots, stats.Unlimited, 0
	if s.shared != nil {
		// Those that wait at other Caddys were there before it.
		w := s.shared.whole(s.Name)
		elsewhere, slots, unlimited = w.others.Waiting, w.slots, w.unlimited
		waiting += elsewhere
	}
	if waiting == 0 || unlimited {
		return wait
	}
	ahead, bound := s.Reserver.Ahead(ask)
	if !bound {
		ahead += elsewhere
	}
	switch {
	case bound:
		// Those of one instance. It takes requests, so no start helps.
		wait, slots = 0, max(1, slots/max(1, stats.Open))
	case slots == 0:
		slots = max(1, s.Live.Load().max)
	}
	// As numbers with a fraction: a product of the two can be too large.
	queue := float64(s.Loop.ServiceTime()) * float64(ahead/slots)
	return wait + time.Duration(min(queue, float64(held)))
}

// HoldsNone says whether no request waits for a slot, here or anywhere.
func (s *Service) HoldsNone() bool {
	return s.Live.Load().maxWaiting == 0 || s.Hub.waiting.Max() == 0
}

package caddymodule

import (
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// service is one service, as long as the hub knows it. Handlers hold a
// pointer to it from their provisioning on.
type service struct {
	name      string
	hub       *hub
	reserver  *reserver.Service
	loop      *scaler.Loop
	metrics   serviceMetrics
	coldTrace coldTrace
	visitors  visitors
	changes   signal // of what a visitor can see

	// What the next change of state is said to come from. The loop calls one
	// method of its observer at a time.
	lastFailure *scaler.Failure
	coldStart   time.Duration

	// live are the options that requests look at.
	live atomic.Pointer[liveOptions]

	// serving is the moving average of the time that requests which had to
	// wait spent on their instance, in nanoseconds; 0 if none was measured.
	serving atomic.Int64

	// logger is nil until there is something to log.
	logger atomic.Pointer[zap.Logger]

	// chronicle is nil until something happens.
	chronicle atomic.Pointer[chronicle]

	// Guarded by the hub's lock.
	users      int32 // generations, active or not, that name it
	active     bool  // some generation that defines it was in force
	retired    bool
	definition *definition // the one in force
	suspension *suspension
}

// liveOptions do not change: services with equal options share them.
type liveOptions struct {
	detailFull bool
	max        int
	maxWaiting int
}

// What holds until a definition is in force.
var (
	undefined         = &liveOptions{max: 1, maxWaiting: defaultMaxWaiting}
	undefinedSettings = &scaler.Settings{Max: 1, Policy: scaler.Queue{}}
)

func newService(h *hub, name string) *service {
	s := &service{name: name, hub: h}
	s.live.Store(undefined)
	s.visitors.service = s
	s.loop = scaler.NewLoop(scaler.Env{
		Service: name, Logger: s.log, Host: h.host,
	}, undefinedSettings, h.budget, (*observer)(s))
	s.reserver = reserver.New(reserver.Options{MaxWaiting: defaultMaxWaiting}, h.waiting, s.loop.Hooks())
	s.loop.Attach(s.reserver)
	return s
}

// log returns the logger of the service.
func (s *service) log() *zap.Logger {
	if l := s.logger.Load(); l != nil {
		return l
	}
	// Two at once make two: they write the same.
	l := s.hub.logs.forService(s.name)
	s.logger.Store(l)
	return l
}

// apply makes d the definition in force. The hub's lock is held.
func (s *service) apply(d *definition) error {
	s.reserver.SetOptions(d.service.reserving())
	s.loop.Apply(&d.settings)
	if err := s.loop.Adopt(d.backend); err != nil {
		return err
	}
	s.live.Store(&d.live)
	s.definition = d
	s.active = true
	return nil
}

// served takes note of how long a request that had to wait was served.
func (s *service) served(d time.Duration) {
	// A lost update is one sample less.
	if old := s.serving.Load(); old == 0 {
		s.serving.CompareAndSwap(0, int64(d))
	} else {
		s.serving.CompareAndSwap(old, old+(int64(d)-old)/8)
	}
}

// forecast says when a request that came now could have a slot: when an
// instance is ready, and everybody in the line before it was served.
func (s *service) forecast() time.Duration {
	wait := s.loop.ReadyIn()
	stats := s.reserver.Stats()
	if stats.Waiting == 0 || stats.Unlimited {
		return wait
	}
	slots := stats.Slots
	if slots == 0 {
		slots = max(1, s.live.Load().max)
	}
	return wait + time.Duration(s.serving.Load())*time.Duration(stats.Waiting/slots)
}

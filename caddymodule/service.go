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
	name     string
	hub      *hub
	reserver *reserver.Service
	loop     *scaler.Loop
	metrics  *serviceMetrics
	visitors *visitors
	changes  signal // of what a visitor can see
	log      *zap.Logger

	// live are the options that requests look at.
	live atomic.Pointer[liveOptions]

	// serving is the moving average of the time that requests which had to
	// wait spent on their instance, in nanoseconds; 0 if none was measured.
	serving atomic.Int64

	// Guarded by the hub's lock.
	users      int  // generations, active or not, that name it
	active     bool // some generation that defines it was in force
	retired    bool
	definition *definition // the one in force
	opened     string      // fingerprint of the current revision
	suspension *suspension
}

type liveOptions struct {
	detailFull bool
	max        int
	maxWaiting int
}

func newService(h *hub, name string) *service {
	s := &service{name: name, hub: h, metrics: newServiceMetrics(name), log: h.logs.logger.With(zap.String("service", name))}
	s.live.Store(&liveOptions{max: 1, maxWaiting: defaultMaxWaiting})
	s.visitors = newVisitors(s, &h.visitors)
	s.loop = scaler.NewLoop(scaler.Env{
		Service: name, Logger: s.log, DataDir: dataDir(),
		Local: func() scaler.LocalOptions { return *h.local.Load() },
	}, scaler.Settings{Max: 1, Policy: scaler.Queue{}}, h.budget, &observer{service: s})
	s.reserver = reserver.New(reserver.Options{MaxWaiting: defaultMaxWaiting}, h.waiting, s.loop.Hooks())
	s.loop.Attach(s.reserver)
	return s
}

// apply makes d the definition in force. The hub's lock is held.
func (s *service) apply(d *definition) error {
	s.reserver.SetOptions(d.service.options())
	s.loop.Apply(d.service.settings(d.policy))
	if f := d.fingerprint(); f != s.opened {
		if err := s.loop.Adopt(d.backend); err != nil {
			return err
		}
		s.opened = f
	}
	s.live.Store(&liveOptions{
		detailFull: d.service.ErrorDetail == detailFull, max: d.service.Instances.Max, maxWaiting: *d.service.MaxWaiting,
	})
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

package caddymodule

import (
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// observer turns what happens to a service into metrics and events.
type observer service

// Decided implements scaler.Observer.
func (o *observer) Decided(d scaler.Decision) {
	direction := "up"
	if d.To < d.From {
		direction = "down"
	}
	if !o.metrics.gone.Load() {
		decisionsTotal.WithLabelValues(o.name, direction).Inc()
	}
	o.hub.events.publish("target", map[string]any{
		"service": o.name, "from": d.From, "to": d.To, "reason": d.Reason, "time": d.Time,
	})
}

// StateChanged implements scaler.Observer.
func (o *observer) StateChanged(from, to scaler.State) {
	o.hub.events.publish("state", map[string]any{
		"service": o.name, "from": from, "to": to, "time": time.Now(),
	})
}

// InstanceChanged implements scaler.Observer.
func (o *observer) InstanceChanged(i scaler.InstanceStatus) {
	o.hub.events.publish("instance", map[string]any{
		"service": o.name, "id": i.ID, "address": i.Address, "state": i.State, "revision": i.Revision, "time": time.Now(),
	})
}

// StartFailed implements scaler.Observer.
func (o *observer) StartFailed(f *scaler.Failure) {
	if !o.metrics.gone.Load() {
		startFailuresTotal.WithLabelValues(o.name, string(f.Reason)).Inc()
	}
}

// ColdStarted implements scaler.Observer.
func (o *observer) ColdStarted(d time.Duration) {
	coldStartSeconds.WithLabelValues(o.name).Observe(d.Seconds())
}

// PlatformUp implements scaler.Observer. The gauge is read from the status.
func (*observer) PlatformUp(bool, *scaler.Failure) {}

var _ scaler.Observer = (*observer)(nil)

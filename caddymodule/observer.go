package caddymodule

import (
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// observer turns what happens to a service into metrics and events.
type observer struct{ service *service }

// Decided implements scaler.Observer.
func (o *observer) Decided(d scaler.Decision) {
	direction := "up"
	if d.To < d.From {
		direction = "down"
	}
	if !o.service.metrics.gone.Load() {
		decisionsTotal.WithLabelValues(o.service.name, direction).Inc()
	}
	o.service.hub.events.publish("target", map[string]any{
		"service": o.service.name, "from": d.From, "to": d.To, "reason": d.Reason, "time": d.Time,
	})
}

// StateChanged implements scaler.Observer.
func (o *observer) StateChanged(from, to scaler.State) {
	o.service.hub.events.publish("state", map[string]any{
		"service": o.service.name, "from": from, "to": to, "time": time.Now(),
	})
	o.service.changes.tell()
}

// InstanceChanged implements scaler.Observer.
func (o *observer) InstanceChanged(i scaler.InstanceStatus) {
	o.service.hub.events.publish("instance", map[string]any{
		"service": o.service.name, "id": i.ID, "address": i.Address, "state": i.State, "revision": i.Revision, "time": time.Now(),
	})
}

// StartFailed implements scaler.Observer.
func (o *observer) StartFailed(f *scaler.Failure) {
	if !o.service.metrics.gone.Load() {
		startFailuresTotal.WithLabelValues(o.service.name, string(f.Reason)).Inc()
	}
}

// ColdStarted implements scaler.Observer.
func (o *observer) ColdStarted(d time.Duration) {
	coldStartSeconds.WithLabelValues(o.service.name).Observe(d.Seconds())
}

// PlatformUp implements scaler.Observer. The gauge is read from the status.
func (*observer) PlatformUp(bool, *scaler.Failure) {}

var _ scaler.Observer = (*observer)(nil)

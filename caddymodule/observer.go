package caddymodule

import (
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// observer turns what happens to a service into metrics, events and history.
type observer service

func (o *observer) self() *service { return (*service)(o) }

// Decided implements scaler.Observer.
func (o *observer) Decided(d scaler.Decision) {
	direction := "up"
	if d.To < d.From {
		direction = "down"
	}
	if !o.metrics.gone.Load() {
		decisionsTotal.WithLabelValues(o.name, direction).Inc()
	}
	o.self().chronicled().target(d.Time, d.To)
	o.hub.news.add(newsItem{
		Time: d.Time, Service: o.name, Kind: newsTarget, From: d.From, To: d.To, Reason: d.Reason,
	})
	o.hub.events.publish("target", map[string]any{
		"service": o.name, "from": d.From, "to": d.To, "reason": d.Reason, "time": d.Time,
	})
	o.hub.emitter.emit(eventScaled, func() map[string]any {
		return map[string]any{"service": o.name, "from": d.From, "to": d.To, "reason": scaler.Readable(d.Reason)}
	})
}

// StateChanged implements scaler.Observer.
func (o *observer) StateChanged(from, to scaler.State) {
	o.hub.events.publish("state", map[string]any{
		"service": o.name, "from": from, "to": to, "time": time.Now(),
	})
	o.changes.tell()
	if to != scaler.Waking {
		o.coldTrace.over(to)
	}
	o.emitState(from, to)
}

// emitState emits a change of state as an event of Caddy's.
func (o *observer) emitState(from, to scaler.State) {
	emit := func(name string, more ...any) {
		o.hub.emitter.emit(name, func() map[string]any {
			data := map[string]any{"service": o.name, "from": string(from)}
			for k := 0; k < len(more); k += 2 {
				data[more[k].(string)] = more[k+1]
			}
			return data
		})
	}
	switch to {
	case scaler.Waking:
		emit(eventWaking)
	case scaler.Awake:
		if o.coldStart > 0 {
			emit(eventReady, "cold_start_ms", o.coldStart.Milliseconds())
		} else {
			emit(eventReady)
		}
		o.coldStart = 0
	case scaler.Asleep:
		emit(eventAsleep)
	case scaler.Failing:
		if f := o.lastFailure; f != nil {
			emit(eventFailing, "reason", string(f.Reason), "error", scaler.Readable(f.Short))
		} else {
			emit(eventFailing)
		}
	}
}

// InstanceChanged implements scaler.Observer.
func (o *observer) InstanceChanged(i scaler.InstanceStatus) {
	o.hub.events.publish("instance", map[string]any{
		"service": o.name, "id": i.ID, "address": i.Address, "state": i.State, "revision": i.Revision, "time": time.Now(),
	})
}

// StartFailed implements scaler.Observer.
func (o *observer) StartFailed(f *scaler.Failure) {
	now := time.Now()
	o.coldTrace.failed(f)
	o.lastFailure = f
	o.self().chronicled().failed(now, f)
	o.hub.news.add(newsItem{Time: now, Service: o.name, Kind: newsFailure, Reason: cut(f.Error())})
	if !o.metrics.gone.Load() {
		startFailuresTotal.WithLabelValues(o.name, string(f.Reason)).Inc()
	}
}

// ColdStarted implements scaler.Observer.
func (o *observer) ColdStarted(c scaler.ColdStart) {
	now := time.Now()
	o.coldTrace.finished(c)
	o.coldStart = c.Ready
	o.self().chronicled().coldStarted(now, c.Ready)
	o.hub.news.add(newsItem{Time: now, Service: o.name, Kind: newsColdStart, MS: c.Ready.Milliseconds()})
	if !o.metrics.gone.Load() {
		coldStartSeconds.WithLabelValues(o.name).Observe(c.Ready.Seconds())
	}
}

// PlatformUp implements scaler.Observer. The gauge is read from the status.
func (*observer) PlatformUp(bool, *scaler.Failure) {}

var _ scaler.Observer = (*observer)(nil)

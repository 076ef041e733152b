package marathonsim

import "time"

// A launchDelay is the back-off of one configuration of an app. It is kept by
// the time of the last change of configuration: scaling, also to nothing and
// back, does not touch it. Marathon keeps it in memory only.
type launchDelay struct {
	lastConfig time.Time
	delay      time.Duration
	deadline   time.Time
	reference  time.Time
}

func (e *engine) delayOf(d *definition) *launchDelay {
	l := e.run(d.id).delay
	if l == nil || !l.lastConfig.Equal(d.lastConfig) {
		return nil
	}
	return l
}

// addDelay is what a failure costs: the next delay is longer by the factor.
func (e *engine) addDelay(d *definition) {
	l := e.delayOf(d)
	if l == nil {
		l = &launchDelay{lastConfig: d.lastConfig, delay: min(d.backoff, d.maxLaunchDelay)}
		e.run(d.id).delay = l
	} else {
		l.delay = min(time.Duration(float64(l.delay)*d.backoffFactor), d.maxLaunchDelay)
	}
	l.reference = e.now()
	l.deadline = l.reference.Add(l.delay)
	e.log("backoff", d.id, "", "%s", l.delay)
}

// launched moves the delay on: it counts from the latest launch.
func (e *engine) launched(app string) {
	if l := e.run(app).delay; l != nil {
		l.reference = e.now()
		l.deadline = l.reference.Add(l.delay)
	}
}

func (e *engine) deadline(d *definition) time.Time {
	if l := e.delayOf(d); l != nil {
		return l.deadline
	}
	return time.Time{}
}

// forgetOldDelays drops delays of apps that have run for long enough.
func (e *engine) forgetOldDelays() {
	for _, r := range e.runs {
		d := e.root[r.id]
		if r.delay != nil && (d == nil || e.now().After(r.delay.reference.Add(d.maxLaunchDelay))) {
			r.delay = nil
		}
	}
}

func (e *engine) resetDelay(app string) {
	if r := e.runs[app]; r != nil {
		r.delay = nil
	}
}

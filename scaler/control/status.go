package control

import (
	"cmp"
	"slices"
	"time"
)

// Status describes the service now.
func (l *Loop) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.account(); a != nil {
		return l.followedStatus(a)
	}
	past := l.recalled()
	st := Status{
		State: l.stateNow(), Target: l.target,
		ColdStart: past.coldLast, ColdStarts: past.coldCount,
		Start:  l.startStatus(time.Now()),
		KeptBy: l.keepersNames(),
	}
	if l.lastFailure != nil {
		st.LastError = l.lastFailure.Failure
	}
	st.Avoidable, st.IdleTime, st.Outlook = past.avoidable, past.idleTime, past.outlook
	if past.idle > 0 {
		st.IdleTime += time.Duration(past.idle) * max(0, time.Since(past.idleTo))
	}
	for _, r := range l.revisions {
		for _, i := range r.instances {
			switch i.state() {
			case InstanceStarting:
				st.Starting++
			case InstanceReady:
				st.Ready++
			case InstanceEjected:
				st.Ejected++
			default:
				st.Draining++
			}
		}
	}
	if r := l.current(); r != nil {
		st.Trouble = r.trouble
		st.Needed = instancesFor(l.stats().Demand, l.slotsEach())
	}
	for _, r := range l.revisions {
		if st.LastError == nil {
			st.LastError = r.refusal
		}
	}
	if st.LastError == nil {
		st.LastError = st.Trouble
	}
	if r := l.current(); r != nil && r.hold != nil && st.LastError == nil {
		st.LastError = r.hold.Failure
	}
	return st
}

// Replacing says whether an instance of an earlier revision still takes requests:
// those of the current one are not ready yet.
func (l *Loop) Replacing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.served()
}

// Instances describes the instances of the service, oldest first.
func (l *Loop) Instances() []InstanceStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	var instances []*instance
	for _, r := range l.revisions {
		for _, i := range r.instances {
			instances = append(instances, i)
		}
	}
	slices.SortFunc(instances, func(a, b *instance) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID))
	})
	all := make([]InstanceStatus, 0, len(instances))
	for _, i := range instances {
		all = append(all, i.status())
	}
	return all
}

// Decisions returns the latest decisions, oldest first.
func (l *Loop) Decisions() []Decision {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := append([]Decision{}, l.recalled().decisions...)
	for k, d := range all {
		if d.ColdStart != nil {
			c := *d.ColdStart
			all[k].ColdStart = &c
		}
	}
	return all
}

// ColdStart returns when the cold start in progress began, and how long one
// usually takes. Each is zero if there is none, or none was measured yet.
func (l *Loop) ColdStart() (since time.Time, usual time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.account(); a != nil {
		return a.ColdSince, a.StartUsual
	}
	if l.starting() {
		since = l.cold.Asked
	}
	return since, l.recalled().startMean
}

// ReadyIn forecasts when an instance is ready: 0 if one is, else what is left
// of the usual time of a start (1 s if none was measured yet), and not before
// the next start may be made.
func (l *Loop) ReadyIn() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reserver.Stats().Open > 0 {
		return 0
	}
	now, usual, next, since := time.Now(), l.recalled().startMean, l.backoffUntil, time.Time{}
	if l.starting() {
		since = l.cold.Asked
	}
	if a := l.account(); a != nil {
		usual, next, since = a.StartUsual, a.Status.Start.Next, a.ColdSince
	}
	if usual == 0 {
		usual = time.Second
	}
	if d := next.Sub(now); d > 0 {
		return d + usual
	}
	if since.IsZero() {
		return usual
	}
	return min(usual, max(0, usual-now.Sub(since)))
}

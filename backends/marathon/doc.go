// Package marathon runs the instances of a service as tasks of an app of a
// Marathon cluster. Usher does not own the app: it changes the app's
// number of instances and nothing else.
//
// It owns the modules usher.backends.marathon and usher.discovery.marathon, which
// makes services of apps with a label; one set of connections per cluster
// (an API client for each member, the event stream, failover between the
// members), shared by all services on it; and one watch per app, which turns what
// Marathon says into reports.
//
// It promises: every report is a full read of the app, and events only say
// when to read, so lost, late, doubled and reordered events change nothing in
// the end; an address belongs to one task id and is used only after a read
// that began later than the probe has confirmed the task; the victims of a
// scale-down are named; a number is raised or lowered only on the ground of a
// read that was made for it; credentials go to configured members and nowhere
// else; an outage is reported as one, and never as an empty list.
//
// It never uses force, and never cancels a deployment that Usher did not make.
// It never lowers the number to anything but zero while something of the app
// is queued, because Marathon would stop a running task before a queued one.
// It never takes the end of a deployment for readiness. It never stops tasks
// because Caddy ends, and never makes, changes or deletes an app.
package marathon

// Package control keeps the number of a service's instances in step with
// demand.
//
// It owns the control loop of a service (Loop): its revisions and instances,
// the probing of instances until they are ready, the orders to the platform,
// the budget for starts in progress over all services, and the back-off after
// failed starts.
//
// It promises: an instance gets slots only after its readiness check has
// passed; an instance that is stopped was cordoned first and then was idle, or
// had its drain_timeout; if a start cannot succeed, all requests that wait for
// it get the reason; a sleeping service has no goroutine and no timer.
//
// The loop tells an Observer what happens to a service, once and in order. It
// does not log decisions, changes of the state and failed starts; a program that
// uses this package without Caddy logs them in its Observer.
//
// It never handles a request, never knows a platform or Caddy, and never makes
// a request wait for a platform.
package control

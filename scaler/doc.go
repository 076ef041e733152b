// Package scaler decides how many instances of a service there should be,
// and sees to it that there are.
//
// It owns the interface that every backend implements (Backend, Scaler), the
// control loop of a service (Loop), the policies that turn demand into a
// number (pure functions), the probing of instances until they are ready,
// the budget for starts in progress over all services, and the back-off
// after failed starts.
//
// It promises: orders to a platform are absolute and idempotent; an instance
// gets slots only after its readiness check has passed; an instance that is
// stopped was cordoned first and then was idle, or had its drain_timeout; a
// start that cannot succeed is told to everybody who waits for it, with its
// reason; a service that sleeps has no goroutine and no timer.
//
// It never handles a request, never knows a platform or Caddy, and never
// makes anyone on the way of a request wait for a platform.
package scaler

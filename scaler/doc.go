// Package scaler is the contract between Usher and what runs the instances of
// a service.
//
// It owns the interfaces that every backend implements (Backend, Scaler) and
// what passes between a backend and the control loop (Order, Report, Instance,
// Failure), the interface of policies with their inputs, and the bounds of the
// numbers that a configuration may give.
//
// It promises: orders to a platform are absolute and idempotent, reports are
// level-triggered, and a failure carries a short text that clients may see
// and a detail that only operators see.
//
// It never runs anything: it has no goroutine, no clock, no logger of its own,
// and knows neither Caddy nor a platform. The control loop is in
// scaler/control, the policies are in scaler/policies, and the tests that
// every backend has to pass are in scaler/backendtest.
package scaler

// Package registryapi is the HTTP form of changing services that are made while
// Caddy runs.
//
// It owns the calls, their conditions and their answers, so that the admin API and
// the handler `usher_registry` speak the same.
//
// It promises: a call changes one service, or nothing; what it changed was stored
// before it is answered; who may change what is decided by the Caller, which is
// never taken from the body of a call.
//
// It never authenticates a client, and never keeps anything.
package registryapi

// Package hub is what outlives a configuration of Caddy.
//
// It owns the services by name with their queues, visitors, reservations and
// running backends, the generations of configurations and which is in force,
// suspensions, the sessions of requests with the key of their cookies, and what
// is told of services: metrics, events, history, output.
// It also has the configuration of a service and its provisioned form.
//
// It promises: loading a configuration is reconciling, so what is equal keeps
// running; a configuration that fails to load changes nothing; the newest
// configuration in force decides; what runs is stopped in one place.
//
// It never handles a request and never answers one. The admin API, the
// commands, the live view and the request path know it; it knows none of them.
package hub

// Package registry owns the services that are made while the program runs: by its
// API, and by discovery on platforms.
//
// It owns what a definition is, its revisions, ETags and merge patches; templates
// and their params; owners, quotas, host names; soft deletion and rollback; services
// that are forgotten because no request needs them; discovered services; and the
// variants of a service that requests ask for by params. It owns the contract for
// stores (Store), too. registrytest is the suite that each of them passes.
//
// It promises:
//   - A change is in the store before the call that makes it returns, and a reader
//     sees it then. Of two writers with the same ETag one gets Stale, also if they
//     are different processes.
//   - A value of a param goes only into those strings of a backend in which the
//     template has the param and the backend permits it. It matches the param's
//     pattern as a whole, and it is one string there: it cannot end it, begin
//     another, or hold a placeholder.
//   - Only an operator defines a service without a template.
//   - A host name leads to one service, and only if its definition claims the name.
//   - A discovered service is the labelled object itself, on its own platform. An
//     object that is refused does not keep others from being services.
//   - Requests cannot make more variants of services than the template permits, and
//     a variant that runs stays.
//   - Reading (Get, ByHost, List) takes no lock that a writer holds.
//
// It never opens a connection, starts nothing, and reads no clock: the time comes with
// each call. It knows neither Caddy nor a platform. What a service's definition means is
// checked by the function that the rules bring.
package registry

// Package caddymodule is everything of Usher that knows Caddy: the app, the
// handler, the upstream source for reverse_proxy, the Caddyfile directive and
// global option, the admin API, metrics, and the hub that outlives
// configurations.
//
// It owns what users see: the syntax, the words of answers and errors, the
// names of placeholders and metrics. It turns a configuration into
// descriptions without side effects, and hands them to the hub when Caddy
// starts the configuration; from then on the hub keeps the services running,
// whatever configurations come and go.
//
// It promises that a reload loses no held request, restarts no instance whose
// description did not change, and forgets no counter; and that a
// configuration that fails to start leaves the one before it in force.
//
// It never decides which request gets a slot (package reserver) or how many instances
// there are (package scaler), and it knows no platform.
package caddymodule

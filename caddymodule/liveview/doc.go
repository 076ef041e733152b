// Package liveview is the page that shows all services as they change.
//
// It owns the handler usher_status with its directive, the page's files, and
// the feed that turns what happens into frames for open pages. It promises
// that the page runs no text of a service, a platform or a process, and that
// it costs nothing while it is not open. It keeps no state of services, and
// knows neither the request path nor the other faces.
package liveview

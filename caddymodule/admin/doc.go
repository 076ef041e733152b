// Package admin is Usher's part of Caddy's admin API, below /usher/.
//
// It owns the paths and methods, reads the bodies of calls, and answers in the
// form that hub gives services and events. It promises that an event stream
// ends with the admin server. It keeps no state of services, and knows neither
// the request path nor the other faces.
package admin

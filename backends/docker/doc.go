// Package docker runs the instances of a service as containers of a Docker
// Engine or of Podman: containers that exist, or containers that Usher makes of
// an image.
//
// It owns the modules usher.backends.docker and usher.discovery.docker, which
// makes services of containers with a label; one connection and one event stream
// per engine, shared by all services on it; what is known of the engine's
// containers; and the containers that Usher has made.
//
// It promises: events only say what to look at, and an inspection says what is,
// so lost, late and doubled events change nothing in the end; an instance is
// one run of one container, and a container that starts again is another
// instance; an address is used only after the engine has confirmed that the
// container still runs and has it; the loss of the engine is reported as one,
// and never as an empty list; containers that Usher has made are labelled,
// adopted by the next Caddy, and removed when no service wants them.
//
// It never removes or changes a container that it has not made; it only starts,
// stops, pauses and unpauses it. It never filters events by their kind, because
// Docker and Podman name them differently. It never holds up a request for
// longer than one call of the engine takes.
package docker

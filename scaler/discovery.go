package scaler

import (
	"encoding/json"
	"log/slog"
	"time"
)

// A Discoverer finds the objects of a platform that say, by a label or an
// annotation, that they are services. It is the provisioned form of a
// configuration: making, checking and comparing one asks no platform.
//
// Discoverers are guest modules of Caddy in the namespace usher.discovery. The
// name of one is that of the backend for what it finds.
type Discoverer interface {
	// Discover begins to watch. It returns quickly, without waiting for the
	// platform: what goes wrong later is told through DiscoverEnv.Report. An
	// error of Discover itself stays until the configuration changes.
	Discover(DiscoverEnv) (Discovery, error)

	// Fingerprint identifies what is found and how the platform is asked. A
	// reload that does not change it keeps the watch. It may be derived from
	// secrets and is never shown.
	Fingerprint() string

	// Redacted returns the configuration in a form that encodes to JSON and can
	// be shown to operators: secrets are replaced by "***".
	Redacted() any
}

// A Discovery is a watch that has begun.
type Discovery interface {
	// Close ends the watch and waits for that. No call of Report follows. It
	// says nothing about the objects that were found.
	Close()
}

// DiscoverEnv is what a Discovery gets from its surroundings.
type DiscoverEnv struct {
	// Logger returns the logger of the discovery. It always writes through the
	// logging of the configuration that is in force.
	Logger func() *slog.Logger

	// Report delivers what there is, one call at a time and in order, from a
	// goroutine of the Discovery that holds no lock. Each list is complete and
	// replaces the one before; it is in no order, and no side changes it. A list comes after every change and every reconnection, changes
	// that follow each other closely taken together.
	//
	// With an error there is no list: the platform cannot be asked, and the
	// list before stays. It is called once when that begins, and again if the
	// reason becomes another one. A list comes when it is over. If the error
	// concerns only a part of the platform, such as one namespace, lists come
	// meanwhile, too, with what is known of that part. The receiver logs the
	// error.
	Report func([]Found, error)
}

// Found is an object of a platform that says that it is a service.
type Found struct {
	// Object names it for people: "deployment/web in namespace apps".
	Object string

	// Name is its own name, in a form that a service can have. It is the name
	// of the service unless Labels have another one.
	Name string

	// Labels are Usher's keys on the object without their prefix, in the form
	// that they have on Kubernetes: "idle-timeout". Their values are as they were
	// written. Which keys there are says scaler/discovery.
	Labels map[string]string

	// Ignored are Usher's keys on the object, as they were written there, that
	// have no meaning or are forbidden, sorted. They have no effect, and are
	// shown to operators.
	Ignored []string

	// Backend is the description of a backend for this very object, with the
	// name of the backend in the key "type".
	Backend json.RawMessage

	// Since is when the object was created. Of two that claim the same name or
	// host, the older one has it.
	Since time.Time

	// Problem says why the object cannot be a service as it is, for operators,
	// and what to change. Backend is empty then.
	Problem string
}

package scaler

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// A Backend describes what runs the instances of one revision of a service.
// It is the provisioned form of a configuration: making, checking and
// comparing one has no side effects, so a configuration can be loaded,
// validated and thrown away without touching a platform.
//
// Backends are guest modules of Caddy in the namespace usher.backends.
type Backend interface {
	// Open makes the thing that runs. It is called once for a revision and
	// returns quickly, without waiting for the platform: what goes wrong
	// later is told through Env.Report and the errors of Scale. An error of
	// Open itself is a failure for good.
	Open(Env) (Scaler, error)

	// Fingerprint identifies everything that shapes an instance, with
	// placeholders resolved. Two backends of the same type with equal
	// fingerprints make the same instances: a reload that changes nothing
	// else keeps what runs. It may be derived from secrets and is never shown.
	Fingerprint() string

	// Redacted returns the configuration in a form that encodes to JSON and
	// can be shown to operators: secrets are replaced by "***".
	Redacted() any
}

// A Scaler is the adapter to one platform for one revision of one service.
// It reports what runs, and carries out orders. Everything it learns goes
// through Env.Report, and the control loop calls its methods without holding
// a lock. Its methods are safe for concurrent use; at most one Scale is in
// flight at a time.
type Scaler interface {
	// Scale gives an absolute order: be so many, and if that is fewer, stop
	// these. Giving the same order again changes nothing. Scale returns when
	// the platform has accepted or refused the order; a report that reflects
	// an accepted order (its Desired, and for local platforms its instances)
	// has been delivered before it returns. The error is a *Failure, or is
	// treated as one with ReasonPlatform.
	//
	// An order that could be carried out in part is carried out in part, and
	// the report says what there is. ErrLater says that the platform has to
	// come to rest before it can be: the same is ordered again after a pause,
	// and nobody has failed.
	Scale(ctx context.Context, order Order) error

	// Close ends the adapter and everything it keeps running for itself.
	// What becomes of the instances is the platform's custom: those of a
	// local platform end with it (with order.StopTimeout between the stop
	// signal and the kill), unless they were started to outlive it; those of
	// a remote platform are left as they are. Close returns when no report
	// will follow, at the latest when ctx ends.
	Close(ctx context.Context, stopTimeout time.Duration) error
}

// Traits tell the control loop about the nature of a platform.
type Traits struct {
	// Local is true where instances are processes of this machine that
	// belong to this Caddy: a start holds its place of start_limit until the
	// instance is ready or failed, not only until it is accepted, and a
	// service that is removed from the configuration has its instances
	// drained and stopped.
	Local bool

	// Trims is true where the platform at once stops by itself what exists
	// above the number that it works towards: what is too much, in the midst
	// of a replacement or after somebody else's order, is none of the loop's
	// business.
	Trims bool
}

// Traiter is implemented by a Scaler whose Traits are not all zero.
type Traiter interface {
	Traits() Traits
}

// Confirmer is implemented by a Scaler that knows more about readiness than
// a probe can tell: whether a connection that succeeded was really answered
// by this instance.
type Confirmer interface {
	// Confirm is called after a probe of the instance has passed; the
	// connection of a tcp probe is still open. It returns nil if the probe
	// reached the instance, ErrNotYet if it may be asked again about the
	// same probe in a moment, and any other error if the probe proved
	// nothing and is to be repeated.
	Confirm(ctx context.Context, instanceID string) error
}

// Voucher is implemented by a Scaler whose platform can give the address of an
// instance to something else before it has told that the instance ended. Who
// sends requests then looks at each new connection, and doubts an instance
// where nothing shows that the connection leads to it.
type Voucher interface {
	// Vouch is called after a connection to a ready instance could be made. It
	// returns nil if the platform, asked after the call, says that the instance
	// is still there, or if the platform cannot be asked in good time: the last
	// known truth holds then. After any other error the instance is ejected.
	Vouch(ctx context.Context, instanceID string) error
}

// Updater is implemented by a Scaler that can go on under another description
// of the same instances.
type Updater interface {
	// Update takes b over if it differs only in how the platform is reached,
	// and returns true. Otherwise it changes nothing and returns false: b is a
	// revision of its own then.
	Update(b Backend) bool
}

// Renewer is implemented by a Scaler that keeps a part of its backend in
// memory.
type Renewer interface {
	// Renew is called with a backend of the same type and fingerprint that a
	// reload has made: the Scaler goes on with that one, so that the one before
	// need not be kept. It returns at once.
	Renew(b Backend)
}

// Restarter is implemented by a Scaler whose platform replaces instances by
// itself: a second revision of the same description would be a second hand on
// the same instances.
type Restarter interface {
	// Restart asks the platform to replace all instances, one after the
	// other, while they serve. It returns when the platform has accepted.
	Restart(ctx context.Context) error
}

// Hurrier is implemented by a Scaler whose platform makes pauses of its own
// between starts that fail.
type Hurrier interface {
	// Hurry cuts such a pause short, now or after the next order: a person
	// has asked for a start. It returns at once.
	Hurry()
}

// Recoverer is implemented by backend modules whose instances can outlive
// Caddy.
type Recoverer interface {
	// Recover finds and ends what earlier Caddys with the same data directory
	// left behind and no Open has adopted. It is called on an unprovisioned
	// value, once in the life of a Caddy, in the background, when all services
	// of the first configuration are open: an Open that comes later adopts
	// nothing. It must not touch what belongs to a Caddy that still runs.
	Recover(ctx context.Context, dataDir string, logger *zap.Logger)
}

// Env is what a running Scaler gets from its surroundings.
type Env struct {
	// Service is the name of the service.
	Service string

	// Revision names the revision; it is unique among all revisions of the
	// service in the life of this Caddy, short, and URL-safe.
	Revision string

	// Logger returns the logger of the service. It always writes through the
	// logging of the configuration that is in force. Most services of a large
	// configuration sleep and have nothing to say: it is made when it is
	// first asked for.
	Logger func() *zap.Logger

	// Host is what the Scalers of all services share.
	*Host

	// Report delivers what the platform says. It returns quickly and never
	// calls back into the Scaler. Reports must be delivered one at a time
	// and in order; it may be called with the Scaler's own lock held. The
	// first report is expected at once after Open where the platform can
	// answer without delay.
	Report func(Report)
}

// Host is the machine on which Caddy runs, as far as it concerns Scalers.
type Host struct {
	// DataDir is a directory below Caddy's data directory that the backends
	// share. It may not exist yet.
	DataDir string

	// Local returns the options for local instances that are in force now.
	Local func() LocalOptions
}

// LocalOptions are the options of this machine for instances that run on it.
type LocalOptions struct {
	// PortFrom and PortTo bound the ports for instances, both included.
	PortFrom, PortTo int

	// Keep lets instances that are started from now on live on when Caddy
	// exits for good.
	Keep bool
}

// An Order tells a Scaler what to be.
type Order struct {
	// Instances is how many instances of the revision shall exist, those
	// that are told to stop not counted.
	Instances int

	// Stop lists the ids of the instances to stop. They have been drained,
	// or their time to drain is over. An id that does not exist (any more)
	// is no error. If stopping them leaves more than Instances, the platform
	// may choose further ones to stop; if fewer, it starts the difference.
	Stop []string

	// StopTimeout is the time from asking an instance to stop to killing it,
	// where that is up to the backend.
	StopTimeout time.Duration
}

// A Report is everything the platform says about a revision at one moment.
// Reports are level-triggered: each replaces the one before.
type Report struct {
	// Instances lists every instance that exists. One that ended is listed
	// once more, with PhaseEnded, and then no longer; one that is missing
	// from the list without that is taken as ended without a word.
	Instances []Instance

	// Desired is the number of instances that the platform itself works
	// towards. Where nothing replaces an instance that ends (local
	// processes), it is the number of instances that are not stopping.
	Desired int

	// Trouble is a failure that concerns no single instance: the platform
	// cannot be asked (ReasonPlatform: the list is then the last known
	// truth), a quota that keeps instances from being made, a resource that
	// is missing. Nil if all is well.
	Trouble *Failure

	// Hold is set while somebody else has a say in how many instances there
	// are.
	Hold *Hold
}

// A Hold keeps the control loop from changing the number of instances, as far
// as it goes. Starting the first instance is never kept from it: where that is
// not wanted, Scale refuses it, and who waits is told why.
type Hold struct {
	// Fewer, More and None keep it from ordering fewer than Desired, more
	// than Desired, and none at all.
	Fewer, More, None bool

	// Failure says who it is, and is told to operators. It is nil where the
	// platform is only busy for a while.
	Failure *Failure
}

// An Instance is one running copy of the service, as the platform sees it.
type Instance struct {
	// ID is unique among all instances of the service, for ever, and
	// URL-safe. A container that restarts at the same address gets a new one.
	ID string

	// Network ("tcp" or "unix") and Address (host:port, or a path) are where
	// the instance can be reached; both are empty until that is known. From
	// then on it is probed.
	Network, Address string

	// Phase is where the instance is in its life.
	Phase Phase

	// Since is when the instance began to exist.
	Since time.Time

	// Adopted is true for a local instance that an earlier Caddy started. It
	// is probed like any other, but what becomes of it says nothing about
	// starts. WasReady tells that it was ready already: it has to answer soon.
	Adopted, WasReady bool

	// Failure says why an instance ended unasked, or what keeps one from
	// starting; nil otherwise.
	Failure *Failure

	// Delay says what a start waits for that may yet come by itself. It is
	// the reason for the failure if the instance is not ready in time.
	Delay *Failure

	// StopRank is not 0 where the platform itself chooses which instance it
	// stops: it takes the one with the highest rank.
	StopRank int

	// Unhealthy is true while the platform says that the instance does not
	// serve, whatever a probe says: it gets no new request, and is probed anew
	// afterwards.
	Unhealthy bool

	// Extra is true while the platform does not count the instance among those
	// it works towards: it is about to be replaced, or out of sight. It serves
	// as long as it can, but is not counted on, and nobody is stopped for it.
	Extra bool
}

// Phase is where an instance is in its life, by the platform's word.
type Phase uint8

const (
	// PhaseStarting: it exists. Whether it is ready is found out by probing.
	PhaseStarting Phase = iota
	// PhaseReady: it exists, and the platform's own check has passed. Only
	// services with `ready platform` make use of the difference.
	PhaseReady
	// PhaseStopping: it was asked to stop, by whomever. It gets no request.
	PhaseStopping
	// PhaseEnded: it is gone.
	PhaseEnded
)

package scaler

import (
	"context"
	"log/slog"
	"net"
	"time"
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

// Checker is implemented by a Backend that needs things of this machine that
// can be missing without the configuration being wrong: a program, a directory,
// a user, a file.
type Checker interface {
	// Check returns what is missing now, or nil. It changes nothing. A backend
	// for which something is missing can be opened: it fails, or its starts do,
	// until the thing is there. A failure with ReasonForbidden says that this
	// Caddy may not do or see something; a Caddy with other rights may.
	Check() *Failure
}

// Refresher is implemented by a Backend that keeps what variables and files
// held when the configuration was loaded.
type Refresher interface {
	// Refresh reads them anew. If it fails, it changes nothing. The Scalers
	// that are open already stay as they are.
	Refresh() error
}

// Sharer is implemented by a Backend whose instances other Caddys can reach and
// see under the same IDs, so that several Caddys can share them.
type Sharer interface {
	// Shared reports whether that is so.
	Shared() bool
}

// Limiter is implemented by a Backend whose instances are meant for some requests
// only.
type Limiter interface {
	// DefaultMaxRequests is how many requests an instance gets in its life, unless
	// the service says so; 0 is without a limit.
	DefaultMaxRequests() int
}

// FixedAddresser is implemented by a Backend whose program may listen on one
// address of this machine, whatever it is told.
type FixedAddresser interface {
	// FixedAddress returns that address, or "" if each instance gets one of
	// its own. A service with a fixed address has one instance at most, and no
	// two services of a configuration have the same.
	FixedAddress() string
}

// OutputTeller is implemented by a Backend whose Scaler can see what the
// instances write.
type OutputTeller interface {
	// TellsOutput says whether the lines go to Env.Output.
	TellsOutput() bool
}

// CPUTeller is implemented by a Backend whose Scaler may be a CPUMeter.
type CPUTeller interface {
	// TellsCPU says whether it is one here.
	TellsCPU() bool
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
	// an accepted order (its Desired, and where instances are Owned, the instances)
	// has been delivered before it returns. The error is a *Failure, or is
	// treated as one with ReasonPlatform.
	//
	// An order that could be carried out in part is carried out in part, and
	// the report says what there is. ErrLater says that the platform has to
	// come to rest before it can be: the same is ordered again after a pause,
	// and that counts as no failure.
	Scale(ctx context.Context, order Order) error

	// Traits tell about the platform. They are the same for as long as the
	// Scaler is open.
	Traits() Traits

	// Close ends the adapter and everything it keeps running for itself.
	// Owned instances end with it (with stopTimeout between the stop signal and
	// the kill), unless they were started to outlive it. Other instances are
	// left as they are. Close returns when no report
	// will follow, at the latest when ctx ends. An order on its way ends with
	// it; a later one fails. Closing again does nothing.
	Close(ctx context.Context, stopTimeout time.Duration) error
}

// Traits tell the control loop about the nature of a platform. Each stands for
// itself. The zero value is a remote platform that replaces instances by
// itself, and whose instances go on without Caddy.
type Traits struct {
	// Owned is true where the instances belong to this Caddy, and nothing but
	// this Scaler starts and stops them. A service that is removed from the
	// configuration has its instances drained and stopped; otherwise they are
	// left as they are. An instance that stops counts towards the maximum until
	// it is gone. With a maximum of one, the old instance is gone before the
	// next one starts.
	Owned bool

	// StopsFirst is true where the instances are a given set that all revisions
	// share: a new revision has nothing to start before the old one has stopped.
	// Unless `overlap` says otherwise, a changed backend or a restart then stops
	// the old instances first, and requests wait.
	StopsFirst bool

	// HoldsPlace is true where starting an instance is work for the machine
	// that it starts on: a start keeps its place of start_limit until the
	// instance is ready or has failed, or for five seconds. Otherwise it gives
	// the place back when the platform has accepted the order.
	HoldsPlace bool

	// OrdersBlind is true where an order can be given before the first report,
	// because nothing runs that the order does not know. Otherwise "be one"
	// could stop what already runs, and the loop waits for the first report.
	OrdersBlind bool

	// SameMachine is true where no network lies between Caddy and the
	// instances. A connection that cannot be made is the instance's fault then,
	// whatever the error; otherwise only one that is refused is.
	SameMachine bool

	// Trims is true where the platform at once stops by itself what exists
	// above the number that it works towards: what is too much, in the midst
	// of a replacement or after another client's order, is none of the loop's
	// business.
	Trims bool

	// Platform names what carries out the orders: a cluster, an endpoint. The
	// starts of each have places of their own in the start budget, so that one
	// that hangs does not hold up the others. Default: this machine where
	// HoldsPlace is set, otherwise the type of the backend.
	Platform string
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

// PeerChecker is implemented by a Scaler that can tell for a single connection
// whether it leads to the instance: on this machine another process can take
// the port or the socket of an instance.
type PeerChecker interface {
	// CheckPeer is called with each new connection to the instance, probes
	// included, before anything is written to it. After an error the connection
	// is closed, and counts as refused. It returns quickly.
	CheckPeer(instanceID string, conn net.Conn) error

	// Pin is called in place of CheckPeer where a transport shows no
	// connections. It returns an address of the same network that leads to
	// nothing but the instance until release is called. Only connections that
	// are made between the two may use it, and none may be kept under it.
	Pin(instanceID string) (address string, release func(), err error)
}

// Verifier is implemented by a Scaler whose platform can give the address of an
// instance to something else before it has told that the instance ended. Usher
// then looks at each new connection, and suspects an instance if nothing shows
// that the connection leads to it.
type Verifier interface {
	// Verify is called after a connection to a ready instance could be made. It
	// returns nil if the platform, asked after the call, says that the instance
	// is still there, or if the platform cannot be asked in good time: the last
	// known truth holds then. After any other error the instance is ejected.
	Verify(ctx context.Context, instanceID string) error
}

// Observer is implemented by a Backend whose instances Caddys share, and whose
// platform tells each of them when one ends. A Caddy that does not lead need not
// wait for the word of the one that does: the address may be something else's by
// then.
type Observer interface {
	// Observe begins to watch, without waiting for the platform. changed is called
	// when an instance may have ended, maybe with a lock of the Backend's held. It
	// returns quickly. Of env, Report and Output are not used.
	Observe(env Env, changed func()) (Observation, error)
}

// An Observation is what a platform says of instances that another Caddy runs. It
// may be used by several goroutines at once.
type Observation interface {
	// Ended reports whether the platform has said that an instance has ended. It is
	// false for one of which nothing is known: the other Caddy may have heard of it
	// first. It returns quickly.
	Ended(instanceID string) bool

	// Close ends the watching. No call of changed follows.
	Close()
}

// Updater is implemented by a Scaler that can go on under another description
// of the same instances, or keeps a part of its backend in memory.
type Updater interface {
	// Update is called with a backend of the same type that a reload has made.
	// The Scaler returns true if it goes on with that one: b makes the same
	// instances, and differs at most in how the platform is reached. Otherwise
	// it changes nothing and returns false: b is a revision of its own then.
	// With an equal fingerprint the Scaler goes on in any case, and taking b
	// over means that the backend before need not be kept. It returns at once.
	Update(b Backend) bool
}

// Restarter is implemented by a Scaler whose platform replaces instances by
// itself: a second revision of the same description would be a second hand on
// the same instances.
type Restarter interface {
	// Restart asks the platform to replace all instances, one after the
	// other, while they serve. It returns when the platform has accepted.
	Restart(ctx context.Context) error
}

// CPUMeter is implemented by a Scaler that can tell how much its instances work.
type CPUMeter interface {
	// CPUTime returns how much time of a processor the instance has used since it
	// began, with all that belongs to it. It may be called at any time.
	CPUTime(ctx context.Context, id string) (time.Duration, error)
}

// BackoffSkipper is implemented by a Scaler whose platform makes pauses of its own
// between starts that fail.
type BackoffSkipper interface {
	// SkipBackoff cuts such a pause short, now or after the next order: a person
	// has asked for a start. It returns at once.
	SkipBackoff()
}

// Recoverer is implemented by backend modules whose instances can outlive
// Caddy.
type Recoverer interface {
	// Recover finds and ends what earlier Caddys with the same data directory
	// left behind and no Open has adopted. It is called on an unprovisioned
	// value, once in the life of a Caddy, in the background, when all services
	// of the first configuration are open: an Open that comes later adopts
	// nothing. It is called even if no service has a backend of this type. It
	// must not touch what belongs to a Caddy that still runs.
	Recover(ctx context.Context, left Recovery)
}

// A Recovery is where to look for what earlier Caddys left behind.
type Recovery struct {
	// DataDir is Host.DataDir. A backend that starts instances elsewhere notes
	// there where that is: a service may be gone from the configuration.
	DataDir string

	// Backends are the provisioned backends of this type in the first
	// configuration. They say how the platform is reached.
	Backends []Backend

	Logger *slog.Logger
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
	Logger func() *slog.Logger

	// Host is what the Scalers of all services share.
	*Host

	// Output takes each line that an instance writes, if the Scaler sees it and
	// the configuration does not discard it. It returns quickly, and may be
	// called by several goroutines at once and with the Scaler's own lock held.
	// Nil if no line is wanted.
	Output func(OutputLine)

	// Report delivers what the platform says. It returns quickly and never
	// calls back into the Scaler. The list in the report is no longer the
	// Scaler's: it does not change it afterwards. Reports must be delivered one at a time
	// and in order; it may be called with the Scaler's own lock held. The
	// first report is expected at once after Open where the platform can
	// answer without delay.
	Report func(Report)
}

// An OutputLine is one line that an instance wrote.
type OutputLine struct {
	Instance string    // its id
	Stream   string    // stdout or stderr
	Text     string    // made readable, without the end of the line
	Time     time.Time // when it was read
}

// Host is the machine on which Caddy runs, as far as it concerns Scalers.
type Host struct {
	// DataDir is a directory below Caddy's data directory that the backends
	// share. It may not exist yet.
	DataDir string

	// Local returns the options for local instances that are in force now.
	Local func() LocalOptions

	// Cluster returns what names the cluster of Caddys that this one shares
	// instances with: the same for each of its members, and another one for any
	// other cluster. It is empty if this Caddy is in none. Nil stands for that.
	Cluster func() string
}

// ClusterName returns what Cluster does, and "" without it.
func (h *Host) ClusterName() string {
	if h.Cluster == nil {
		return ""
	}
	return h.Cluster()
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

	// Remains is how many instances have ended by themselves and left processes
	// behind that still run. The backend ends them. Where a stopping instance
	// counts towards the maximum, they count as one each: they may hold a lock
	// that the next instance needs.
	Remains int

	// Desired is the number of instances that the platform itself works
	// towards. Where instances are Owned, nothing replaces one that
	// ends, and it is the number of instances that are not stopping.
	Desired int

	// Trouble is a failure that concerns no single instance: the platform
	// cannot be asked (ReasonPlatform: the list is then the last known
	// truth), a quota that keeps instances from being made, a resource that
	// is missing. Nil if all is well.
	Trouble *Failure

	// Hold is set while something else decides, in part, how many instances
	// there are.
	Hold *Hold
}

// A Hold keeps the control loop from changing the number of instances, as far
// as it goes. A hold never blocks the first start. To block it, return an error
// from Scale; waiting requests get the reason.
type Hold struct {
	// Fewer, More and None keep it from ordering fewer than Desired, more
	// than Desired, and none at all.
	Fewer, More, None bool

	// Failure says what holds the number, for operators. It is nil where the
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

	// Completed is true if an ended instance has done its work: a job that is
	// over. It is no failure, and says nothing about later starts. It goes with
	// PhaseEnded, and Failure is nil.
	Completed bool

	// Slots is how many requests the instance takes at a time. It may change
	// while the instance runs. 0: the service's concurrency.
	Slots int

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
	// as long as it can, but does not count, and no other instance is stopped for it.
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
	// PhaseStopping: it was asked to stop, by Usher or another client. It gets no request.
	PhaseStopping
	// PhaseEnded: it is gone.
	PhaseEnded
)

package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// Loop is the control loop of one service: it decides how many instances
// there should be, orders them, watches them become ready, and gives them to
// the reserver. Its goroutine exists only while there is something to decide.
//
// All methods are safe for concurrent use.
type Loop struct {
	env      scaler.Env
	reserver *reserver.Service
	budget   *Budget
	timers   *Timers
	observer Observer

	// granted are places of the start budget that the loop has got and not
	// used yet.
	granted atomic.Int32

	// answered is false between the end of a cold start and its first answer.
	answered atomic.Bool

	serving atomic.Int64 // ServiceTime

	meter atomic.Pointer[meter] // nil unless the policy is Metered

	timer int32 // place in timers; guarded by its lock

	platform string // whose places the loop has got

	run life

	// changing is held while the current revision is changed: between the look
	// at it and the change nothing else may make another one the current one.
	// It is taken before mu, and not while a platform is asked.
	changing sync.Mutex

	mu        sync.Mutex
	settings  *Settings            // may be shared with other loops
	revisions []*revision          // oldest first; the last is the current one
	left      []*reserver.Instance // that are gone, with requests inside
	target    int
	state     State
	cold      *ColdStart // the latest one since the target was 0
	done      *history   // nil until something is remembered

	made     int32 // revisions ever made
	failures int32 // failed starts in a row

	permanentFailure bool     // one of the failures was for good
	retired          bool     // no configuration has the service any more
	startRequested   bool     // a start is wanted although no request waits
	placeless        bool     // a start waits for a place of the budget
	owed             bool     // an instance was stopped so that a new revision can take its place
	asleep           bool     // put to sleep by an operator, until the next request
	suspended        *Refusal // turned off by an operator
	exiting          *Refusal // Caddy exits
	onRetired        func()   // set while it is retired and not yet closed
	refusal          *Refusal // what the reserver was told last

	delayed *[]InstanceStatus // changes that are told after a decision; nil unless there is one being made

	lastFailure  *failureAt
	backoffUntil time.Time
	fallback     *fallback // nil unless one is at hand
	givesWay     bool      // a fallback is being taken

	sharing *sharing // nil unless it shares its instances with other loops

	keptBy   keepers
	held     []*Loop  // that it keeps awake
	group    *Group   // in which it is
	waitsFor string   // a service that it needs and that does not serve yet
	unmet    *Refusal // why that will not
}

// failureAt is a failure and when it was.
type failureAt struct {
	*scaler.Failure
	at time.Time
}

// interruptAfter is how long requests inside an instance that is gone may
// still end by themselves: an answer may be in the buffers of the connection.
const interruptAfter = time.Second

// ErrGone is the cause with which requests are interrupted whose instance is
// gone.
var ErrGone = errors.New("the instance is gone")

// ErrClosed is returned by SetBackend when the loop is closed.
var ErrClosed = errors.New("the service is closed")

// NewLoop returns the control loop of a service that has no instances and no
// backend yet. The env is what its scalers get; Revision and Report are filled
// in by the loop. What settings points to does not change any more.
func NewLoop(env scaler.Env, settings *Settings, budget *Budget, timers *Timers, observer Observer) *Loop {
	return &Loop{
		env: env, budget: budget, timers: timers, observer: observer,
		settings: settings.bounded(), state: Asleep,
	}
}

// log is the service's logger.
func (l *Loop) log() *slog.Logger { return l.env.Logger() }

// Attach gives the loop the service's slots and line. It is called once,
// before anything else.
func (l *Loop) Attach(s *reserver.Service) { l.reserver = s }

// Hooks returns what the reserver of the service has to call.
func (l *Loop) Hooks() reserver.Hooks { return (*hooks)(l) }

// hooks lets the loop look at the instance to which something has happened, and
// decide anew. An order names all that stop and says how many stay, so for one
// that has drained there is nothing to do but to decide.
type hooks Loop

func (h *hooks) Demand()                              { (*Loop)(h).Trigger() }
func (h *hooks) Abandoned()                           { (*Loop)(h).Trigger() }
func (h *hooks) Drained(*reserver.Instance)           { (*Loop)(h).Trigger() }
func (h *hooks) Ejected(i *reserver.Instance)         { (*Loop)(h).look(i) }
func (h *hooks) Spent(i *reserver.Instance)           { (*Loop)(h).look(i) }
func (h *hooks) VerifyRequested(i *reserver.Instance) { (*Loop)(h).look(i) }

// Apply changes the settings: they take effect on what runs and waits. What s
// points to may be shared, and does not change any more.
func (l *Loop) Apply(s *Settings) {
	s = s.bounded()
	l.mu.Lock()
	check := !reflect.DeepEqual(l.settings.Check, s.Check)
	if l.done != nil && reflect.TypeOf(scaler.Decider(l.settings.Policy)) != reflect.TypeOf(scaler.Decider(s.Policy)) {
		l.done.memory = nil // another policy could not read it
	}
	l.settings = s
	l.measure()
	for _, r := range l.revisions {
		for _, i := range r.instances {
			if i.slots != nil {
				i.slots.SetSlots(l.slotsHere(i))
			}
			switch {
			case !check || i.stage.leaving():
			case i.stage == ready:
				if i.slots.Stats().Ejected {
					l.startProbe(i, 0)
				}
			default:
				i.stopProbe()
				l.judge(i, time.Now())
			}
		}
	}
	l.mu.Unlock()
	l.Trigger()
}

// SetBackend makes the backend the one of which new instances are made. The
// instances of earlier revisions serve until new ones are ready, and are then
// drained and stopped. If an earlier revision of the same description still
// runs (a configuration was taken back), it becomes the current one again; if
// the current one has it, nothing changes; otherwise a new one is opened.
func (l *Loop) SetBackend(b scaler.Backend) error { return l.setBackend(b, (*Loop).open) }

// SetBackendAnyway makes the backend the one of which new instances are made, even
// if it cannot be opened now. The service is failing then, and the next start
// opens the backend first.
func (l *Loop) SetBackendAnyway(b scaler.Backend) error { return l.setBackend(b, (*Loop).openAnyway) }

func (l *Loop) setBackend(b scaler.Backend, open func(*Loop, scaler.Backend) error) error {
	l.changing.Lock()
	defer l.changing.Unlock()
	if l.keepBackend(b) {
		return nil
	}
	return l.changeBackend(b, open)
}

// changeBackend does what SetBackend says. The lock for changes is held.
func (l *Loop) changeBackend(b scaler.Backend, open func(*Loop, scaler.Backend) error) error {
	l.mu.Lock()
	for k, r := range slices.Backward(l.revisions) {
		// One that is being closed is past the point of no return.
		if r.closing || r.followed() || reflect.TypeOf(r.backend) != reflect.TypeOf(b) || r.backend.Fingerprint() != b.Fingerprint() {
			continue
		}
		// The same in other words: the old ones need not be kept.
		r.backend = b
		again := k < len(l.revisions)-1
		if again {
			l.revisions = append(slices.Delete(l.revisions, k, k+1), r)
			l.fresh(time.Now())
		}
		l.mu.Unlock()
		if u, ok := r.scaler.(scaler.Updater); ok {
			u.Update(b)
		}
		if again {
			l.Trigger()
		}
		return nil
	}
	cur := l.current()
	l.mu.Unlock()
	if cur == nil {
		return open(l, b)
	}
	if u, ok := cur.scaler.(scaler.Updater); !ok || !u.Update(b) {
		return open(l, b)
	}
	l.mu.Lock()
	cur.backend = b
	l.fresh(time.Now())
	l.mu.Unlock()
	l.Trigger()
	return nil
}

// fresh forgets failures: what is said of the starts of one revision is not
// said of those of another. The lock is held.
func (l *Loop) fresh(now time.Time) {
	l.failures, l.permanentFailure, l.lastFailure, l.backoffUntil = 0, false, nil, time.Time{}
	l.refuse(now)
}

// Restart replaces all instances, one after the other, while they serve: by a
// new revision of the same, or by the platform's own means where it has them.
func (l *Loop) Restart() error {
	l.changing.Lock()
	l.mu.Lock()
	r := l.current()
	if r == nil {
		l.mu.Unlock()
		l.changing.Unlock()
		return nil
	}
	backend, opened := r.backend, r.scaler
	l.mu.Unlock()
	restarter, ok := opened.(scaler.Restarter)
	if !ok {
		defer l.changing.Unlock()
		return l.reopen(backend)
	}
	// The platform's restart changes no definition, and can take its time.
	l.changing.Unlock()
	ctx, cancel := context.WithTimeout(l.context(), orderTimeout)
	defer cancel()
	return restarter.Restart(ctx)
}

// Close ends the loop and closes its scalers, which stop their local
// instances. It waits for everything that the loop has started, but not
// longer than ctx. Waiting requests get the reason. Closing again waits for the
// first call.
func (l *Loop) Close(ctx context.Context) error {
	closed, first := l.end()
	if !first {
		select {
		case <-closed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer close(closed)

	l.mu.Lock()
	l.leaveAll()
	if l.reserver != nil && l.exiting == nil {
		// Nothing would answer requests that wait from here on.
		l.exiting = &Refusal{Kind: RefusedExiting, Short: "the service is shutting down"}
		l.refuse(time.Now())
	}
	var revisions []*revision
	for _, r := range l.revisions {
		if !r.closing && r.scaler != nil {
			revisions = append(revisions, r)
		}
	}
	stop := l.settings.StopTimeout
	l.mu.Unlock()
	var wg sync.WaitGroup
	errs := make([]error, len(revisions)+1)
	for k, r := range revisions {
		wg.Go(func() { errs[k] = r.scaler.Close(ctx, stop) })
	}
	// An instance that waits for its open streams to end must not delay the
	// end: their clients are gone.
	l.interruptAll()
	wg.Wait()

	ended := make(chan struct{})
	go func() {
		l.run.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		errs[len(revisions)] = ctx.Err()
	}
	l.mu.Lock()
	l.withdrawClaim()
	for _, r := range l.revisions {
		r.takePlaces(-r.places, r.placesOf)
	}
	l.mu.Unlock()
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("service %s: closing its backend: %w", l.env.Service, err)
		}
	}
	return nil
}

func (l *Loop) current() *revision {
	if len(l.revisions) == 0 {
		return nil
	}
	return l.revisions[len(l.revisions)-1]
}

// interruptAll ends the requests inside all instances.
func (l *Loop) interruptAll() {
	l.mu.Lock()
	var all []*reserver.Instance
	for _, r := range l.revisions {
		for _, i := range r.instances {
			if i.slots != nil {
				all = append(all, i.slots)
			}
		}
	}
	l.mu.Unlock()
	for _, i := range all {
		i.Interrupt(ErrGone)
	}
}

// errorAttr is a log attribute for an error, which may be nil.
func errorAttr(key string, err error) slog.Attr {
	if err == nil {
		return slog.Attr{}
	}
	return slog.Any(key, err)
}

package scaler

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/reserver"
)

// Loop is the control loop of one service: it decides how many instances
// there should be, orders them, watches them become ready, and gives them to
// the reserver. Its goroutine exists only while there is something to decide.
//
// All methods are safe for concurrent use.
type Loop struct {
	env      Env
	reserver *reserver.Service
	budget   *Budget
	observer Observer

	// granted are places of the start budget that the loop has got and not
	// used yet.
	granted atomic.Int32

	// answered is false between the end of a cold start and its first answer.
	answered atomic.Bool

	run life

	mu        sync.Mutex
	settings  *Settings   // may be shared with other loops
	revisions []*revision // oldest first; the last is the current one
	history   []Sample
	target    int
	state     State
	cold      *ColdStart // the latest one since the target was 0
	past      *past      // nil until something is remembered

	made     int32 // revisions ever made
	places   int32 // of the start budget, held by starts in progress
	failures int32 // failed starts in a row

	hopeless  bool     // one of the failures was for good
	retired   bool     // no configuration has the service any more
	nudged    bool     // a start is wanted although nobody waits
	asleep    bool     // put to sleep by an operator, until the next request
	suspended *Refusal // turned off by an operator
	exiting   *Refusal // Caddy exits
	onRetired func()   // set while it is retired and not yet closed
	refusal   *Refusal // what the reserver was told last

	troubleTold *Failure // what the observer was told last

	lastFailure  *failureAt
	backoffUntil time.Time
}

// failureAt is a failure and when it was.
type failureAt struct {
	*Failure
	at time.Time
}

// interruptAfter is how long requests inside an instance that is gone may
// still end by themselves: an answer may be in the buffers of the connection.
const interruptAfter = time.Second

// ErrGone is the cause with which requests are interrupted whose instance is
// gone.
var ErrGone = errors.New("the instance is gone")

// ErrClosed is returned by Adopt when the loop is closed.
var ErrClosed = errors.New("the service is closed")

// NewLoop returns the control loop of a service that has no instances and no
// backend yet. The env is what its scalers get; Revision and Report are filled
// in by the loop. What settings points to does not change any more.
func NewLoop(env Env, settings *Settings, budget *Budget, observer Observer) *Loop {
	return &Loop{
		env: env, budget: budget, observer: observer,
		settings: settings, state: Asleep,
	}
}

// log is the service's logger.
func (l *Loop) log() *zap.Logger { return l.env.Logger() }

// Attach gives the loop the service's slots and line. It is called once,
// before anything else.
func (l *Loop) Attach(s *reserver.Service) { l.reserver = s }

// Hooks returns what the reserver of the service has to call.
func (l *Loop) Hooks() reserver.Hooks { return (*hooks)(l) }

// hooks lets the loop look again at whatever has happened to the slots.
type hooks Loop

func (h *hooks) Demand()                       { (*Loop)(h).Poke() }
func (h *hooks) Ejected(*reserver.Instance)    { (*Loop)(h).Poke() }
func (h *hooks) Questioned(*reserver.Instance) { (*Loop)(h).Poke() }
func (h *hooks) Drained(*reserver.Instance)    { (*Loop)(h).Poke() }

// Apply changes the settings: they take effect on what runs and waits. What s
// points to may be shared, and does not change any more.
func (l *Loop) Apply(s *Settings) {
	l.mu.Lock()
	check := !reflect.DeepEqual(l.settings.Check, s.Check)
	l.settings = s
	for _, r := range l.revisions {
		for _, i := range r.instances {
			if i.slots != nil {
				i.slots.SetSlots(s.Concurrency)
			}
			switch {
			case !check || i.draining || i.stopping:
			case i.slots != nil && !i.withdrawn:
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
	l.Poke()
}

// Adopt makes the backend the one of which new instances are made. The
// instances of earlier revisions serve until new ones are ready, and are then
// drained and stopped. If an earlier revision of the same description still
// runs (a configuration was taken back), it becomes the current one again; if
// the current one has it, nothing changes; otherwise a new one is opened.
func (l *Loop) Adopt(b Backend) error {
	l.mu.Lock()
	for k, r := range slices.Backward(l.revisions) {
		if reflect.TypeOf(r.backend) != reflect.TypeOf(b) || r.backend.Fingerprint() != b.Fingerprint() {
			continue
		}
		// The same in other words: the old ones need not be kept.
		r.backend = b
		again := k < len(l.revisions)-1
		if again {
			l.revisions = append(slices.Delete(l.revisions, k, k+1), r)
			l.fresh()
		}
		l.mu.Unlock()
		if s, ok := r.scaler.(Renewer); ok {
			s.Renew(b)
		}
		if again {
			l.Poke()
		}
		return nil
	}
	cur := l.current()
	l.mu.Unlock()
	if cur == nil {
		return l.open(b)
	}
	if u, ok := cur.scaler.(Updater); !ok || !u.Update(b) {
		return l.open(b)
	}
	l.mu.Lock()
	cur.backend = b
	l.fresh()
	l.mu.Unlock()
	l.Poke()
	return nil
}

// fresh forgets failures: what is said of the starts of one revision is not
// said of those of another. The lock is held.
func (l *Loop) fresh() {
	l.failures, l.hopeless, l.lastFailure, l.backoffUntil = 0, false, nil, time.Time{}
	l.refuse()
}

// open makes a new revision, the current one.
func (l *Loop) open(b Backend) error {
	l.mu.Lock()
	l.made++
	r := &revision{loop: l, number: l.made, backend: b}
	l.mu.Unlock()

	env := l.env
	env.Revision = r.id()
	env.Report = r.report
	s, err := b.Open(env)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.current() == nil {
			// Nothing can be started, and nothing is there to try again: who
			// waits is told now.
			f := *AsFailure(err)
			f.ForGood = true
			l.startFailed(&f, time.Now())
		}
		return err
	}

	var traits Traits
	if t, ok := s.(Traiter); ok {
		// Without the lock: a Scaler may report with its own lock held.
		traits = t.Traits()
	}

	l.mu.Lock()
	if l.closing() {
		// Close does not know of it.
		stop := l.settings.StopTimeout
		l.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), stop+orderTimeout)
		defer cancel()
		return errors.Join(ErrClosed, s.Close(ctx, stop))
	}
	r.scaler, r.traits = s, traits
	l.revisions = append(l.revisions, r)
	l.fresh()
	if r.early != nil {
		l.take(r, *r.early)
		r.early = nil
	}
	l.tellPlatform()
	l.mu.Unlock()
	l.Poke()
	return nil
}

// Restart replaces all instances, one after the other, while they serve: by a
// new revision of the same, or by the platform's own means where it has them.
func (l *Loop) Restart() error {
	l.mu.Lock()
	r := l.current()
	if r == nil {
		l.mu.Unlock()
		return nil
	}
	backend := r.backend
	l.mu.Unlock()
	restarter, ok := r.scaler.(Restarter)
	if !ok {
		return l.open(backend)
	}
	ctx, cancel := context.WithTimeout(l.context(), orderTimeout)
	defer cancel()
	return restarter.Restart(ctx)
}

// Close ends the loop and closes its scalers, which stop their local
// instances. It waits for everything that the loop has started, but not
// longer than ctx. Who still waits is told. Closing again waits for the first.
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
	if l.reserver != nil && l.exiting == nil {
		// Nobody would ever answer who waits from here on.
		l.exiting = &Refusal{Kind: RefusedExiting, Short: "the service is shutting down"}
		l.refuse()
	}
	var revisions []*revision
	for _, r := range l.revisions {
		if !r.closing {
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
	// end: nobody is left to read them.
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
	l.budget.claim(l, 0, false, time.Time{})
	l.mu.Lock()
	places := int(l.places)
	l.places = 0
	l.mu.Unlock()
	l.budget.giveBack(places + int(l.granted.Swap(0)))
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

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
	service  string
	reserver *reserver.Service
	budget   *Budget
	observer Observer
	log      *zap.Logger
	env      Env

	// granted are places of the start budget that the loop has got and not
	// used yet.
	granted atomic.Int64

	// run guards the life of the goroutine. It is a leaf: nothing is locked
	// under it, so anybody may call Poke.
	run struct {
		sync.Mutex
		active bool
		poked  chan struct{} // size 1
		closed bool
		wg     sync.WaitGroup // the goroutine, orders, probes, closings
	}

	mu        sync.Mutex
	settings  Settings
	revisions []*revision // oldest first; the last is the current one
	made      int         // revisions ever made
	history   []Sample
	target    int
	state     State
	decisions []Decision
	coldFrom  time.Time // when the cold start in progress began
	coldCount int
	coldLast  time.Duration
	startMean time.Duration // moving average of cold starts

	nudged    bool     // a start is wanted although nobody waits
	asleep    bool     // put to sleep by an operator, until the next request
	suspended *Refusal // turned off by an operator
	exiting   *Refusal // Caddy exits
	retired   bool     // no configuration has the service any more
	onRetired func()
	refusal   *Refusal // what the reserver was told last

	troubleTold *Failure // what the observer was told last

	places int // of the start budget, held by starts in progress

	failures     int  // failed starts in a row
	hopeless     bool // one of them failed for good
	lastFailure  *Failure
	failedAt     time.Time // when lastFailure was
	backoffUntil time.Time

	ctx    context.Context // of everything in the background; ends with Close
	cancel context.CancelFunc
	closed chan struct{} // closed when Close is through
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
// in by the loop.
func NewLoop(env Env, settings Settings, budget *Budget, observer Observer) *Loop {
	l := &Loop{
		service: env.Service, budget: budget, observer: observer, log: env.Logger, env: env,
		settings: settings, state: Asleep,
	}
	l.run.poked = make(chan struct{}, 1)
	l.closed = make(chan struct{})
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Attach gives the loop the service's slots and line. It is called once,
// before anything else.
func (l *Loop) Attach(s *reserver.Service) { l.reserver = s }

// Hooks returns what the reserver of the service has to call.
func (l *Loop) Hooks() reserver.Hooks {
	return reserver.Hooks{
		Demand:     l.Poke,
		Ejected:    func(*reserver.Instance) { l.Poke() },
		Questioned: func(*reserver.Instance) { l.Poke() },
		Drained:    func(*reserver.Instance) { l.Poke() },
	}
}

// Poke makes the loop decide anew. It never blocks.
func (l *Loop) Poke() {
	l.run.Lock()
	defer l.run.Unlock()
	if l.run.closed {
		return
	}
	if !l.run.active {
		l.run.active = true
		l.run.wg.Add(1)
		go l.decideUntilQuiet()
		return
	}
	select {
	case l.run.poked <- struct{}{}:
	default:
	}
}

// background runs f in a goroutine that Close waits for. It returns false,
// and runs nothing, if the loop is being closed.
func (l *Loop) background(f func()) bool {
	l.run.Lock()
	defer l.run.Unlock()
	if l.run.closed {
		return false
	}
	l.run.wg.Go(f)
	return true
}

// decideUntilQuiet is the goroutine: it decides, sleeps until the next event
// or the time at which the decision may change, and ends when no time is left
// to wait for.
func (l *Loop) decideUntilQuiet() {
	defer l.run.wg.Done()
	var timer *time.Timer
	for {
		next := l.decide(time.Now())
		if next.IsZero() {
			l.run.Lock()
			select {
			case <-l.run.poked:
				l.run.Unlock()
				continue
			default:
			}
			l.run.active = false
			l.run.Unlock()
			if timer != nil {
				timer.Stop()
			}
			return
		}
		wait := max(time.Until(next), 0)
		if timer == nil {
			timer = time.NewTimer(wait)
		} else {
			timer.Reset(wait)
		}
		select {
		case <-l.run.poked:
		case <-timer.C:
		case <-l.ctx.Done():
			timer.Stop()
			l.run.Lock()
			l.run.active = false
			l.run.Unlock()
			return
		}
	}
}

// Apply changes the settings: they take effect on what runs and waits.
func (l *Loop) Apply(s Settings) {
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
// runs (a configuration was taken back), it becomes the current one again;
// otherwise a new one is opened.
func (l *Loop) Adopt(b Backend) error {
	l.mu.Lock()
	for k, r := range l.revisions {
		if reflect.TypeOf(r.backend) == reflect.TypeOf(b) && r.backend.Fingerprint() == b.Fingerprint() {
			l.revisions = append(slices.Delete(l.revisions, k, k+1), r)
			l.fresh()
			l.mu.Unlock()
			l.Poke()
			return nil
		}
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
	r := &revision{loop: l, id: fmt.Sprintf("r%d", l.made), backend: b, instances: make(map[string]*instance)}
	l.mu.Unlock()

	env := l.env
	env.Revision = r.id
	env.Report = func(rep Report) { l.reported(r, rep) }
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
	if l.ctx.Err() != nil {
		// Close does not know of it.
		stop := l.settings.StopTimeout
		l.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), stop+orderTimeout)
		defer cancel()
		return errors.Join(ErrClosed, s.Close(ctx, stop))
	}
	r.scaler, r.traits = s, traits
	r.confirmer, _ = s.(Confirmer)
	r.restarter, _ = s.(Restarter)
	r.voucher, _ = s.(Voucher)
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
	l.mu.Unlock()
	if r == nil {
		return nil
	}
	if r.restarter == nil {
		return l.open(r.backend)
	}
	ctx, cancel := context.WithTimeout(l.ctx, orderTimeout)
	defer cancel()
	return r.restarter.Restart(ctx)
}

// Close ends the loop and closes its scalers, which stop their local
// instances. It waits for everything that the loop has started, but not
// longer than ctx. Who still waits is told. Closing again waits for the first.
func (l *Loop) Close(ctx context.Context) error {
	l.run.Lock()
	first := !l.run.closed
	l.run.closed = true
	l.run.Unlock()
	if !first {
		select {
		case <-l.closed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer close(l.closed)
	l.cancel()

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
	places := l.places
	l.places = 0
	l.mu.Unlock()
	l.budget.giveBack(places + int(l.granted.Swap(0)))
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("service %s: closing its backend: %w", l.service, err)
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

package async

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// Services is what a dispatcher needs of the program. All methods may be called at
// the same time.
type Services interface {
	// Policy returns how tasks of a queue are executed now. ok is false if nothing
	// executes them: they wait.
	Policy(queue string) (p Policy, ok bool)

	// Slot waits until the instances that execute the tasks of a queue have a free
	// slot, and reserves it. While it waits it is demand. It returns an error when
	// ctx ends, and when the service takes no requests now, because it is suspended or
	// failing.
	Slot(ctx context.Context, queue string) (Slot, error)
}

// Slot is a slot of an instance. One goroutine uses it.
type Slot interface {
	// Send sends a request to the instance, once. Its body is not sent again. It
	// returns a *NotSentError if the instance has seen nothing of it. The answer to a
	// redirect is the redirect.
	Send(r *http.Request) (*http.Response, error)

	// Release gives the slot back. It is called once.
	Release()
}

// Options are those of a dispatcher.
type Options struct {
	// Owner names this process, and no other one, also of the past. Required.
	Owner string

	// Grace is how long attempts may go on after Run was told to end.
	Grace time.Duration

	// Report is called after each attempt. Nil: not.
	Report func(Report)

	// Trouble is called with what goes wrong with the store. The dispatcher goes on.
	// Nil: not.
	Trouble func(error)
}

// Report tells of one attempt.
type Report struct {
	// Task is the task as it was recorded after the attempt.
	Task Task

	// Wait is how long the task had waited since it was accepted, or since it was due
	// again, and Duration how long the attempt took.
	Wait, Duration time.Duration
}

// Dispatcher executes the tasks of a store. It claims a task only when it has a slot
// for it, so tasks that wait are in the store alone, and no attempt begins that an
// instance would not take at once.
type Dispatcher struct {
	store    Store
	services Services
	o        Options
	wake     chan struct{}
	life     sync.WaitGroup

	mu      sync.Mutex
	lines   map[string]*line
	running map[Attempt]context.CancelCauseFunc
	renewed time.Time // when the latest renewal of the leases began
}

// line is what waits for slots for one queue.
type line struct {
	waiting map[*context.CancelFunc]bool
	paused  time.Time // until then none waits: the service takes no requests
	pause   time.Duration
}

// The pauses of the dispatcher.
const (
	// stepPause is the shortest time between two looks at the store.
	stepPause = 10 * time.Millisecond

	// A service that takes no requests is asked again after pauseFrom, and then after
	// twice as long each time, up to pauseTo.
	pauseFrom = time.Second
	pauseTo   = 15 * time.Second

	// settlePause is how long it waits before it tries again to record an outcome.
	settlePause = time.Second
)

// NewDispatcher returns a dispatcher. Run executes tasks.
func NewDispatcher(store Store, services Services, o Options) *Dispatcher {
	if o.Report == nil {
		o.Report = func(Report) {}
	}
	if o.Trouble == nil {
		o.Trouble = func(error) {}
	}
	return &Dispatcher{
		store: store, services: services, o: o, wake: make(chan struct{}, 1),
		lines: make(map[string]*line), running: make(map[Attempt]context.CancelCauseFunc),
	}
}

// Wake lets the dispatcher look again at what there is to do: after a change of what
// Services says, for example.
func (d *Dispatcher) Wake() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Resume is Wake after a service takes requests again.
func (d *Dispatcher) Resume(queue string) {
	d.mu.Lock()
	if l := d.lines[queue]; l != nil {
		l.paused, l.pause = time.Time{}, 0
	}
	d.mu.Unlock()
	d.Wake()
}

// Run executes tasks until ctx ends, and then until the attempts under way have
// ended, or Grace is over. What is recorded of those that it ends then is the
// policy's.
func (d *Dispatcher) Run(ctx context.Context) {
	stop := d.store.Watch(func(Change) { d.Wake() })
	defer stop()
	d.mu.Lock()
	d.renewed = time.Now()
	d.mu.Unlock()
	attempts, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	d.tick(ctx)
	tick := time.NewTicker(LeaseRenewal)
	defer tick.Stop()
	for ctx.Err() == nil {
		look := time.NewTimer(d.step(ctx, attempts))
		select {
		case <-ctx.Done():
		case <-tick.C:
			d.tick(ctx)
		case <-d.wake:
			// What comes together is looked at together.
			pause(ctx, stepPause)
		case <-look.C:
		}
		look.Stop()
	}
	d.finish(tick, end)
}

// finish waits for what is under way, and goes on to renew its leases.
func (d *Dispatcher) finish(tick *time.Ticker, end context.CancelCauseFunc) {
	ended := make(chan struct{})
	go func() {
		d.life.Wait()
		close(ended)
	}()
	grace := time.NewTimer(d.o.Grace)
	defer grace.Stop()
	for {
		select {
		case <-ended:
			return
		case <-grace.C:
			end(errStopped)
		case <-tick.C:
			d.renew(context.Background())
		}
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// tick does what is to be done from time to time.
func (d *Dispatcher) tick(ctx context.Context) {
	d.renew(ctx)
	d.repeat(ctx, func() (int, error) {
		return d.store.Recover(ctx, d.o.Owner, d.lost)
	})
	d.repeat(ctx, func() (int, error) { return d.store.Sweep(ctx) })
}

// repeat calls f until there is nothing more to do, for a while. What is left is done
// soon.
func (d *Dispatcher) repeat(ctx context.Context, f func() (int, error)) {
	const most = 20
	for range most {
		n, err := f()
		if err != nil {
			d.trouble(ctx, err)
			return
		}
		if n == 0 {
			return
		}
	}
	d.Wake()
}

func (d *Dispatcher) trouble(ctx context.Context, err error) {
	if ctx.Err() == nil {
		d.o.Trouble(err)
	}
}

// lost decides about an attempt whose owner is gone.
func (d *Dispatcher) lost(t Task) Outcome {
	p, ok := d.services.Policy(t.Queue)
	if !ok {
		// How often it may be executed is not known now. The next claim will tell.
		return Outcome{State: Pending, Reason: errOwnerGone.Error()}
	}
	return p.retryOr(t, errOwnerGone.Error(), 0, nil)
}

// renew renews the leases, and ends the attempts that are to be ended.
func (d *Dispatcher) renew(ctx context.Context) {
	began := time.Now()
	renewal, err := d.store.Renew(ctx, d.o.Owner)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		if !d.leasedLocked() {
			for _, end := range d.running {
				end(errLost)
			}
		}
		d.trouble(ctx, err)
		return
	}
	d.renewed = began
	for _, a := range renewal.Cancelled {
		if end := d.running[a]; end != nil {
			end(errCancelled)
		}
	}
	for _, a := range renewal.Lost {
		if end := d.running[a]; end != nil {
			end(errLost)
		}
	}
}

// leased reports whether the leases of this process are good for a while. They are not
// if it has stood still, or could not renew them: then other processes may soon
// believe that it is gone, and begin the same tasks.
func (d *Dispatcher) leased() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.leasedLocked()
}

func (d *Dispatcher) leasedLocked() bool { return time.Since(d.renewed) <= LeaseTimeout*3/4 }

// Cancel cancels a task as Store.Cancel does, and ends its attempt at once if this
// process has it.
func (d *Dispatcher) Cancel(ctx context.Context, id string) (Task, error) {
	t, err := d.store.Cancel(ctx, id)
	if err == nil && t.Cancelling {
		d.mu.Lock()
		defer d.mu.Unlock()
		if end := d.running[Attempt{id, t.Attempt}]; end != nil {
			end(errCancelled)
		}
	}
	return t, err
}

// step lets as many tasks wait for slots as there are to execute. It returns how long
// it takes until there may be more.
func (d *Dispatcher) step(ctx, attempts context.Context) time.Duration {
	queues, err := d.store.Queues(ctx)
	if err != nil {
		d.trouble(ctx, err)
		return pauseFrom
	}
	next := LeaseRenewal
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, q := range queues {
		if q.NextDue >= 0 {
			next = min(next, max(q.NextDue, stepPause))
		}
		if wait := d.fill(ctx, attempts, name, q.Runnable); wait > 0 {
			next = min(next, wait)
		}
	}
	for name, l := range d.lines {
		if _, ok := queues[name]; !ok {
			l.shrink(0)
			delete(d.lines, name)
		}
	}
	return next
}

// fill lets tasks of a queue wait for slots. It returns how long the queue is
// paused. The lock is held.
func (d *Dispatcher) fill(ctx, attempts context.Context, queue string, runnable int) time.Duration {
	p, ok := d.services.Policy(queue)
	if !ok {
		runnable = 0
	}
	l := d.lines[queue]
	if l == nil {
		if runnable == 0 {
			return 0
		}
		l = &line{waiting: make(map[*context.CancelFunc]bool)}
		d.lines[queue] = l
	}
	if paused := time.Until(l.paused); paused > 0 {
		return paused
	}
	want := min(runnable, p.Waiting)
	l.shrink(want)
	for len(l.waiting) < want {
		wait, cancel := context.WithCancel(ctx)
		l.waiting[&cancel] = true
		d.life.Go(func() {
			defer cancel()
			d.execute(wait, attempts, queue, l, &cancel)
		})
	}
	return 0
}

// shrink lets no more than that wait.
func (l *line) shrink(to int) {
	for cancel := range l.waiting {
		if len(l.waiting) <= to {
			return
		}
		delete(l.waiting, cancel)
		(*cancel)()
	}
}

// execute waits for a slot and executes a task on it.
func (d *Dispatcher) execute(wait, attempts context.Context, queue string, l *line, place *context.CancelFunc) {
	slot, err := d.services.Slot(wait, queue)
	d.mu.Lock()
	delete(l.waiting, place)
	switch {
	case err == nil:
		l.pause = 0
	case wait.Err() == nil && time.Until(l.paused) <= 0:
		// All that wait are told at the same time.
		l.pause = min(max(pauseFrom, l.pause*2), pauseTo)
		l.paused = time.Now().Add(l.pause)
	}
	d.mu.Unlock()
	if err != nil {
		return
	}
	release := sync.OnceFunc(slot.Release)
	defer release()
	p, ok := d.services.Policy(queue)
	if !ok || wait.Err() != nil || !d.leased() {
		return
	}
	tasks, err := d.store.Claim(wait, d.o.Owner, queue, 1)
	if err != nil {
		d.trouble(wait, err)
		return
	}
	for _, t := range tasks {
		d.attempt(attempts, t, p, slot, release)
	}
	d.Wake()
}

// attempt executes a task and records the outcome.
func (d *Dispatcher) attempt(ctx context.Context, t Task, p Policy, slot Slot, release func()) {
	began := time.Now()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	ctx, done := context.WithTimeoutCause(ctx, p.Timeout, errTimeout)
	defer done()
	key := Attempt{t.ID, t.Attempt}
	d.mu.Lock()
	d.running[key] = end
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.running, key)
	}()
	r := &run{dispatcher: d, task: t, policy: &p, slot: slot}
	defer r.close()
	var o Outcome
	if t.Counted >= p.Attempts {
		// It had all its attempts, and that was not known when the latest one ended, or
		// more were allowed then.
		o = Outcome{State: Dead, Uncounted: true, Reason: t.Reason}
	} else if a, err := r.send(ctx); err != nil {
		o = p.failed(t, r.why(ctx, err))
	} else {
		defer a.Body.Close()
		if o = p.answered(t, a); o.Answer == nil {
			readRest(a.Body)
		}
	}
	d.record(ctx, r, o, release, began)
}

// record records the outcome of an attempt. If it cannot be recorded, it tries again
// without the answer.
func (d *Dispatcher) record(ctx context.Context, r *run, o Outcome, release func(), began time.Time) {
	save := context.WithoutCancel(ctx)
	for {
		t, err := d.store.Settle(save, r.task.ID, r.task.Attempt, o)
		switch body, cut := errors.AsType[*BodyError](err); {
		case err == nil:
			d.o.Report(Report{Task: t, Wait: max(0, r.task.Started.Sub(r.task.Due)), Duration: time.Since(began)})
			return
		case errors.Is(err, ErrStale), errors.Is(err, ErrNotFound), errors.Is(err, ErrClosed):
			return // another one decides, or has
		case cut:
			o = r.policy.failed(r.task, r.why(ctx, fmt.Errorf("the answer could not be read to its end: %w", body.Err)))
			continue
		default:
			d.o.Trouble(fmt.Errorf("the outcome of task %s cannot be recorded: %w", r.task.ID, err))
		}
		release()
		if o.Answer != nil {
			o = r.policy.failed(r.task, fmt.Errorf("its answer could not be stored: %w", err))
		}
		pause(ctx, settlePause)
		if errors.Is(context.Cause(ctx), errStopped) {
			return // the next owner finds it
		}
	}
}

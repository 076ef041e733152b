package process

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// runner is the Scaler: it runs the instances of one revision. Each instance
// has a goroutine that watches over it; without instances there is none.
type runner struct {
	plan atomic.Pointer[plan] // that of the newest configuration; they are all equal
	env  scaler.Env

	// orders is held while an order is carried out. It guards holding, and is
	// taken before mu.
	orders sync.Mutex

	// mu is held while reports are delivered, which keeps them in order.
	mu          sync.Mutex
	instances   []*instance // those that have not ended
	remains     int         // those that have, unasked, while what they left still runs
	stopTimeout time.Duration
	closeBy     time.Time // what is left is killed then; zero before Close
	closed      bool      // no order is taken any more
	silent      bool      // no report is delivered any more

	endFixed   func()      // gives a fixed port back to the pool
	holding    bool        // this runner holds the starter
	unrecorded atomic.Bool // it was said that processes cannot be recorded

	life sync.WaitGroup // the goroutines of the instances
}

// unknownStopTimeout is for what ends before an order has told the service's
// own stop_timeout.
const unknownStopTimeout = 10 * time.Second

func newRunner(p *plan, env scaler.Env) *runner {
	r := &runner{env: env, stopTimeout: unknownStopTimeout, endFixed: func() {}}
	r.plan.Store(p)
	if p.fixed.IsValid() {
		r.endFixed = sync.OnceFunc(ports.keepFree(int(p.fixed.Port())))
	}
	return r
}

// Traits says that instances are processes of this machine, and Caddy's own.
func (r *runner) Traits() scaler.Traits {
	return scaler.Traits{Owned: true, HoldsPlace: true, OrdersBlind: true, SameMachine: true}
}

// Update goes on with an equal plan.
func (r *runner) Update(b scaler.Backend) bool {
	next, ok := b.(*Backend)
	if !ok || next.state == nil {
		return false
	}
	p := next.state.current()
	if p.missing != nil || p.fingerprint() != r.plan.Load().fingerprint() {
		return false
	}
	r.plan.Store(p)
	return true
}

// Scale stops what it is told to stop, and starts what is missing. It never
// chooses an instance to stop: more than ordered stay until they are named.
func (r *runner) Scale(ctx context.Context, order scaler.Order) error {
	r.orders.Lock()
	defer r.orders.Unlock()

	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return &scaler.Failure{
			Reason: scaler.ReasonPlatform, Short: "the backend is closed",
			Detail: "service " + r.env.Service + ", revision " + r.env.Revision + " takes no orders any more",
		}
	}
	r.stopTimeout = order.StopTimeout
	for _, in := range r.instances {
		if slices.Contains(order.Stop, in.id) {
			r.stopLocked(in, order.StopTimeout)
		}
	}
	missing := order.Instances - r.livingLocked()
	r.mu.Unlock()

	// What has been started stays, whatever comes after it.
	var failed error
	for range missing {
		if failed = ctx.Err(); failed != nil {
			break
		}
		if f := r.start(); f != nil {
			failed = f
			break
		}
	}
	r.reportNow()
	return failed
}

// start starts one instance.
func (r *runner) start() *scaler.Failure {
	if !r.holding {
		forks.hold()
		r.holding = true
	}
	local := r.env.Local()
	in := &instance{id: newID(), since: time.Now(), keep: local.Keep, uid: r.plan.Load().socketUser()}
	if f := in.takeEndpoint(r.plan.Load(), local); f != nil {
		in.leaveEndpoint(false, true)
		return f
	}
	if in.instead != nil {
		warnBase(r.env, in.socket, in.instead)
	}
	l, f := in.launchFor(r.plan.Load(), r.env.Service)
	if f == nil {
		f = r.fork(in, l)
	}
	if f != nil {
		in.leaveEndpoint(false, true)
		if in.record != nil {
			r.forget(in)
		}
		return f
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	r.instances = append(r.instances, in)
	r.life.Go(func() {
		defer forks.release()
		r.watch(in)
	})
	if in.appears == nil {
		in.network, in.address = in.where()
	} else {
		r.life.Go(func() { r.awaitSocket(in) })
	}
	return nil
}

// fork starts the process of an instance, with its output and its record.
func (r *runner) fork(in *instance, l launch) *scaler.Failure {
	dir := recordDir(r.env.DataDir)
	in.record = r.newRecord(in)
	r.makeRecordDir(dir)
	// The record comes first, and goes last: it names all files that there may
	// be, so that the next Caddy finds them wherever this one is killed.
	if err := in.record.create(dir); err != nil {
		r.recorded(err)
		// The next Caddy would neither adopt nor end it.
		in.endWithCaddy(&l)
	}
	if f := in.makeEndpoint(r.plan.Load()); f != nil {
		return f
	}
	if f := in.openOutput(r.plan.Load(), dir, r.env); f != nil {
		return f
	}
	abandon := func() {
		in.source.close()
		in.output.finish()
	}
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		abandon()
		return startFailure(err, l, r.env.Service, in.id)
	}
	defer stdin.Close()
	stdout, stderr := in.source.files()
	// Programs that open /dev/stdout themselves need the permission.
	l.account.own(stdout, stderr)
	l.files = []*os.File{stdin, stdout, stderr}
	if in.passed != nil {
		l.files = append(l.files, in.passed.file)
	}

	forks.hold()
	in.child, err = forks.start(l)
	if err != nil {
		forks.release()
		abandon()
		return startFailure(err, l, r.env.Service, in.id)
	}
	in.source.begin()
	r.recorded(in.record.complete(in.child.pid, in.child.startTime))
	if in.keep {
		r.boundOutput()
	}
	return nil
}

// awaitSocket gives the instance its address once its socket is there.
func (r *runner) awaitSocket(in *instance) {
	if !in.appears.wait() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if in.ended {
		return
	}
	in.network, in.address = in.where()
	r.reportLocked()
}

// watch sees an instance to its end, and beyond: to the end of everything
// that it left behind.
func (r *runner) watch(in *instance) {
	defer in.child.close()
	unfollow := orphans.follow(in)
	if !in.child.wait() {
		unfollow()
		r.letGo(in)
		return
	}
	// Until it is reaped, its pid and the id of its group are its own.
	words := in.child.status()
	in.passed.close()
	in.source.drain()
	asked, deadline := r.ended(in, words)

	gone := in.child.endRest(in.id, r.plan.Load().stopSignal, asked, deadline)
	in.leaveEndpoint(true, gone)
	unfollow()
	r.restEnded(in, asked)
	in.child.reap()
	in.source.close()
	in.output.finish()
	if in.keep {
		trimNoMore(recordDir(r.env.DataDir))
	}
	if !gone {
		// The record stays: the next Caddy tries again.
		r.env.Logger().Warn("processes that the instance left behind do not end", slog.String("instance", in.id))
		return
	}
	r.forget(in)
}

// ended takes note of the end of an instance's main process. If nothing has
// asked for it, it is reported at once: waiting requests get the reason. If it
// was asked for, the instance stops until the rest of it has ended, too. ended
// returns whether it was asked for, and until when what it left behind may take
// to end.
func (r *runner) ended(in *instance, words string) (asked bool, deadline func() time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	in.ended = true
	if in.killTimer != nil {
		in.killTimer.Stop()
	}
	if in.appears != nil {
		in.appears.close()
	}
	killAt := in.killAt
	if !in.stopping {
		in.failure = exitFailure(words, in.output.tail())
		killAt = time.Now().Add(r.stopTimeout)
		r.remains++
		r.goneLocked(in)
	}
	return in.stopping, func() time.Time {
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.closeBy.IsZero() && r.closeBy.Before(killAt) {
			return r.closeBy
		}
		return killAt
	}
}

// restEnded reports that nothing of an instance is left that could be in the way
// of the next one: a process that holds a lock, or its port.
func (r *runner) restEnded(in *instance, asked bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if asked {
		r.goneLocked(in)
		return
	}
	r.remains--
	r.reportLocked()
}

// goneLocked reports for the last time on an instance.
func (r *runner) goneLocked(in *instance) {
	in.gone = true
	r.reportLocked()
	r.instances = slices.DeleteFunc(r.instances, func(i *instance) bool { return i == in })
}

// letGo ends the watch over an instance that outlives this Caddy. Its record
// and its port stay.
func (r *runner) letGo(in *instance) {
	in.passed.close()
	r.mu.Lock()
	if in.appears != nil {
		in.appears.close()
	}
	r.mu.Unlock()
	in.source.close()
	in.output.finish()
}

// stopLocked asks an instance to end, and kills it when its time is over.
func (r *runner) stopLocked(in *instance, timeout time.Duration) {
	killAt := time.Now().Add(timeout)
	switch {
	case in.ended:
	case in.stopping:
		if killAt.Before(in.killAt) {
			in.killAt = killAt
			in.killTimer.Reset(timeout)
		}
	default:
		in.stopping, in.killAt = true, killAt
		if in.adopted {
			// The processes have to be found first.
			r.life.Go(func() { in.child.stop(r.plan.Load().stopSignal) })
		} else {
			in.child.stop(r.plan.Load().stopSignal)
		}
		in.killTimer = time.AfterFunc(timeout, in.child.kill)
	}
}

// Close stops all instances together and waits for their end, those aside
// that were started to outlive this Caddy.
func (r *runner) Close(ctx context.Context, stopTimeout time.Duration) error {
	r.orders.Lock()
	defer r.orders.Unlock()

	r.mu.Lock()
	if !r.closed {
		r.closed, r.closeBy = true, time.Now().Add(stopTimeout)
		for _, in := range r.instances {
			if in.keep && !in.stopping {
				in.child.detach()
			} else {
				r.stopLocked(in, stopTimeout)
			}
		}
		r.reportLocked()
	}
	r.mu.Unlock()

	r.endFixed()
	holding := r.holding
	r.holding = false
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.life.Wait()
		if holding {
			forks.release()
		}
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		// What still lives is killed at its deadline all the same.
		err = ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.silent = true
	return err
}

// livingLocked counts the instances that were not told to stop.
func (r *runner) livingLocked() int {
	n := 0
	for _, in := range r.instances {
		if !in.stopping && !in.ended {
			n++
		}
	}
	return n
}

// reportNow delivers a report.
func (r *runner) reportNow() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reportLocked()
}

// reportLocked delivers a report. The lock keeps reports in order.
func (r *runner) reportLocked() {
	if r.silent {
		return
	}
	report := scaler.Report{
		Instances: make([]scaler.Instance, len(r.instances)),
		Desired:   r.livingLocked(),
		Remains:   r.remains,
	}
	for i, in := range r.instances {
		report.Instances[i] = in.reported()
	}
	r.env.Report(report)
}

// recordDir is where the records are, and the output of kept instances.
func recordDir(dataDir string) string { return filepath.Join(dataDir, "process") }

func (r *runner) newRecord(in *instance) *record {
	network, address := in.where()
	var output []string
	if in.keep {
		output = outputFilesOf(recordDir(r.env.DataDir), in.id).all()
	}
	return &record{
		Instance: in.id, Service: r.env.Service, Revision: r.env.Revision, Fingerprint: r.plan.Load().fingerprint(),
		Network: network, Address: address, Since: in.since,
		StopSignal: int(r.plan.Load().stopSignal), Keep: in.keep, Socket: in.socket, Output: output,
	}
}

// makeRecordDir makes the directory for records and output. If that fails,
// what is written there fails and says so.
func (r *runner) makeRecordDir(dir string) { _ = os.MkdirAll(dir, 0o700) }

// recorded says, once, that records cannot be written. The instance is started
// all the same: a full disk should not keep a service asleep.
func (r *runner) recorded(err error) {
	if err == nil {
		return
	}
	if r.unrecorded.Swap(true) {
		return
	}
	r.env.Logger().Warn("processes cannot be recorded, so they end with Caddy, with on_exit keep too; if Caddy is killed, what they have forked away is not found by the next Caddy; make room on the disk, and the directory writable",
		slog.String("dir", recordDir(r.env.DataDir)), slog.Any("error", err))
}

// forget removes the record of an instance.
func (r *runner) forget(in *instance) {
	if err := in.record.remove(recordDir(r.env.DataDir)); err != nil {
		r.env.Logger().Warn("the record of an instance that has ended cannot be removed",
			slog.String("instance", in.id), slog.Any("error", err))
	}
}

// Interface guards.
var (
	_ scaler.Scaler      = (*runner)(nil)
	_ scaler.Confirmer   = (*runner)(nil)
	_ scaler.PeerChecker = (*runner)(nil)
	_ scaler.Updater     = (*runner)(nil)
)

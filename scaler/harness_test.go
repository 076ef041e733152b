package scaler

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/reserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// platform is a scripted backend: instances become ready by its word, or end
// when the test says so. All in the time of the bubble. It reports with its
// lock held, as backends may.
type platform struct {
	mu  sync.Mutex
	env Env

	local     bool
	trims     bool // what exists above want is none of the loop's business
	openErr   error
	silent    bool          // it says nothing when it is opened
	ages      time.Duration // what runs when it is opened was started so long ago, by an earlier Caddy
	wasReady  bool          // and was ready there
	startTime time.Duration // from existence to readiness; negative is never
	lag       time.Duration // from an accepted order to the instance (remote)
	lifetime  time.Duration // from existence to its end by itself; 0 is for ever
	stopTime  time.Duration // from the stop order to the end
	noAddress bool
	hold      *Hold         // what somebody else has a say in
	delay     *Failure      // what instances that start wait for
	ranked    bool          // the youngest is stopped first, whoever is named
	blame     *Failure      // what instances that start are said to suffer from
	fail      *Failure      // Scale fails with it
	failStop  *Failure      // Scale fails with it if it has to stop something
	gate      chan struct{} // Scale waits for it
	deaf      bool          // and does not listen to its context meanwhile
	meanwhile func()        // what somebody else does before Scale returns
	address   string        // of all instances, a socket; empty is one where nobody listens

	n         int
	want      int // what a remote platform works towards
	trouble   *Failure
	instances map[string]*Instance
	orders    []Order
	most      int // the most instances, those that stop not counted
	closed    int
}

func (p *platform) Fingerprint() string { return fmt.Sprintf("%p", p) }
func (p *platform) Redacted() any       { return nil }

func (p *platform) Traits() Traits {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Traits{Local: p.local, Trims: p.trims}
}

func (p *platform) Open(env Env) (Scaler, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.openErr != nil {
		return nil, p.openErr
	}
	p.env = env
	if p.instances == nil {
		p.instances = make(map[string]*Instance)
	}
	for range p.want {
		p.start()
	}
	if p.ages > 0 {
		for _, i := range p.instances {
			i.Adopted, i.WasReady, i.Since = true, p.wasReady, i.Since.Add(-p.ages)
		}
	}
	if !p.silent {
		p.tell()
	}
	return p, nil
}

// tell reports. The lock is held.
func (p *platform) tell(ended ...Instance) {
	rep := Report{Instances: ended, Trouble: p.trouble, Desired: p.want, Hold: p.hold}
	for _, id := range slices.Sorted(maps.Keys(p.instances)) {
		rep.Instances = append(rep.Instances, *p.instances[id])
	}
	living := p.living()
	if p.local {
		rep.Desired = living
	}
	p.most = max(p.most, living)
	p.env.Report(rep)
}

func (p *platform) living() int {
	n := 0
	for _, i := range p.instances {
		if i.Phase != PhaseStopping {
			n++
		}
	}
	return n
}

func (p *platform) Scale(ctx context.Context, o Order) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.orders = append(p.orders, o)
	if gate := p.gate; gate != nil {
		done := ctx.Done()
		if p.deaf {
			done = nil
		}
		p.mu.Unlock()
		var err error
		select {
		case <-gate:
		case <-done:
			err = ctx.Err()
		}
		p.mu.Lock()
		if err != nil {
			return err
		}
	}
	if p.fail != nil {
		return p.fail
	}
	if p.failStop != nil && len(o.Stop) > 0 {
		return p.failStop
	}
	for _, id := range o.Stop {
		p.stop(id)
	}
	p.want = o.Instances
	if p.local || p.lag == 0 {
		p.fill()
	} else {
		time.AfterFunc(p.lag, func() { p.do(p.fill) })
	}
	p.tell()
	if f := p.meanwhile; f != nil {
		p.meanwhile = nil
		f()
		p.tell()
	}
	return nil
}

// fill starts what is missing. The lock is held.
func (p *platform) fill() {
	for p.living() < p.want {
		p.start()
	}
}

// do changes something and reports it.
func (p *platform) do(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.tell()
}

func (p *platform) start() {
	p.n++
	id := fmt.Sprintf("%s-%d", p.env.Revision, p.n)
	i := &Instance{ID: id, Network: "unix", Address: cmp.Or(p.address, "/nonexistent/usher"), Since: time.Now(), Failure: p.blame, Delay: p.delay}
	if p.ranked {
		i.StopRank = p.n
	}
	if p.noAddress {
		i.Network, i.Address = "", ""
	}
	p.instances[id] = i
	if p.startTime >= 0 {
		time.AfterFunc(p.startTime, func() { p.phase(id, PhaseReady) })
	}
	if p.lifetime > 0 {
		time.AfterFunc(p.lifetime, func() { p.end(id, &Failure{Reason: ReasonExit, Short: "exit status 1"}) })
	}
}

// stop makes an instance stop. The lock is held.
func (p *platform) stop(id string) {
	i := p.instances[id]
	if i == nil || i.Phase == PhaseStopping {
		return
	}
	if p.stopTime == 0 {
		delete(p.instances, id)
		return
	}
	i.Phase = PhaseStopping
	time.AfterFunc(p.stopTime, func() { p.end(id, nil) })
}

// phase sets the phase of an instance, unless it is on its way out.
func (p *platform) phase(id string, ph Phase) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := p.instances[id]; i != nil && i.Phase != PhaseStopping {
		i.Phase = ph
		p.tell()
	}
}

// end ends an instance, which was not asked to if f is not nil.
func (p *platform) end(id string, f *Failure) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.instances[id]
	if i == nil {
		return
	}
	delete(p.instances, id)
	ended := *i
	ended.Phase, ended.Failure = PhaseEnded, f
	p.tell(ended)
}

// foreign is somebody else who changes the number of instances.
func (p *platform) foreign(n int) {
	p.do(func() {
		p.want = n
		p.fill()
		ids := slices.Sorted(maps.Keys(p.instances))
		for _, id := range slices.Backward(ids) {
			if p.living() > n {
				p.stop(id)
			}
		}
	})
}

func (p *platform) Close(context.Context, time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed++
	return nil
}

// ordered returns the numbers that were ordered so far.
func (p *platform) ordered() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ns []int
	for _, o := range p.orders {
		ns = append(ns, o.Instances)
	}
	return ns
}

func (p *platform) isClosed() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// ids returns the instances that are not stopping.
func (p *platform) ids() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ids []string
	for id, i := range p.instances {
		if i.Phase != PhaseStopping {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
	return ids
}

func defaults() Settings {
	return Settings{
		Max: 1, Concurrency: 100, IdleTimeout: 5 * time.Minute, StartTimeout: 2 * time.Minute,
		DrainTimeout: 30 * time.Second, StopTimeout: 10 * time.Second,
		Check: Check{Kind: CheckPlatform}, Policy: Queue{},
	}
}

// with returns the defaults, changed.
func with(change func(*Settings)) Settings {
	s := defaults()
	change(&s)
	return s
}

// bench is a loop with all that it needs around it.
type bench struct {
	*Loop
	t   *testing.T
	p   *platform
	rec *recorder
	res *reserver.Service
}

type benchOption func(*bench, *reserver.Options)

func maxWaiting(n int) benchOption {
	return func(_ *bench, o *reserver.Options) { o.MaxWaiting = n }
}

func newBench(t *testing.T, s Settings, p *platform, b *Budget, opts ...benchOption) *bench {
	t.Helper()
	x := bareBench(t, s, p, b, opts...)
	if err := x.Adopt(p); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return x
}

// Apply applies settings that the test may go on changing.
func (x *bench) Apply(s Settings) { x.Loop.Apply(&s) }

// bareBench returns a bench whose loop has no backend yet.
func bareBench(t *testing.T, s Settings, p *platform, b *Budget, opts ...benchOption) *bench {
	t.Helper()
	if b == nil {
		b = NewBudget(8)
	}
	x := &bench{t: t, p: p, rec: &recorder{}}
	o := reserver.Options{MaxWaiting: 1000}
	for _, opt := range opts {
		opt(x, &o)
	}
	x.Loop = NewLoop(Env{Service: "web", Logger: zap.NewNop}, &s, b, x.rec)
	x.res = reserver.New(o, nil, x.Hooks())
	x.Attach(x.res)
	t.Cleanup(func() {
		if err := x.Loop.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if n := b.Used(); n != 0 {
			t.Errorf("%d places of the budget never came back", n)
		}
	})
	return x
}

// active says whether the loop has a goroutine.
func (b *bench) active() bool {
	synctest.Wait()
	b.run.Lock()
	defer b.run.Unlock()
	return b.run.poked != nil
}

// is fails the test unless the service is in this state.
func (b *bench) is(want State) {
	b.t.Helper()
	synctest.Wait()
	if st := b.Status(); st.State != want {
		b.t.Fatalf("%s: want %s, is %+v\n%s", time.Now().Format("15:04:05.000"), want, st, b.story())
	}
}

func (b *bench) story() string {
	b.rec.mu.Lock()
	defer b.rec.mu.Unlock()
	return strings.Join(b.rec.events, "\n")
}

// run has so many instances that are not stopping.
func (b *bench) runs(n int) {
	b.t.Helper()
	synctest.Wait()
	if ids := b.p.ids(); len(ids) != n {
		b.t.Fatalf("want %d instances, have %v\n%s", n, ids, b.story())
	}
}

// request asks for a slot.
func (b *bench) request() (*reserver.Reservation, error) {
	r, _, err := b.ask()
	return r, err
}

func (b *bench) ask() (r *reserver.Reservation, has bool, err error) {
	r = new(reserver.Reservation)
	has, err = b.res.Reserve(r, false)
	return r, has, err
}

// waits is a request that is expected to wait.
func (b *bench) waits() *reserver.Reservation {
	b.t.Helper()
	r, has, err := b.ask()
	if err != nil || has {
		b.t.Fatalf("does not wait: %v, %v\n%s", has, err, b.story())
	}
	return r
}

// granted returns when r has its slot.
func (b *bench) granted(r *reserver.Reservation) {
	b.t.Helper()
	if err := b.answer(r); err != nil {
		b.t.Fatalf("%v\n%s", err, b.story())
	}
}

// answer waits for what r is told.
func (b *bench) answer(r *reserver.Reservation) error {
	b.t.Helper()
	select {
	case err := <-r.Granted():
		return err
	case <-time.After(time.Hour):
		b.t.Fatalf("nobody tells the waiter anything\n%s", b.story())
		return nil
	}
}

// inside is a request that has a slot.
func (b *bench) inside() *reserver.Reservation {
	b.t.Helper()
	r, has, err := b.ask()
	if err != nil {
		b.t.Fatalf("%v\n%s", err, b.story())
	}
	if !has {
		b.granted(r)
	}
	return r
}

// comesAndGoes is a request that is answered at once.
func (b *bench) comesAndGoes() { b.t.Helper(); b.inside().Release(reserver.Answered) }

// bubble runs a test in its own time.
func bubble(t *testing.T, f func(t *testing.T)) { t.Helper(); synctest.Test(t, f) }

// waitIdle lets everything happen that is due now.
func waitIdle() { synctest.Wait() }

func exit(short string) *Failure { return &Failure{Reason: ReasonExit, Short: short} }

// idsLocked is ids for those who hold the lock.
func (p *platform) idsLocked() []string { return slices.Sorted(maps.Keys(p.instances)) }

// set changes something without reporting it.
func (p *platform) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// started returns how many instances were started so far.
func (p *platform) started() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

// peak returns the most instances that there were, those that stop not counted.
func (p *platform) peak() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.most
}

package control

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/backendtest"
	"github.com/caddy-usher/usher/scaler/policies"
)

func TestMain(m *testing.M) {
	moved = noteMove
	goleak.VerifyTestMain(m)
}

// platform is the fake backend of all tests, in the words of the tests of the
// loop. Its fields may be set before it is opened; later they are changed within
// set and do only, where want, orders and the instances are those of the moment.
type platform struct {
	fake   backendtest.Fake
	opened scaler.Scaler

	local     bool
	endpoint  string
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
	hold      *scaler.Hold    // what another program has a say in
	delay     *scaler.Failure // what instances that start wait for
	ranked    bool            // the youngest is stopped first, whatever is named
	suffers   *scaler.Failure // what instances that start are said to suffer from
	fail      *scaler.Failure // Scale fails with it
	failStop  *scaler.Failure // Scale fails with it if it has to stop something
	gate      chan struct{}   // Scale waits for it
	deaf      bool            // and does not listen to its context meanwhile
	remains   int             // ended instances of which something still runs
	meanwhile func()          // what another program does before Scale returns
	address   string          // of all instances, a socket; empty is one where nothing listens
	trouble   *scaler.Failure

	want   int // what the platform works towards
	orders []scaler.Order
}

func (p *platform) Fingerprint() string { return fmt.Sprintf("%p", p) }
func (p *platform) Redacted() any       { return nil }

func (p *platform) Open(env scaler.Env) (scaler.Scaler, error) {
	p.set(func() {})
	opened, err := p.fake.Open(env)
	if err != nil {
		return nil, err
	}
	p.opened = opened
	return p, nil
}

func (p *platform) Traits() scaler.Traits { return p.opened.Traits() }

func (p *platform) Scale(ctx context.Context, o scaler.Order) error { return p.opened.Scale(ctx, o) }

func (p *platform) Close(ctx context.Context, d time.Duration) error { return p.opened.Close(ctx, d) }

// set changes something without reporting it.
func (p *platform) set(f func()) { p.fake.Set(func() { p.changing(f) }) }

// do changes something and reports it.
func (p *platform) do(f func()) { p.fake.Do(func() { p.changing(f) }) }

// changing brings what f changes to the fake. The lock is held.
func (p *platform) changing(f func()) {
	w := p.fake.Workload()
	if w != nil {
		p.want, p.orders = w.Want, w.Orders()
	}
	f()
	if w != nil {
		w.Want = p.want
	}
	k := &p.fake
	k.Traits = scaler.Traits{Owned: p.local, HoldsPlace: p.local, OrdersBlind: p.local, SameMachine: p.local, Trims: p.trims, Platform: p.endpoint}
	k.OneWorkload, k.Present, k.Age, k.WasReady = true, p.want, p.ages, p.wasReady
	k.OpenErr, k.Silent, k.Born = p.openErr, p.silent, p.born
	k.StartTime, k.Lifetime, k.StopTime, k.Lag = p.startTime, p.lifetime, p.stopTime, p.lag
	k.Fail, k.FailStop = asError(p.fail), asError(p.failStop)
	k.Gate, k.Deaf, k.Trouble, k.Hold, k.Remains = p.gate, p.deaf, p.trouble, p.hold, p.remains
	if p.meanwhile != nil {
		meanwhile := p.meanwhile
		k.Meanwhile = func() { p.changing(meanwhile) }
		p.meanwhile = nil
	}
}

// asError is f as an error, of which none is nil.
func asError(f *scaler.Failure) error {
	if f == nil {
		return nil
	}
	return f
}

// born changes what is reported of a new instance. The lock is held.
func (p *platform) born(i *scaler.Instance, number int) {
	i.Failure, i.Delay = p.suffers, p.delay
	if p.ranked {
		i.StopRank = number
	}
	if p.address != "" {
		i.Address = p.address
	}
	if p.noAddress {
		i.Network, i.Address = "", ""
	}
}

// What follows is for functions within set and do.

// instance returns an instance; nil if there is none.
func (p *platform) instance(id string) *scaler.Instance { return p.fake.Workload().Instance(id) }

// all returns all instances, those that stop included, the oldest first.
func (p *platform) all() []string {
	if w := p.fake.Workload(); w != nil {
		return w.IDs()
	}
	return nil
}

func (p *platform) living() int { return p.fake.Workload().Living() }

func (p *platform) start() { p.fake.Workload().Start() }

func (p *platform) stop(id string) { p.fake.Workload().Stop(id) }

// fill starts what is missing of want.
func (p *platform) fill() {
	w := p.fake.Workload()
	w.Want = p.want
	w.Fill()
}

// What follows is for tests.

// phase sets the phase of an instance, unless it is on its way out.
func (p *platform) phase(id string, ph scaler.Phase) {
	p.fake.Instance(id, func(i *scaler.Instance) { i.Phase = ph })
}

// end ends an instance, which was not asked to if f is not nil.
func (p *platform) end(id string, f *scaler.Failure) { p.fake.End(id, f) }

// foreign is another program that changes the number of instances.
func (p *platform) foreign(n int) {
	p.do(func() {
		p.want = n
		p.fill()
		for _, id := range slices.Backward(p.all()) {
			if p.living() > n {
				p.stop(id)
			}
		}
	})
}

// ordered returns the numbers that were ordered so far.
func (p *platform) ordered() (ns []int) {
	for _, o := range p.fake.Orders() {
		ns = append(ns, o.Instances)
	}
	return ns
}

func (p *platform) isClosed() int { return p.fake.Closed() }

// ids returns the instances that do not stop, the oldest first.
func (p *platform) ids() []string { return p.fake.IDs() }

// exist returns how many instances there are, those that stop included.
func (p *platform) exist() (n int) {
	p.set(func() { n = len(p.all()) })
	return n
}

// started returns how many instances were started so far.
func (p *platform) started() int { return p.fake.Started() }

// peak returns the most instances that there were, those that stop not counted.
func (p *platform) peak() int { return p.fake.Most() }

func defaults() Settings {
	return Settings{
		Max: 1, Concurrency: 100, IdleTimeout: 5 * time.Minute, StartTimeout: 2 * time.Minute,
		DrainTimeout: 30 * time.Second, StopTimeout: 10 * time.Second,
		Check: Check{Kind: CheckPlatform}, Policy: policies.Queue{},
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
	if err := x.SetBackend(p); err != nil {
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
	x.Loop = NewLoop(scaler.Env{Service: "web", Logger: quiet}, &s, b, new(Timers), x.rec)
	x.res = reserver.New(o, nil, x.Hooks())
	x.Attach(x.res)
	t.Cleanup(func() {
		if err := x.Loop.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if n := b.used(); n != 0 {
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
	has, err = b.res.Reserve(r, reserver.Ask{})
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
		b.t.Fatalf("the waiting request gets no verdict\n%s", b.story())
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

func exit(short string) *scaler.Failure {
	return &scaler.Failure{Reason: scaler.ReasonExit, Short: short}
}

// quiet is a logger for what a test does not look at.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

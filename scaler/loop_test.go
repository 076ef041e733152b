package scaler

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/reserver"
)

// platform is a scripted backend: instances become ready by its word, or end
// when the test says so. All in the time of the bubble.
type platform struct {
	mu        sync.Mutex
	env       Env
	local     bool
	startTime time.Duration // from the order to readiness
	fail      *Failure      // Scale fails with it
	n         int
	instances map[string]*Instance
	orders    []Order
	opened    int
	closed    bool
}

func (p *platform) Fingerprint() string { return "p" }
func (p *platform) Redacted() any       { return nil }
func (p *platform) Traits() Traits      { return Traits{Local: p.local} }

func (p *platform) Open(env Env) (Scaler, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.env = env
	p.opened++
	if p.instances == nil {
		p.instances = make(map[string]*Instance)
	}
	env.Report(p.report())
	return p, nil
}

func (p *platform) report(extra ...Instance) Report {
	rep := Report{Instances: extra}
	for _, i := range p.instances {
		rep.Instances = append(rep.Instances, *i)
		if i.Phase != PhaseStopping {
			rep.Desired++
		}
	}
	return rep
}

func (p *platform) Scale(_ context.Context, o Order) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.orders = append(p.orders, o)
	if p.fail != nil {
		return p.fail
	}
	for _, id := range o.Stop {
		delete(p.instances, id)
	}
	for len(p.instances) < o.Instances {
		p.start()
	}
	p.env.Report(p.report())
	return nil
}

func (p *platform) start() {
	p.n++
	id := fmt.Sprintf("%s-%d", p.env.Revision, p.n)
	p.instances[id] = &Instance{ID: id, Network: "tcp", Address: "127.0.0.1:1", Since: time.Now()}
	if p.startTime >= 0 {
		time.AfterFunc(p.startTime, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			if i := p.instances[id]; i != nil {
				i.Phase = PhaseReady
				p.env.Report(p.report())
			}
		})
	}
}

func (p *platform) end(id string, f *Failure) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := *p.instances[id]
	delete(p.instances, id)
	i.Phase, i.Failure = PhaseEnded, f
	p.env.Report(p.report(i))
}

func (p *platform) Close(context.Context, time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return nil
}

type recorder struct {
	mu     sync.Mutex
	events []string
}

func (r *recorder) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

func (r *recorder) Decided(d Decision)               { r.add("target %d->%d: %s", d.From, d.To, d.Reason) }
func (r *recorder) StateChanged(from, to State)      { r.add("%s->%s", from, to) }
func (r *recorder) InstanceChanged(i InstanceStatus) { r.add("%s %s", i.ID, i.State) }
func (r *recorder) StartFailed(f *Failure)           { r.add("failed %s", f.Short) }
func (r *recorder) ColdStarted(d time.Duration)      { r.add("cold %v", d) }
func (r *recorder) PlatformUp(up bool, _ *Failure)   { r.add("up %v", up) }

func defaults() Settings {
	return Settings{
		Max: 1, Concurrency: 100, IdleTimeout: 5 * time.Minute, StartTimeout: 2 * time.Minute,
		DrainTimeout: 30 * time.Second, StopTimeout: 10 * time.Second,
		Check: Check{Kind: CheckPlatform}, Policy: Queue{},
	}
}

type bench struct {
	*Loop
	p   *platform
	rec *recorder
	res *reserver.Service
}

func newBench(t *testing.T, s Settings, p *platform, b *Budget) *bench {
	t.Helper()
	if b == nil {
		b = NewBudget(8)
	}
	rec := &recorder{}
	l := NewLoop(Env{Service: "web", Logger: zap.NewNop()}, s, b, rec)
	res := reserver.New(reserver.Options{MaxWaiting: 1000}, nil, l.Hooks())
	l.Attach(res)
	if err := l.Adopt(p); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(context.Background()) })
	return &bench{Loop: l, p: p, rec: rec, res: res}
}

func (b *bench) active() bool {
	b.run.Lock()
	defer b.run.Unlock()
	return b.run.active
}

func TestWakesOnTheFirstRequestAndSleepsAfterIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, defaults(), &platform{local: true, startTime: 2 * time.Second}, nil)
		synctest.Wait()
		if b.active() {
			t.Fatal("a sleeping service has a goroutine")
		}
		var r reserver.Reservation
		if ok, err := b.res.Reserve(&r, false); ok || err != nil {
			t.Fatal(ok, err)
		}
		start := time.Now()
		if err := <-r.Granted(); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 2*time.Second {
			t.Fatalf("granted after %v", d)
		}
		if st := b.Status(); st.State != Awake || st.ColdStart != 2*time.Second {
			t.Fatalf("%+v", st)
		}
		time.Sleep(time.Hour)
		if st := b.Status(); st.State != Awake {
			t.Fatalf("stopped with a request inside: %+v", st)
		}
		r.Release(reserver.Answered)
		time.Sleep(5*time.Minute - time.Millisecond)
		if st := b.Status(); st.State != Awake {
			t.Fatalf("asleep too early: %+v", st)
		}
		time.Sleep(2 * time.Millisecond)
		if st := b.Status(); st.State != Asleep || len(b.p.instances) != 0 {
			t.Fatalf("%+v", st)
		}
		synctest.Wait()
		if b.active() {
			t.Fatal("a sleeping service has a goroutine")
		}
		t.Log(b.rec.events)
	})
}

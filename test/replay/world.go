package main

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/backendtest"
	"github.com/caddy-usher/usher/scaler/control"
)

// A Setup is what a trace is replayed with.
type Setup struct {
	Policy      func(*world) scaler.Policy
	IdleTimeout time.Duration
	StartTime   time.Duration // the mean; single starts spread by a fifth
	Max         int
	Seed        uint64
}

// maxInstances bounds every policy. No trace needs so many at once.
const maxInstances = 1000

// world is a service with its loop, a platform and clients, in a bubble.
type world struct {
	loop  *control.Loop
	res   *reserver.Service
	trace Trace

	began time.Time
	left  sync.WaitGroup // requests that are not over

	mu        sync.Mutex
	instances map[string]*life
	ended     []*life
	waits     waits
	cold      int // requests that waited for a start
	inside    int // demand, and the integral of it
	integral  float64
	changedAt time.Time
	peak      int
	decisions []control.Decision
}

// life is one instance.
type life struct {
	born, ready, died time.Time
	inside            int
	busySince         time.Time
	busy              time.Duration
}

// replay lets the trace pass, and returns what it was like.
func replay(t *testing.T, trace Trace, s Setup) (res Result) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, trace, s)
		w.clients()
		w.left.Wait()
		// What is kept to the end of the trace is paid for.
		if rest := time.Until(w.began.Add(trace.Length)); rest > 0 {
			time.Sleep(rest)
		}
		res = w.result()
		if err := w.loop.Close(context.Background()); err != nil {
			t.Fatalf("%s: %v", trace.Name, err)
		}
	})
	return res
}

// start times spread around their mean as those of containers do.
const startSpread = 0.2

func newWorld(t *testing.T, trace Trace, s Setup) *world {
	w := &world{trace: trace, began: time.Now(), changedAt: time.Now(), instances: make(map[string]*life)}
	rnd := rand.New(rand.NewPCG(s.Seed, 1))
	platform := &backendtest.Fake{
		Traits: scaler.Traits{Owned: true, OrdersBlind: true},
		Place: func(id string) (network, address string, stop func()) {
			w.born(id)
			return "unix", "/nonexistent/usher-" + id, func() { w.died(id) }
		},
		NextStart: func() time.Duration {
			return time.Duration(float64(s.StartTime) * math.Exp(startSpread*rnd.NormFloat64()-startSpread*startSpread/2))
		},
	}
	if s.Max == 0 {
		s.Max = maxInstances
	}
	w.loop = control.NewLoop(
		scaler.Env{Service: "replayed", Logger: func() *slog.Logger { return quiet }},
		&control.Settings{
			Max: s.Max, Concurrency: trace.Concurrency, IdleTimeout: s.IdleTimeout,
			StartTimeout: time.Hour, DrainTimeout: time.Hour, StopTimeout: time.Second,
			Check: control.Check{Kind: control.CheckPlatform}, Policy: s.Policy(w),
		},
		control.NewBudget(scaler.MaxInstances), new(control.Timers), (*observer)(w),
	)
	w.res = reserver.New(reserver.Options{MaxWaiting: scaler.MaxWaiting}, nil, w.loop.Hooks())
	w.loop.Attach(w.res)
	if err := w.loop.SetBackend(platform); err != nil {
		t.Fatal(err)
	}
	return w
}

var quiet = slog.New(slog.DiscardHandler)

// clients sends the requests of the trace.
func (w *world) clients() {
	for _, r := range w.trace.Requests {
		if d := time.Until(w.began.Add(r.At)); d > 0 {
			time.Sleep(d)
		}
		w.arrive(r.Service)
	}
}

func (w *world) arrive(service time.Duration) {
	w.left.Add(1)
	w.count(1)
	came := time.Now()
	r := new(reserver.Reservation)
	switch has, err := w.res.Reserve(r, reserver.Ask{}); {
	case err != nil:
		panic(fmt.Sprintf("%s: a request is refused: %v", w.trace.Name, err))
	case has:
		w.enter(r, came, service, false)
	default:
		go func() {
			if err := <-r.Granted(); err != nil {
				panic(fmt.Sprintf("%s: a request is refused: %v", w.trace.Name, err))
			}
			w.enter(r, came, service, true)
		}()
	}
}

// enter takes note that a request has its slot, and ends it in good time.
func (w *world) enter(r *reserver.Reservation, came time.Time, service time.Duration, waited bool) {
	now := time.Now()
	id := r.Instance().ID
	w.mu.Lock()
	w.waits.observe(now.Sub(came))
	i := w.instances[id]
	if waited && (i.ready.IsZero() || !i.ready.Before(came)) {
		w.cold++ // it waited for the start of this one
	}
	if i.inside++; i.inside == 1 {
		i.busySince = now
	}
	w.mu.Unlock()
	time.AfterFunc(service, func() {
		w.mu.Lock()
		if i.inside--; i.inside == 0 {
			i.busy += time.Since(i.busySince)
		}
		w.mu.Unlock()
		if waited {
			w.loop.Served(service)
		}
		w.count(-1)
		r.Release(reserver.Answered)
		w.left.Done()
	})
}

// count changes the number of requests that wait or are inside.
func (w *world) count(d int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.advance()
	w.inside += d
}

// advance brings the integral of demand up to now. The lock is held.
func (w *world) advance() {
	now := time.Now()
	w.integral += float64(w.inside) * now.Sub(w.changedAt).Seconds()
	w.changedAt = now
}

// demandIntegral is the integral of the demand since the beginning, in
// request-seconds. Other systems average exactly; they get it from here.
func (w *world) demandIntegral() float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.advance()
	return w.integral
}

func (w *world) born(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.instances[id] = &life{born: time.Now()}
	w.peak = max(w.peak, len(w.instances))
}

func (w *world) died(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.instances[id]
	i.died = time.Now()
	w.ended = append(w.ended, i)
	delete(w.instances, id)
}

// observer takes note of what the loop does.
type observer world

// Observe implements control.Observer.
func (o *observer) Observe(e control.Event) {
	w := (*world)(o)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch e := e.(type) {
	case control.Decision:
		w.decisions = append(w.decisions, e)
	case control.InstanceStatus:
		if e.State != control.InstanceReady {
			return
		}
		if i := w.instances[e.ID]; i != nil && i.ready.IsZero() {
			i.ready = time.Now()
		}
	}
}

package control

import (
	"context"
	"errors"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/policies"
)

// gauge is a metric that the test sets.
type gauge struct {
	mu    sync.Mutex
	value float64
	err   error
	of    scaler.Observed
}

func (g *gauge) Read(_ context.Context, of scaler.Observed) (float64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.of = of
	return g.value, g.err
}

// set changes what is read from now on.
func (g *gauge) set(value float64, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.value, g.err = value, err
}

func (g *gauge) Interval() time.Duration { return 2 * time.Second }

func TestAMetricScalesAServiceThatNoRequestAskedFor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := &gauge{value: 30}
		b := newBench(t, with(func(s *Settings) { s.Max, s.IdleTimeout = 8, time.Minute }), &platform{local: true, startTime: time.Second}, nil)
		b.Apply(with(func(s *Settings) {
			s.Max, s.IdleTimeout = 8, time.Minute
			s.Policy = policies.Thermostat{Source: g, Value: 10}
		}))
		time.Sleep(time.Minute)
		b.runs(8)
		g.set(math.NaN(), nil)
		time.Sleep(10 * time.Minute)
		b.runs(8)
		g.set(0, errors.New("the source is gone"))
		time.Sleep(10 * time.Minute)
		b.runs(8)
		if why := b.Status().Outlook.Reason; why != "starved: the metric cannot be read, so 8 stay: the source is gone, and max is 8" &&
			why != "the metric cannot be read, so 8 stay: the source is gone" {
			t.Errorf("the reason is %q", why)
		}
		g.set(0, nil)
		time.Sleep(10 * time.Minute)
		b.runs(0)
		g.mu.Lock()
		of := g.of
		g.mu.Unlock()
		if of.Ready != 0 || of.Waiting != 0 {
			t.Errorf("observed is %+v", of)
		}
		b.Apply(with(func(s *Settings) { s.Max = 8 }))
		if b.active() {
			t.Error("a metric that is not used any more keeps a goroutine")
		}
	})
}

func TestQuantilesCountRequestsThatDidNotWait(t *testing.T) {
	w := quantiles([]time.Duration{time.Second, 2 * time.Second}, 10)
	if w(0.5) != 0 || w(0.85) != time.Second || w(0.99) != 2*time.Second {
		t.Errorf("%v, %v, %v", w(0.5), w(0.85), w(0.99))
	}
	if none := quantiles(nil, 0); none(0.99) != 0 {
		t.Error(none(0.99))
	}
}

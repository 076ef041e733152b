package control

import (
	"math"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/policies"
)

// asked is a policy that counts how often it is asked.
type asked struct {
	policies.Queue
	times *int
}

func (a asked) Target(in scaler.Inputs, memory scaler.Memory) (scaler.Advice, scaler.Memory) {
	*a.times++
	return a.Queue.Target(in, memory)
}

// FuzzSettings runs a service with any settings. It goes to work, comes to an
// end, and does not spin.
func FuzzSettings(f *testing.F) {
	year := int64(8760 * time.Hour)
	f.Add(0, 1, 100, int64(5*time.Minute), int64(2*time.Minute), int64(30*time.Second), int64(10*time.Second), int64(0), int64(0), 1., uint8(3))
	f.Add(10, 20, 1_000_000_000_000_000_000, int64(1), int64(1), int64(1), int64(1), int64(1), int64(1), 1e-30, uint8(9))
	f.Add(0, 3, 1, int64(math.MaxInt64), int64(math.MaxInt64), int64(math.MaxInt64), int64(math.MaxInt64), int64(math.MaxInt64), int64(math.MaxInt64), 1., uint8(5))
	f.Add(-5, -1, -100, int64(math.MinInt64), int64(-1), int64(-1), int64(-1), int64(-1), int64(-1), math.NaN(), uint8(1))
	f.Add(math.MaxInt, math.MaxInt, math.MaxInt, year*290, year*290, int64(0), year*292, int64(1), year, math.Inf(1), uint8(2))
	f.Fuzz(func(t *testing.T, least, most, c int, idle, start, drain, stop, interval, timeout int64, u float64, requests uint8) {
		if b := (&Settings{Min: least, Max: most}).bounded(); b.Min > 50 {
			// Legal, and nothing that a test wants to see.
			least = 50
		}
		bubble(t, func(t *testing.T) {
			times := 0
			s := Settings{
				Min: least, Max: most, Concurrency: c, IdleTimeout: time.Duration(idle), StartTimeout: time.Duration(start),
				DrainTimeout: time.Duration(drain), StopTimeout: time.Duration(stop),
				Check:  Check{Kind: CheckPlatform, Interval: time.Duration(interval), Timeout: time.Duration(timeout)},
				Policy: asked{policies.Queue{Utilization: u, DownWindow: time.Duration(idle)}, &times},
			}
			x := newBench(t, s, &platform{local: true, startTime: 20 * time.Millisecond}, nil)
			var all []*reserver.Reservation
			for range requests % 10 {
				r, _, err := x.ask()
				if err != nil {
					continue
				}
				all = append(all, r)
			}
			time.Sleep(50 * time.Millisecond)
			for _, r := range all {
				r.Cancel()
				r.Release(reserver.Answered)
			}
			x.Apply(s)
			time.Sleep(50 * time.Millisecond)
			waitIdle()
			if n := len(x.p.ids()); n > scaler.MaxInstances {
				t.Errorf("%d instances", n)
			}
			// Once in a millisecond, and for what happens.
			x.mu.Lock()
			defer x.mu.Unlock()
			if times > 1000 {
				t.Errorf("the policy was asked %d times in 100 ms", times)
			}
		})
	})
}

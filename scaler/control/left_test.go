package control

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// restarted is a service with one instance whose container has started again: it
// is another instance at the same address.
func restarted(t *testing.T, concurrency, inside int) (x *bench, old []*reserver.Reservation) {
	t.Helper()
	p := &platform{startTime: leftPause}
	p.address = "127.0.0.1:1"
	x = newBench(t, with(func(s *Settings) { s.Min, s.Concurrency = 1, concurrency }), p, nil)
	for range inside {
		old = append(old, x.inside())
	}
	gone := p.ids()[0]
	p.do(func() { p.start() })
	p.end(gone, nil)
	time.Sleep(leftPause)
	return x, old
}

func TestRequestsThatMayHaveReachedTheNextInstanceTakeUpItsSlots(t *testing.T) {
	bubble(t, func(t *testing.T) {
		x, old := restarted(t, 2, 2)
		time.Sleep(interruptAfter / 2)
		a, b := x.waits(), x.waits()
		time.Sleep(interruptAfter / 4)
		for _, r := range []*reserver.Reservation{a, b} {
			select {
			case <-r.Granted():
				t.Fatal("three are inside what has two slots")
			default:
			}
		}
		old[0].Release(reserver.Answered)
		time.Sleep(2 * leftPause)
		x.granted(a)
		select {
		case <-b.Granted():
			t.Fatal("three are inside what has two slots")
		default:
		}
		// The other one is interrupted, and does not listen.
		time.Sleep(3 * interruptAfter)
		x.granted(b)
		for _, r := range []*reserver.Reservation{a, b, old[1]} {
			r.Release(reserver.Answered)
		}
	})
}

func TestAnInstanceElsewhereHasAllItsSlots(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := remote()
		x := newBench(t, with(func(s *Settings) { s.Min, s.Concurrency = 1, 1 }), p, nil)
		old := x.inside()
		gone := p.ids()[0]
		p.do(func() { p.start() })
		p.end(gone, &scaler.Failure{Reason: scaler.ReasonExit, Short: "killed"})
		time.Sleep(time.Second + leftPause)
		x.inside().Release(reserver.Answered)
		old.Release(reserver.Answered)
	})
}

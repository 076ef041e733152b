package control

import (
	"testing"
	"time"
)

// TestAStopOnItsWayDoesNotWakeTheService: the platform takes its time to carry
// out the stop of the last instance, and something makes the loop look
// meanwhile. Until the report comes the platform still works towards one
// instance, of which none is left.
func TestAStopOnItsWayDoesNotWakeTheService(t *testing.T) {
	for name, local := range map[string]bool{"local": true, "remote": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := &platform{local: local}
				b := newBench(t, defaults(), p, nil)
				b.comesAndGoes()
				p.set(func() { p.gate = make(chan struct{}) })
				time.Sleep(defaults().IdleTimeout)
				b.is(Asleep)
				p.do(func() {}) // a report, of nothing new
				b.is(Asleep)
				p.do(func() { close(p.gate); p.gate = nil })
				b.is(Asleep)
				b.runs(0)
				if n := b.rec.count("asleep->waking"); n != 1 {
					t.Fatalf("it woke %d times for one request\n%s", n, b.story())
				}
			})
		})
	}
}

// TestAStartOnItsWayIsFinishedWithoutDemand is the other side: an order that
// starts an instance counts as one on its way.
func TestAStartOnItsWayIsFinishedWithoutDemand(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, startTime: time.Second, gate: make(chan struct{})}
		b := newBench(t, with(func(s *Settings) { s.IdleTimeout = 10 * time.Second }), p, nil)
		w := b.waits()
		waitIdle()
		w.Cancel()
		time.Sleep(15 * time.Second)
		b.is(Waking)
		p.set(func() { close(p.gate); p.gate = nil })
		time.Sleep(time.Second)
		b.is(Awake)
	})
}

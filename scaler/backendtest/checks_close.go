package backendtest

import (
	"context"
	"sync"
	"testing"

	"github.com/caddy-usher/usher/scaler"
)

func checkClose(t testing.TB, s Subject) {
	o := s.open(t)
	o.scale(2)
	o.has(2)
	o.close()
	if n := s.Running(); o.traits.Owned && n != 0 {
		t.Errorf("the instances belong to this Caddy, and after Close %d of them run", n)
	} else if !o.traits.Owned && n != 2 {
		t.Errorf("the instances are the platform's, and after Close %d of 2 run", n)
	}
	// Whatever is called now, no report follows.
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	defer cancel()
	_ = o.scaler.Scale(ctx, scaler.Order{Instances: 3, StopTimeout: stopTimeout})
	if n := s.Running(); o.traits.Owned && n != 0 {
		t.Errorf("an order after Close started %d instances", n)
	}
}

// checkCloseInTime closes with a context that has ended. What is still to be
// ended ends later, without a report.
func checkCloseInTime(t testing.TB, s Subject) {
	o := s.open(t)
	o.scale(1)
	o.has(1)
	var release func()
	if s.Hang != nil {
		release = s.Hang()
		defer release()
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.inTime(t, "Close with a context that has ended", release, func() {
		_ = o.scaler.Close(ctx, stopTimeout) // its error says at most that the context has ended
		o.watch.closed()
	})
	if o.traits.Owned {
		if release != nil {
			release() // a platform that is silent ends nothing
		}
		o.await("the end of the instances after Close", func(scaler.Report) bool { return s.Running() == 0 })
	}
}

// checkCloseInOrder closes while an order is on its way. The order ends, with
// or without an error, and no report follows either of them.
func checkCloseInOrder(t testing.TB, s Subject) {
	o := s.open(t)
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	defer cancel()
	var release func()
	if s.Hang != nil {
		release = s.Hang()
		defer release()
	}
	var order sync.WaitGroup
	begun := make(chan struct{})
	order.Go(func() {
		close(begun)
		_ = o.order(ctx, 3)
	})
	<-begun
	s.inTime(t, "Close while an order is on its way", release, o.close)
	s.inTime(t, "an order that was on its way when Close was called", release, order.Wait)
	if n := s.Running(); o.traits.Owned && n != 0 {
		t.Errorf("after Close %d instances run", n)
	}
}

// checkConcurrent calls everything at once that the loop may call at once. The
// race detector looks on.
func checkConcurrent(t testing.TB, s Subject) {
	o := s.open(t)
	o.scale(1)
	id := o.has(1)[0]
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	defer cancel()
	var wg sync.WaitGroup
	calls := []func(){func() { _ = o.scaler.Traits() }, func() { _ = s.Backend.Fingerprint() }, func() { _ = s.Backend.Redacted() }}
	if c, ok := s.Backend.(scaler.Checker); ok {
		calls = append(calls, func() { _ = c.Check() })
	}
	if c, ok := o.scaler.(scaler.Confirmer); ok {
		calls = append(calls, func() { _ = c.Confirm(ctx, id); _ = c.Confirm(ctx, "no-such-instance") })
	}
	if c, ok := o.scaler.(scaler.Verifier); ok {
		calls = append(calls, func() { _ = c.Verify(ctx, id); _ = c.Verify(ctx, "no-such-instance") })
	}
	if c, ok := o.scaler.(scaler.Diagnoser); ok {
		calls = append(calls, func() { _ = c.Diagnose(ctx, id); _ = c.Diagnose(ctx, "no-such-instance") })
	}
	if c, ok := o.scaler.(scaler.Updater); ok && s.Same != nil {
		calls = append(calls, func() { _ = c.Update(s.Same) })
	}
	for _, call := range calls {
		wg.Go(func() {
			for range 3 {
				call()
			}
		})
	}
	// Orders come one after the other.
	wg.Go(func() {
		for _, n := range []int{2, 3, 3} {
			o.scale(n)
		}
	})
	wg.Wait()
	o.has(3)
}

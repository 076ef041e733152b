package discovery

import (
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// The times of a watch.
const (
	// quiet is how long nothing has to change before it is looked, and longest
	// how long that waits at most.
	quiet   = 100 * time.Millisecond
	longest = time.Second

	// retryFirst and retryMost bound the pause after a look that failed.
	retryFirst = 200 * time.Millisecond
	retryMost  = 5 * time.Second

	// outageFrom is how long a platform has to be away for that to be reported:
	// servers change their leader, and connections break.
	outageFrom = 3 * time.Second
)

// ErrUnknown is returned by a look that cannot tell yet what there is. It is no
// failure, and nothing is reported: a poke follows.
var ErrUnknown = errors.New("it is not known yet what there is")

// A Watch looks at a platform when something may have changed, and reports what
// is new. It is a scaler.Discovery.
type Watch struct {
	report func([]scaler.Found, error)
	look   func(context.Context) ([]scaler.Found, error)
	every  time.Duration

	pokes  chan struct{} // size 1
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	once   sync.Once
	end    func()

	last   []scaler.Found
	told   bool      // last was reported
	failed int       // looks in a row that have failed
	since  time.Time // when they began
	reason string    // of the failure that was reported last; "" if the last report was a list
}

// Start begins a watch. look returns everything that there is, in any order. With
// an error it returns nil, or, if only a part of the platform cannot be asked,
// what is known all the same. It is called first after a poke, never twice at a
// time, and again after every, if that is not 0. end is called once by Close,
// after the last look.
func Start(report func([]scaler.Found, error), look func(context.Context) ([]scaler.Found, error), every time.Duration, end func()) *Watch {
	w := &Watch{report: report, look: look, every: every, end: end, pokes: make(chan struct{}, 1), done: make(chan struct{})}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	go w.run()
	return w
}

// Poke says that something may have changed. It never blocks.
func (w *Watch) Poke() {
	select {
	case w.pokes <- struct{}{}:
	default:
	}
}

// Close ends the watch. When it returns, nothing more is reported.
func (w *Watch) Close() {
	w.once.Do(func() {
		w.cancel()
		<-w.done
		w.end()
	})
}

func (w *Watch) run() {
	defer close(w.done)
	var again <-chan time.Time
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-w.pokes:
			if !w.settle() {
				return
			}
		case <-again:
		}
		found, err := w.look(w.ctx)
		if w.ctx.Err() != nil {
			return
		}
		again = nil
		switch pause := w.deliver(found, err); {
		case pause > 0:
			again = time.After(pause)
		case w.every > 0:
			again = time.After(w.every)
		}
	}
}

// settle waits until nothing has changed for a moment. It returns false if the
// watch was closed.
func (w *Watch) settle() bool {
	most := time.NewTimer(longest)
	defer most.Stop()
	calm := time.NewTimer(quiet)
	defer calm.Stop()
	for {
		select {
		case <-w.ctx.Done():
			return false
		case <-w.pokes:
			calm.Reset(quiet)
		case <-calm.C:
			return true
		case <-most.C:
			return true
		}
	}
}

// deliver reports what came of a look, if that is new. It returns after which
// pause to look again; 0 is after the usual one.
func (w *Watch) deliver(found []scaler.Found, err error) (pause time.Duration) {
	if errors.Is(err, ErrUnknown) {
		return 0
	}
	if err == nil || found != nil {
		w.deliverList(found, err == nil && w.reason != "")
	}
	if err == nil {
		w.failed, w.reason = 0, ""
		return 0
	}
	if w.failed++; w.failed == 1 {
		w.since = time.Now()
	}
	f := scaler.AsFailure(err)
	if reason := string(f.Reason) + " " + f.Short; time.Since(w.since) >= outageFrom && reason != w.reason {
		w.reason = reason
		w.report(nil, err)
	}
	pause = min(retryFirst<<min(w.failed-1, 10), retryMost)
	return pause/2 + rand.N(pause)
}

// deliverList reports a list, if it is another one than the one before or has to
// be reported anyway.
func (w *Watch) deliverList(found []scaler.Found, anyway bool) {
	sort.Slice(found, func(i, k int) bool { return found[i].Object < found[k].Object })
	if w.told && !anyway && reflect.DeepEqual(found, w.last) {
		return
	}
	w.last, w.told = found, true
	w.report(slices.Clone(found), nil)
}

// Interface guard.
var _ scaler.Discovery = (*Watch)(nil)

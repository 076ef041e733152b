package control

import (
	"context"
	"sync"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

// life is what a loop has going on: its goroutine, and all that it has started
// in the background. Most loops of a large configuration sleep, and of a loop
// that sleeps nothing goes on: what the goroutine needs is made when it
// begins, and a context when something first runs under it.
//
// Under its lock only that of the timers is taken, which is a leaf. So Trigger
// may be called with any other lock held.
type life struct {
	sync.Mutex
	poked  chan struct{} // of the goroutine, size 1; nil while there is none
	wg     sync.WaitGroup
	ctx    context.Context // of all in the background; nil until it is needed
	cancel context.CancelFunc
	closed chan struct{} // nil until Close begins; closed when it is through

	// calls are instances of which the reserver has something to tell.
	calls []*reserver.Instance
}

// look makes the loop look at an instance, and decide anew. It never blocks:
// the reserver calls it in the goroutine of a request, or under the loop's lock.
func (l *Loop) look(s *reserver.Instance) {
	l.run.Lock()
	if l.run.closed == nil {
		l.run.calls = append(l.run.calls, s)
	}
	l.run.Unlock()
	l.Trigger()
}

// takeCalls returns the instances that are to be looked at.
func (l *Loop) takeCalls() []*reserver.Instance {
	l.run.Lock()
	defer l.run.Unlock()
	calls := l.run.calls
	l.run.calls = nil
	return calls
}

// Trigger makes the loop decide anew. It never blocks.
func (l *Loop) Trigger() {
	l.run.Lock()
	defer l.run.Unlock()
	if l.run.closed != nil {
		return
	}
	if l.run.poked == nil {
		l.run.poked = make(chan struct{}, 1)
		l.run.wg.Add(1)
		go l.decideUntilQuiet(l.run.poked)
		return
	}
	select {
	case l.run.poked <- struct{}{}:
	default:
	}
}

// background runs f in a goroutine that Close waits for. It returns false,
// and runs nothing, if the loop is being closed.
func (l *Loop) background(f func()) bool {
	l.run.Lock()
	defer l.run.Unlock()
	if l.run.closed != nil {
		return false
	}
	l.run.wg.Go(f)
	return true
}

// context is that of all in the background. It ends when Close begins.
func (l *Loop) context() context.Context {
	l.run.Lock()
	defer l.run.Unlock()
	if l.run.ctx == nil {
		l.run.ctx, l.run.cancel = context.WithCancel(context.Background())
		if l.run.closed != nil {
			l.run.cancel()
		}
	}
	return l.run.ctx
}

// closing says whether Close has begun.
func (l *Loop) closing() bool {
	l.run.Lock()
	defer l.run.Unlock()
	return l.run.closed != nil
}

// end begins the end. It returns a channel that is to be closed when that is
// through, and whether this is the first call.
func (l *Loop) end() (closed chan struct{}, first bool) {
	l.run.Lock()
	defer l.run.Unlock()
	if l.run.closed != nil {
		return l.run.closed, false
	}
	l.run.closed = make(chan struct{})
	l.timers.drop(l)
	if l.run.cancel != nil {
		l.run.cancel()
	}
	return l.run.closed, true
}

// restAfter is how far away the time of the next decision is if the goroutine
// ends, and the timers begin it again.
const restAfter = time.Second

// rest lets the goroutine end, and a new one begin at next, if that is not
// zero. It returns false if there is something to decide now.
func (l *Loop) rest(poked <-chan struct{}, next time.Time) bool {
	l.run.Lock()
	defer l.run.Unlock()
	select {
	case <-poked:
		return false
	default:
	}
	l.run.poked = nil
	switch {
	case l.run.closed != nil || next.IsZero():
		l.timers.drop(l)
	default:
		l.timers.set(l, next)
	}
	return true
}

// decideUntilQuiet is the goroutine: it decides, sleeps until the next event
// or the time at which the decision may change, and ends when that is far away
// or never comes.
func (l *Loop) decideUntilQuiet(poked <-chan struct{}) {
	defer l.run.wg.Done()
	var timer *time.Timer
	for {
		next := l.decide(time.Now())
		if next.IsZero() {
			if !l.rest(poked, next) {
				continue
			}
			if timer != nil {
				timer.Stop()
			}
			return
		}
		// A policy that wants to be asked again at once is asked again soon.
		wait := max(time.Until(next), decidePause)
		if wait >= restAfter {
			if l.rest(poked, next) {
				if timer != nil {
					timer.Stop()
				}
				return
			}
			continue
		}
		if timer == nil {
			timer = time.NewTimer(wait)
		} else {
			timer.Reset(wait)
		}
		select {
		case <-poked:
		case <-timer.C:
		case <-l.context().Done():
			timer.Stop()
			l.run.Lock()
			l.run.poked = nil
			l.run.Unlock()
			return
		}
	}
}

package scaler

import (
	"context"
	"sync"
	"time"
)

// life is what a loop has going on: its goroutine, and all that it has started
// in the background. Most loops of a large configuration sleep, and of a loop
// that sleeps nothing goes on: what the goroutine needs is made when it
// begins, and a context when something first runs under it.
//
// It is a leaf: nothing is locked under its lock, so anybody may call Poke.
type life struct {
	sync.Mutex
	poked  chan struct{} // of the goroutine, size 1; nil while there is none
	wg     sync.WaitGroup
	ctx    context.Context // of all in the background; nil until it is needed
	cancel context.CancelFunc
	closed chan struct{} // nil until Close begins; closed when it is through
}

// Poke makes the loop decide anew. It never blocks.
func (l *Loop) Poke() {
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
	if l.run.cancel != nil {
		l.run.cancel()
	}
	return l.run.closed, true
}

// decideUntilQuiet is the goroutine: it decides, sleeps until the next event
// or the time at which the decision may change, and ends when no time is left
// to wait for.
func (l *Loop) decideUntilQuiet(poked <-chan struct{}) {
	defer l.run.wg.Done()
	var timer *time.Timer
	for {
		next := l.decide(time.Now())
		if next.IsZero() {
			l.run.Lock()
			select {
			case <-poked:
				l.run.Unlock()
				continue
			default:
			}
			l.run.poked = nil
			l.run.Unlock()
			if timer != nil {
				timer.Stop()
			}
			return
		}
		wait := max(time.Until(next), 0)
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

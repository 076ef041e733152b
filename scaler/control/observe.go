package control

import (
	"context"
	"log/slog"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// observe has the platform watched for the ends of instances while another loop
// leads: its word takes a while, and longer if it is lost. It is called when the
// backend has changed, or who leads. The lock is held.
func (l *Loop) observe() {
	s := l.sharing
	if s.stopObserving != nil {
		s.stopObserving()
		s.stopObserving, s.observation = nil, nil
	}
	b, ok := s.backend.(scaler.Observer)
	if !ok || s.leads {
		return
	}
	ctx, stop := context.WithCancel(l.context())
	s.stopObserving = stop
	l.background(func() {
		defer stop()
		o, err := b.Observe(l.env, l.lookForEnded)
		if err != nil {
			l.log().Debug("the platform cannot be watched: the end of an instance is known when the Caddy that leads tells of it", slog.Any("error", err))
			return
		}
		defer o.Close()
		l.mu.Lock()
		if ctx.Err() == nil {
			s.observation = o
		}
		l.mu.Unlock()
		l.lookForEnded()
		<-ctx.Done()
	})
}

// lookForEnded forgets the followed instances that the platform says have ended.
// The one that leads will say so, too.
func (l *Loop) lookForEnded() {
	l.mu.Lock()
	defer l.Trigger()
	defer l.mu.Unlock()
	if l.sharing.observation == nil {
		return
	}
	now := time.Now()
	for id, i := range l.followedRevision().instances {
		if l.observedEnd(id) {
			l.endFollowed(i, now)
		}
	}
	l.refuse(now)
}

// observedEnd reports whether an instance is known here to have ended. The lock
// is held.
func (l *Loop) observedEnd(id string) bool {
	o := l.sharing.observation
	return o != nil && o.Ended(id)
}

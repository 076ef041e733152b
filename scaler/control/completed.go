package control

import (
	"log/slog"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// completedPause is the least time between the start of an instance that
// completes without a request and the next start. A job that is over at once would
// otherwise be started as fast as the platform can.
const completedPause = time.Second

// completed takes note that an instance has done its work. That is no failure.
func (l *Loop) completed(i *instance, now time.Time) {
	l.log().Info("instance completed", slog.String("instance", i.ID))
	began := i.unreadyFrom
	if i.slots != nil {
		if i.slots.Stats().Served > 0 {
			return
		}
		began = i.readySince
	}
	if next := began.Add(completedPause); i.revision == l.current() && next.After(now) && next.After(l.backoffUntil) {
		l.backoffUntil = next
	}
}

// slotsOf is how many requests i takes at a time: what the platform says, or
// the service's concurrency.
func (l *Loop) slotsOf(i *instance) int {
	if i.Slots > 0 {
		return min(i.Slots, scaler.MaxConcurrency)
	}
	return l.settings.Concurrency
}

// slotsEach is how many slots the policy counts with for each instance: the
// mean of those that there are.
func (l *Loop) slotsEach() int {
	total, n := 0, 0
	for _, i := range l.current().instances {
		if i.stage.leaving() || i.Extra {
			continue
		}
		slots := l.slotsOf(i)
		if slots == 0 {
			return 0 // unlimited
		}
		total += slots
		n++
	}
	if n == 0 {
		return l.settings.Concurrency
	}
	return max(1, total/n)
}

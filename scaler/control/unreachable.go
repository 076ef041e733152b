package control

import (
	"errors"
	"log/slog"
	"net"
	"syscall"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// unreachable says whether i was ready and takes no connections any more, as far
// as the probes tell since it was ejected. Where a network lies in between, only
// a refused connection counts: without an answer, the network may be at fault.
func (i *instance) unreachable() bool {
	if i.stage != ready || i.Unhealthy || !i.slots.Stats().Ejected {
		return false
	}
	if i.lastProbe == nil || errors.Is(i.lastProbe, syscall.ECONNREFUSED) {
		return true
	}
	op, ok := errors.AsType[*net.OpError](i.lastProbe)
	return ok && op.Op == "dial" && i.revision.traits.SameMachine
}

// replaceUnreachable gives up on an instance that was ready and takes no
// connections any more. The lock is held.
func (l *Loop) replaceUnreachable(i *instance, now time.Time) {
	f := &scaler.Failure{Reason: scaler.ReasonTimeout, Short: "it was ready, and refuses connections", Err: i.lastProbe}
	proven := i.unreadyFrom.Sub(i.readySince) >= ProvenAfter
	l.condemn(i, now)
	switch {
	case i.revision != l.current():
	case !proven:
		l.startFailed(f, now)
	default:
		l.lastFailure = &failureAt{f, now}
		l.log().Warn("an instance refuses connections: it is replaced", slog.String("instance", i.ID),
			slog.String("address", i.Address), slog.Duration("after", now.Sub(i.unreadyFrom)), errorAttr("error", i.lastProbe))
	}
}

// comingUp says whether none is ready, and the first one is on its way: its
// start had a reason, and is finished although the reason may be gone. The
// lock is held.
func (l *Loop) comingUp(stats reserver.Stats) bool {
	if stats.Open > 0 {
		return false
	}
	for _, r := range l.revisions {
		if _, first := r.count(); first > 0 {
			return true
		}
	}
	cur := l.current()
	wanted := cur.desired
	if cur.ordering {
		// The platform still works towards what was ordered before. That is
		// more than exists while a stop is on its way.
		wanted = cur.ordered
	}
	// What a platform does not bring about in the time of a start does not
	// come.
	return l.failures == 0 && wanted > cur.existing()
}

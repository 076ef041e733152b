package control

import (
	"hash/fnv"
	"log/slog"
	"time"
)

// ageSpread is the part of Settings.MaxAge by which the ages of instances that
// were started together differ, so that they are not replaced together.
const ageSpread = 0.1

// oldAt is when i is to be replaced because of its age; zero is never.
func (i *instance) oldAt() time.Time {
	age := i.revision.loop.settings.MaxAge
	if age == 0 {
		return time.Time{}
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(i.ID)) // it never fails
	part := float64(h.Sum32()) / (1 << 32)
	return i.Since.Add(age - time.Duration(part*ageSpread*float64(age)))
}

// renew replaces instances of the current revision that are too old, one after
// the other. Where max and Overlap leave room the successor is ready first;
// otherwise the old one goes first. The lock is held.
func (l *Loop) renew(now time.Time, next *recheck) {
	if l.settings.MaxAge == 0 {
		return
	}
	var oldest *instance
	fresh := 0
	for _, i := range l.current().instances {
		if i.stage.leaving() || i.Extra {
			continue
		}
		if !i.old {
			fresh += truth(i.serves())
		}
		at := i.oldAt()
		if now.Before(at) {
			next.by(at)
			continue
		}
		if oldest == nil || i.old || !oldest.old && at.Before(oldest.oldAt()) {
			oldest = i
		}
	}
	if oldest == nil {
		return
	}
	if !oldest.old {
		oldest.old = true
		fresh -= truth(oldest.serves())
	}
	if oldest.stage != ready {
		// What does not serve has no successor to wait for.
		fresh = l.target
	}
	alive, first := l.current().count()
	if l.target == 0 || fresh >= l.target || first == 0 && alive < l.target && l.room(l.coming()) <= 0 {
		l.log().Info("an instance is replaced because of its age", slog.String("instance", oldest.ID),
			slog.Duration("age", now.Sub(oldest.Since).Round(time.Second)))
		l.replace(oldest, now)
	}
}

// replace stops i for good. The service stays as awake as it is: another one
// takes its place. The lock is held.
func (l *Loop) replace(i *instance, now time.Time) {
	l.condemn(i, now)
	l.owed = l.owed || l.target > 0 && i.revision == l.current()
}

// coming is how many instances of the current revision are on their way that the
// platform does not show yet.
func (l *Loop) coming() int {
	cur := l.current()
	return max(0, cur.desired-cur.existing())
}

func truth(is bool) int {
	if is {
		return 1
	}
	return 0
}

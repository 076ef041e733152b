package control

// Overlap says whether a new instance may start while an old one still stops.
type Overlap uint8

// The kinds of overlap.
const (
	// OverlapDefault is OverlapOff for local platforms with a maximum of 1, and
	// where all revisions share their instances.
	// With other local platforms a stopping instance counts towards the
	// maximum, and a changed backend starts its instances beside the old
	// ones. With remote platforms stopping instances are the platform's.
	OverlapDefault Overlap = iota

	// OverlapOn: an instance that drains or stops does not count towards the
	// maximum.
	OverlapOn

	// OverlapOff: an instance counts until it is gone, whatever its revision.
	// A changed backend, or a restart, stops the old instances first.
	OverlapOff
)

// stopsFirst says whether the instances of earlier revisions are stopped
// before those of the current one start. The lock is held.
func (l *Loop) stopsFirst() bool {
	switch l.settings.Overlap {
	case OverlapOn:
		return false
	case OverlapOff:
		return true
	}
	r := l.current()
	return r != nil && (r.traits.StopsFirst || r.traits.Owned && l.settings.Max == 1 && !l.settings.Beside)
}

// room returns how many instances of the current revision may be started now
// beside those that are on their way. The lock is held.
func (l *Loop) room(coming int) int {
	cur := l.current()
	room := l.settings.Max - coming
	switch {
	case l.settings.Overlap == OverlapOn:
		alive, _ := cur.count()
		return room - alive
	case l.stopsFirst():
		for _, r := range l.revisions {
			if r == cur {
				continue
			}
			if r.ordering {
				// It may be starting one.
				return 0
			}
			room -= max(r.desired, r.existing()) + r.stopping()
		}
	case !cur.traits.Owned:
		return room - cur.existing()
	}
	return room - cur.existing() - cur.stopping()
}

// stopping is how many instances of r were told to stop, or have ended, and are
// not gone as a whole yet.
func (r *revision) stopping() int {
	n := int(r.remains)
	for _, i := range r.instances {
		if i.stage.told() && !i.Extra {
			n++
		}
	}
	return n
}

// waitsForStop says whether the next start waits for the end of an instance
// that drains or stops, or of what a crashed one has left. The lock is held.
func (l *Loop) waitsForStop() bool {
	cur := l.current()
	if cur == nil || l.target == 0 {
		return false
	}
	alive, _ := cur.count()
	return alive < l.target && l.room(max(0, cur.desired-cur.existing())) <= 0
}

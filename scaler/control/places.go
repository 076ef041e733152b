package control

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

// placeTime is how long a start holds its place of the start budget at most. A place is for the work of starting: a program that takes longer may
// wait for another service, which may need the place.
const placeTime = 5 * time.Second

// platform names whose places of the start budget the starts of r take.
func (r *revision) platform() string {
	switch {
	case r.traits.Platform != "":
		return r.traits.Platform
	case r.traits.HoldsPlace:
		return ""
	}
	return fmt.Sprintf("%T", r.backend)
}

// returnPlaces gives back the places of the start budget whose starts are
// over: accepted, or for local platforms ready, failed, without a request that
// waits for them any more, or older than placeTime. The loop does not use them
// for its next starts, to which others' may be preferred.
func (l *Loop) returnPlaces(stats reserver.Stats, now time.Time, next *recheck) {
	for _, r := range l.revisions {
		if r.ordering {
			// Not known yet.
			continue
		}
		if done := int(r.places) - r.placesNeeded(stats, now, next); done > 0 {
			r.takePlaces(-int32(done), r.placesOf)
		}
	}
}

// takePlaces takes note of places that the starts of r hold, or gives them
// back. The lock is held.
func (r *revision) takePlaces(n int32, platform string) {
	b := r.loop.budget
	switch {
	case n < 0:
		r.places += n
		b.giveBack(r.loop, platform, int(-n))
	case n > 0:
		if r.places > 0 && r.placesOf != platform {
			// Where it runs is known only since it was opened.
			r.takePlaces(-r.places, r.placesOf)
		}
		r.places, r.placesOf = r.places+n, platform
	}
}

// placesNeeded is how many starts of r in progress still need a place.
func (r *revision) placesNeeded(stats reserver.Stats, now time.Time, next *recheck) int {
	if !r.traits.HoldsPlace {
		return 0
	}
	n, waiting := 0, stats.Waiting+stats.Visitors > 0
	for _, i := range r.instances {
		if i.stage != starting || i.Extra || i.Adopted {
			continue
		}
		until := i.unreadyFrom.Add(placeTime)
		i.placeless = i.placeless || i.awaited && !waiting || !now.Before(until)
		i.awaited = i.awaited || waiting
		if !i.placeless {
			n++
			next.by(until)
		}
	}
	return n
}

// placeWait takes note of whether a start waits for a place.
func (l *Loop) placeWait(waits bool) {
	if waits == l.placeless {
		return
	}
	l.placeless = waits
	if waits {
		l.log().Info("the start "+l.budget.words(l.current().platform()), slog.Int("target", l.target))
	}
}

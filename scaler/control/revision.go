package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// revision is what one backend runs. Guarded by the loop's lock.
type revision struct {
	loop    *Loop
	backend scaler.Backend
	scaler  scaler.Scaler // nil until the backend is open

	number   int32  // among those of the loop, from 1
	retries  int32  // of an order, in a row
	places   int32  // of the start budget, held by its starts in progress
	remains  int32  // ended instances of which processes still run
	placesOf string // whose they are

	// Together they take no more than one word.
	traits   scaler.Traits
	heard    bool // a report has come
	blamed   bool // trouble was counted as a failed start
	ordering bool // an order is on its way
	closing  bool

	instances map[string]*instance // made for the first one
	early     *scaler.Report       // said before Open had returned
	desired   int                  // what the platform works towards
	ordered   int                  // the last number that was ordered or taken over
	trouble   *scaler.Failure
	hold      *scaler.Hold
	missing   time.Time // since when fewer instances exist than desired

	retryAt time.Time
	refusal *scaler.Failure // of the order that is to be retried
}

// id names r; it is unique in the life of the loop.
func (r *revision) id() string { return fmt.Sprintf("r%d", r.number) }

// report takes in what the platform says.
func (r *revision) report(rep scaler.Report) { r.loop.reported(r, rep) }

// instance is one instance of a revision. Guarded by the loop's lock.
type instance struct {
	scaler.Instance
	revision *revision

	stage  stage // only move changes it
	before stage // its readiness when it began to leave, or since: see turn

	// mustStop: it will be stopped, whatever demand says. That is no stage: it
	// stays true when a refused order brings it back from stopping to draining.
	mustStop bool

	slots       *reserver.Instance // nil until it is ready for the first time
	readySince  time.Time
	unreadyFrom time.Time // when it began to start, or was ejected; zero while it serves
	drainUntil  time.Time
	asleep      bool            // it drains because there was no demand
	old         bool            // it is to be replaced because of its age
	newborn     bool            // it did not exist when its revision was opened
	emptied     bool            // it is withdrawn, and no other loop has requests inside
	business    *business       // nil if it was never asked
	awaited     bool            // a request waited while it started
	placeless   bool            // its start holds no place of the budget any more
	blamed      *scaler.Failure // the failure that was counted for it while it starts
	probe       context.CancelFunc
	lastProbe   error
	watch       context.CancelFunc // of the looks at a start that takes long
	diagnosis   scaler.Diagnosis   // what was seen last
	mistaken    bool               // twice in a row
}

// add takes in an instance that has not been heard of before.
func (r *revision) add(i *instance) {
	if r.instances == nil {
		r.instances = make(map[string]*instance)
	}
	r.instances[i.ID] = i
}

// status describes i.
func (i *instance) status() InstanceStatus {
	st := InstanceStatus{
		ID: i.ID, Revision: i.revision.id(), Network: i.Network, Address: i.Address,
		State: i.state(), Since: i.Since,
	}
	if i.slots != nil {
		s := i.slots.Stats()
		st.Slots, st.InUse = max(0, s.Slots), s.InUse // NoSlots are none
		if l := i.revision.loop; l.sharing != nil {
			st.Slots = l.slotsOf(i) // those of all
		}
		st.SessionUntil = i.slots.SessionUntil()
		if b := i.business; b != nil {
			st.Busy = b.seen
		}
	}
	return st
}

// count returns how many instances of r serve or will serve, and how many of
// them are not ready yet for the first time.
func (r *revision) count() (alive, first int) {
	for _, i := range r.instances {
		if i.stage.leaving() || i.Extra || i.old {
			continue
		}
		alive++
		if i.stage == starting {
			first++
		}
	}
	return alive, first
}

// unready returns the instances of r that never were ready or are so no
// longer by the platform's word, the youngest first.
func (r *revision) unready() []*instance {
	var all []*instance
	for _, i := range r.instances {
		if i.stage.coming() && !i.Extra {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b *instance) int {
		return cmp.Or(b.unreadyFrom.Compare(a.unreadyFrom), cmp.Compare(b.ID, a.ID))
	})
	return all
}

// withSlots returns the instances of r that take requests or were ejected.
func (r *revision) withSlots() []*reserver.Instance {
	var all []*reserver.Instance
	for _, i := range r.instances {
		if i.stage == ready && !i.Extra {
			all = append(all, i.slots)
		}
	}
	return all
}

// surplus returns how many instances of r are above n, as far as the platform
// does not stop them by itself.
func (r *revision) surplus(n int) int {
	alive, _ := r.count()
	if r.traits.Trims {
		alive = min(alive, r.desired)
	}
	return alive - n
}

// victims returns the instances of r among which n are to be stopped: those
// that are not ready, and those with slots. Where the platform insists on an
// order these are the very n that it would stop.
func (r *revision) victims(n int) (coming []*instance, serving []*reserver.Instance) {
	var ranked []*instance
	for _, i := range r.instances {
		if !i.stage.leaving() && i.StopRank != 0 {
			ranked = append(ranked, i)
		}
	}
	if len(ranked) == 0 {
		return r.unready(), r.withSlots()
	}
	slices.SortFunc(ranked, func(a, b *instance) int { return cmp.Compare(b.StopRank, a.StopRank) })
	for _, i := range ranked[:max(0, min(n, len(ranked)))] {
		if i.stage.coming() {
			coming = append(coming, i)
		} else {
			serving = append(serving, i.slots)
		}
	}
	return coming, serving
}

// existing is how many instances the platform has that are not stopping and
// that it counts.
func (r *revision) existing() int {
	n := 0
	for _, i := range r.instances {
		if !i.stage.told() && !i.Extra {
			n++
		}
	}
	return n
}

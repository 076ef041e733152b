package control

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// Shared is an instance, as loops that share it tell each other of it.
type Shared struct {
	ID, Network, Address string

	// Slots is how many requests of all may be inside at a time; 0 is no limit.
	Slots int

	State SharedState

	// Fresh is true if the instance did not exist when the loop began to lead.
	Fresh bool
}

// SharedState says who may use a shared instance.
type SharedState uint8

// The states of a shared instance.
const (
	// SharedOpen instances take requests.
	SharedOpen SharedState = iota
	// SharedCordoned instances take requests of their sessions only.
	SharedCordoned
	// SharedWithdrawn instances take no requests.
	SharedWithdrawn
)

// Load is what the other loops that share the instances are asked for.
type Load struct {
	Waiting, InUse, Demand int
	Peak                   int       // the highest Demand of late
	OldestWait             time.Time // zero if none waits
	Arrivals               uint64
}

// sharing is what a loop has that shares its instances. One of those loops leads:
// it decides, gives the orders and probes. The others follow what it lists. How
// many slots each has is said by SetShare, for the leader, too.
type sharing struct {
	Sharing

	backend scaler.Backend // that the leader opens

	observation   scaler.Observation // of one that follows; may be nil
	stopObserving context.CancelFunc

	leads  bool
	orders bool // the platform may be given orders

	shares    map[string]int                // slots by instance; NoSlots is left out
	parting   map[string]*reserver.Instance // that are gone, with requests inside
	elsewhere Load
	refusal   *Refusal  // why the loop that leads lets no request wait
	mistaken  bool      // this loop leads, and the others may know of another refusal than its own
	idleSince time.Time // when the demand elsewhere became 0
	listed    []Shared  // last
	account   *Account  // of the loop that leads; nil if it has told nothing yet
}

// Sharing is what a loop tells the others while it leads. The functions are called
// under the loop's lock and must not wait.
type Sharing struct {
	// List gets the instances whenever they change, sorted by ID.
	List func([]Shared)

	// Refused gets the reason why no request may wait, nil if they may, whenever it
	// changes, and when the loop begins to lead. Suspensions and the exit of this Caddy are none of the others'.
	Refused func(*Refusal)

	// Decided says that the Account may have changed.
	Decided func()

	// Spent gets the ID of an instance that has had its last request here, while
	// the loop follows, and again whenever there is a new list: the loop that leads
	// has to hear of it before any other one sends it a request.
	Spent func(id string)
}

// Share makes the loop share its instances with others. It follows until Lead
// is called, and its instances have no slots until SetShare gives them some. It is
// called once, before SetBackend.
func (l *Loop) Share(tell Sharing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sharing = &sharing{Sharing: tell, shares: make(map[string]int), parting: make(map[string]*reserver.Instance), idleSince: time.Now()}
	l.revisions = append(l.revisions, l.followedRevision())
}

// followedRevision returns what holds the instances that others run, which is
// the only revision without a backend. The lock is held.
func (l *Loop) followedRevision() *revision {
	for _, r := range l.revisions {
		if r.followed() {
			return r
		}
	}
	l.made++
	return &revision{loop: l, number: l.made}
}

// followed reports whether the instances of r are those that another loop runs.
func (r *revision) followed() bool { return r.backend == nil }

// follows reports whether the loop decides nothing itself: another one leads, or
// this one has not opened its backend yet. The lock is held.
func (l *Loop) follows() bool { return l.sharing != nil && l.current().followed() }

// keepBackend takes note of the backend while another loop leads. It reports
// whether it does.
func (l *Loop) keepBackend(b scaler.Backend) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sharing == nil {
		return false
	}
	l.sharing.backend = b
	l.observe()
	return !l.sharing.leads
}

// Lead says whether this loop leads. One that begins to opens its backend, and
// goes on with the instances that it followed. One that ends to lets go of the
// platform, and follows.
func (l *Loop) Lead(on bool) {
	l.mu.Lock()
	s := l.sharing
	if s == nil || s.leads == on {
		l.mu.Unlock()
		return
	}
	s.leads, s.orders, s.listed, s.mistaken = on, false, nil, on
	if !on {
		l.letGo(time.Now())
	}
	l.observe()
	l.mu.Unlock()
	if on {
		l.background(l.openKept) // it may take its time
	}
	l.Trigger()
}

// openKept opens the backend that was kept while another loop led.
func (l *Loop) openKept() {
	l.changing.Lock()
	defer l.changing.Unlock()
	l.mu.Lock()
	backend, leads := l.sharing.backend, l.sharing.leads
	l.mu.Unlock()
	if leads && backend != nil {
		_ = l.changeBackend(backend, (*Loop).openAnyway) // fails only if the loop is closed, or leads no longer
	}
}

// mayOpen reports whether a backend that was opened is of use: the loop is not
// closed, nor does another one lead by now. The lock is held.
func (l *Loop) mayOpen() bool { return !l.closing() && (l.sharing == nil || l.sharing.leads) }

// letGo hands the instances that are ready over to the followed revision, and
// closes what there is beside it. The lock is held.
func (l *Loop) letGo(now time.Time) {
	f := l.followedRevision()
	for _, r := range l.revisions {
		if r == f || r.closing {
			continue
		}
		for _, i := range r.instances {
			if i.slots == nil {
				delete(r.instances, i.ID)
				i.stopProbe()
				i.move(ended)
				l.changed(i)
				continue
			}
			l.moveTo(i, f)
		}
		r.takePlaces(-r.places, r.placesOf)
		stop := l.settings.StopTimeout
		r.closing = l.background(func() { l.close(r, stop) })
	}
	l.withdrawClaim()
	// Where it cannot be closed now the loop is being closed, which does it.
	l.revisions = append(slices.DeleteFunc(slices.Clone(l.revisions), func(r *revision) bool { return r == f }), f)
	l.fresh(now)
	l.target, l.cold, l.startRequested, l.owed = 0, nil, false, false
}

// moveTo makes i an instance of another revision. The lock is held.
func (l *Loop) moveTo(i *instance, r *revision) {
	delete(i.revision.instances, i.ID)
	i.revision = r
	r.add(i)
	if i.slots != nil {
		// The loop that leads verifies addresses.
		i.slots.SetAddressReusable(r.verifies())
	}
	if i.probe != nil {
		// How it is probed depends on the platform's scaler.
		i.stopProbe()
		if i.slots.Stats().Ejected {
			l.startProbe(i, i.slots.Pause())
		}
	}
}

// verifies reports whether the addresses of the instances of r are to be
// verified.
func (r *revision) verifies() bool {
	_, ok := r.scaler.(scaler.Verifier)
	return ok
}

// inherit makes an instance that was followed one of r, which reports it. It
// returns nil if it was not followed. The lock is held.
func (l *Loop) inherit(r *revision, id string) *instance {
	if l.sharing == nil {
		return nil
	}
	i := l.followedRevision().instances[id]
	if i != nil {
		l.moveTo(i, r)
	}
	return i
}

// dropFollowed ends what was followed and what the platform, which has been
// asked for the first time, does not have. The lock is held.
func (l *Loop) dropFollowed(now time.Time) {
	if l.sharing == nil {
		return
	}
	for _, i := range l.followedRevision().instances {
		l.endFollowed(i, now)
	}
}

// Follow says which instances there are, while another loop leads.
func (l *Loop) Follow(list []Shared) {
	l.mu.Lock()
	defer l.Trigger()
	defer l.mu.Unlock()
	if l.sharing == nil || l.sharing.leads {
		return
	}
	now, r := time.Now(), l.followedRevision()
	seen := make(map[string]bool, len(list))
	for _, s := range list {
		if l.observedEnd(s.ID) {
			continue // the leader has not heard of it yet
		}
		seen[s.ID] = true
		i := r.instances[s.ID]
		if i != nil && (i.Network != s.Network || i.Address != s.Address || i.stage == taken && s.State != SharedWithdrawn) {
			l.endFollowed(i, now)
			i = nil
		}
		if i == nil {
			// Another one has seen it become ready.
			i = &instance{Instance: scaler.Instance{ID: s.ID, Network: s.Network, Address: s.Address, Phase: scaler.PhaseReady, Adopted: true, WasReady: true, Since: now}, revision: r, unreadyFrom: now}
			r.add(i)
			l.ready(i, now)
		}
		i.Slots = s.Slots
		l.bring(i, s.State, now)
		if s.State != SharedWithdrawn && i.slots != nil && i.slots.Stats().Spent {
			l.sharing.Spent(i.ID)
		}
	}
	for id, i := range r.instances {
		if !seen[id] {
			l.endFollowed(i, now)
		}
	}
	l.refuse(now) // the leader's reason counts when no instance is left
}

// bring brings a followed instance to a state. The lock is held.
func (l *Loop) bring(i *instance, to SharedState, now time.Time) {
	was := i.stage
	switch {
	case to == SharedWithdrawn:
		l.drain(i, now)
		return
	case was == stopping:
		i.move(draining)
	}
	want := ready
	if to == SharedCordoned {
		want = unready
	}
	if i.stage != want {
		i.move(want)
		i.mustStop, i.asleep = false, false
		l.changed(i)
	}
}

// endFollowed forgets a followed instance that is gone. The lock is held.
func (l *Loop) endFollowed(i *instance, now time.Time) {
	switch {
	case i.stage == draining:
		i.move(stopping)
	case !i.stage.told():
		i.move(taken)
	}
	l.ended(i, nil, now)
}

// FollowRefusal says why the loop that leads lets no request wait; nil if it does.
// If this one leads, that is the word of one that led before, and the others are
// told what holds.
func (l *Loop) FollowRefusal(r *Refusal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sharing != nil {
		l.sharing.refusal = r
		l.sharing.mistaken = l.sharing.leads
		l.refuse(time.Now())
	}
}

// SetShare sets how many requests may enter an instance from here: a number,
// reserver.Unlimited or reserver.NoSlots. It may come before the instance is
// known.
func (l *Loop) SetShare(id string, slots int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sharing == nil {
		return
	}
	if slots == reserver.NoSlots {
		delete(l.sharing.shares, id)
	} else {
		l.sharing.shares[id] = slots
	}
	for _, r := range l.revisions {
		if i := r.instances[id]; i != nil && i.slots != nil {
			i.slots.SetSlots(slots)
		}
	}
}

// slotsHere is how many slots of i there are for the requests of this loop's
// service. The lock is held.
func (l *Loop) slotsHere(i *instance) int {
	if l.sharing == nil {
		return l.besideLeft(i, l.slotsOf(i))
	}
	if n, ok := l.sharing.shares[i.ID]; ok {
		return n
	}
	return reserver.NoSlots
}

// Inside returns how many requests are inside a shared instance, also one that
// is gone.
func (l *Loop) Inside(id string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.revisions {
		if i := r.instances[id]; i != nil {
			n += i.inUse()
		}
	}
	if l.sharing == nil {
		return n
	}
	if p := l.sharing.parting[id]; p != nil {
		if k := p.Stats().InUse; k > 0 {
			n += k
		} else {
			delete(l.sharing.parting, id)
		}
	}
	return n
}

// part keeps an instance that is gone, as long as it has requests inside. The
// lock is held.
func (l *Loop) part(i *instance) {
	if l.sharing != nil && i.inUse() > 0 {
		l.sharing.parting[i.ID] = i.slots
	}
}

// Interrupt ends the requests inside a shared instance.
func (l *Loop) Interrupt(id string, cause error) {
	l.mu.Lock()
	var all []*reserver.Instance
	for _, r := range l.revisions {
		if i := r.instances[id]; i != nil && i.slots != nil {
			all = append(all, i.slots)
		}
	}
	if l.sharing != nil && l.sharing.parting[id] != nil {
		all = append(all, l.sharing.parting[id])
	}
	l.mu.Unlock()
	for _, s := range all {
		s.Interrupt(cause)
	}
}

// Order says, while this loop leads, whether the platform may be given orders.
func (l *Loop) Order(on bool) {
	l.mu.Lock()
	if l.sharing != nil {
		l.sharing.orders = on
	}
	l.mu.Unlock()
	l.Trigger()
}

// mayOrder reports whether r may be given an order. The lock is held.
func (l *Loop) mayOrder(r *revision) bool {
	return !r.followed() && (l.sharing == nil || l.sharing.leads && l.sharing.orders)
}

// Elsewhere says what the other loops are asked for.
func (l *Loop) Elsewhere(now Load) {
	l.mu.Lock()
	s := l.sharing
	if s == nil || s.elsewhere == now {
		l.mu.Unlock()
		return
	}
	if now.Demand == 0 && s.elsewhere.Demand > 0 {
		s.idleSince = time.Now()
	}
	s.elsewhere = now
	l.mu.Unlock()
	l.Trigger()
}

// stats are the counters of the service, with what is asked for elsewhere. The
// lock is held.
func (l *Loop) stats() reserver.Stats { return l.withElsewhere(l.reserver.Stats()) }

func (l *Loop) withElsewhere(s reserver.Stats) reserver.Stats {
	if l.sharing == nil {
		return s
	}
	e := l.sharing.elsewhere
	if s.Demand == 0 && e.Demand == 0 && l.sharing.idleSince.After(s.IdleSince) {
		s.IdleSince = l.sharing.idleSince
	}
	s.Waiting += e.Waiting
	s.InUse += e.InUse
	s.Demand += e.Demand
	s.Arrivals += e.Arrivals
	if o := s.Oldest(); !e.OldestWait.IsZero() && (o.IsZero() || e.OldestWait.Before(o)) {
		s.OldestWait = e.OldestWait
	}
	return s
}

// demandElsewhere is the part of the demand that comes from elsewhere, now and
// at its highest of late. The lock is held.
func (l *Loop) demandElsewhere() (now, peak int) {
	if l.sharing == nil {
		return 0, 0
	}
	return l.sharing.elsewhere.Demand, l.sharing.elsewhere.Peak
}

// Emptied says, while this loop leads, that an instance that is withdrawn has no
// request of any loop inside.
func (l *Loop) Emptied(id string) {
	l.mu.Lock()
	for _, r := range l.revisions {
		if i := r.instances[id]; i != nil {
			i.emptied = true
		}
	}
	l.mu.Unlock()
	l.Trigger()
}

// emptyElsewhere reports whether no other loop has requests inside i, which
// drains. The lock is held.
func (i *instance) emptyElsewhere() bool { return i.revision.loop.sharing == nil || i.emptied }

// ReplaceShared drains an instance, and stops it then for good: others may have
// requests inside for an unknown time.
func (l *Loop) ReplaceShared(id string) { l.StopInstance(id) }

// Spend says, while this loop leads, that an instance has had its last request
// elsewhere.
func (l *Loop) Spend(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sharing == nil || !l.sharing.leads {
		return
	}
	now := time.Now()
	for _, r := range l.revisions {
		if i := r.instances[id]; i != nil && !r.followed() && i.stage == ready {
			l.replace(i, now)
			i.drainUntil = now.Add(unhurried)
			l.publish(now)
			l.Trigger()
		}
	}
}

// publish lists the instances that have been ready, if that has changed. The lock
// is held.
func (l *Loop) publish(now time.Time) {
	s := l.sharing
	if s == nil || !s.leads {
		return
	}
	var instances []*instance
	for _, r := range l.revisions {
		for _, i := range r.instances {
			if i.slots != nil {
				instances = append(instances, i)
			}
		}
	}
	slices.SortFunc(instances, func(a, b *instance) int { return cmp.Compare(a.ID, b.ID) })
	all := make([]Shared, 0, len(instances))
	for _, i := range instances {
		sh := Shared{ID: i.ID, Network: i.Network, Address: i.Address, Slots: l.slotsOf(i), State: i.sharedState(now), Fresh: i.newborn}
		if sh.State != SharedWithdrawn {
			i.emptied = false
		}
		all = append(all, sh)
	}
	if s.listed == nil || !slices.Equal(all, s.listed) {
		s.listed = all
		s.List(all)
	}
}

// tellRefused tells the others of a refusal, if this loop leads. The lock is held.
func (l *Loop) tellRefused(r *Refusal) {
	if l.sharing == nil || !l.sharing.leads || l.follows() {
		return
	}
	if r != nil && (r.Kind == RefusedSuspended || r.Kind == RefusedExiting) {
		r = nil
	}
	l.sharing.mistaken = false
	l.sharing.Refused(r)
}

// tellDecided says that the loop has decided, if it leads. The lock is held.
func (l *Loop) tellDecided() {
	if l.sharing != nil && l.sharing.leads {
		l.sharing.Decided()
	}
}

// sharedState is the state in which others are to see i. The lock is held.
func (i *instance) sharedState(now time.Time) SharedState {
	switch {
	case i.stage == ready:
		return SharedOpen
	case i.stage == unready:
		return SharedCordoned
	case i.stage == draining && i.awaitsSession(now):
		return SharedCordoned
	}
	return SharedWithdrawn
}

// awaitsSession reports whether i, which drains, stays for the next request of a
// session. The lock is held.
func (i *instance) awaitsSession(now time.Time) bool {
	return i.revision.loop.goesOn() && !i.asleep && now.Before(i.drainUntil) && now.Before(i.slots.SessionUntil())
}

// decideFollowing does what is left to do while another loop decides. The lock is
// held.
func (l *Loop) decideFollowing(now time.Time) time.Time {
	var next recheck
	l.refuse(now)
	for _, s := range l.takeCalls() {
		i := l.current().instances[s.ID]
		if i == nil || i.slots != s {
			continue
		}
		switch st := s.Stats(); {
		case st.Spent:
			l.sharing.Spent(i.ID)
		case st.Ejected:
			l.attend(i, now)
		}
	}
	for range decideTries {
		if l.reserver.Watch(l.reserver.Stats().Demand) {
			break
		}
	}
	l.finish(now, &next)
	l.settle()
	l.show()
	return next.at
}

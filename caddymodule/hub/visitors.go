package hub

import (
	"crypto/sha256"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

// VisitorKey tells visitors apart, by the client and by what it asks for.
// Nothing has to be kept in the browser, so it also works where scripts and
// cookies are off.
type VisitorKey [sha256.Size]byte

// Visitor is a browser with the waiting page: its place in the queue, and the
// requests that attend to it. It is guarded by the lock of its visitors.
type Visitor struct {
	reserver.Visitor
	Key      VisitorKey
	attended int         // requests and streams that are about it now
	absent   *time.Timer // ends the place of a visitor that is not heard of
	held     bool        // whether a request of it waits for its turn
	claim    time.Time   // when its call is over; zero until it was told of it
}

// Called says whether the turn of v has come.
func (v *Visitor) Called() bool {
	select {
	case <-v.Turn():
		return v.Reason() == nil
	default:
		return false
	}
}

// Visitors are those of one service. A place outlives the request that got
// the page, until the next request of the same visitor comes; without
// one for a while it is given up.
type Visitors struct {
	service *Service

	mu      sync.Mutex
	of      map[VisitorKey]*Visitor // made for the first one
	streams int
	seekers map[*seeker]struct{} // for the places that visitors have elsewhere
}

// all is the limit over all services.
func (vs *Visitors) all() *visitorLimit { return &vs.service.Hub.visitorLimit }

// visitorLimit bounds places, and streams of open pages, over all services.
type visitorLimit struct {
	max, places, streams atomic.Int64
}

// take counts one more below a limit of the service and the one over all.
func (l *visitorLimit) take(used *atomic.Int64, here, limit int) bool {
	if here >= limit {
		return false
	}
	if used.Add(1) > l.max.Load() {
		used.Add(-1)
		return false
	}
	return true
}

// Find returns the visitor with that key, whom the caller attends to until it
// leaves, or nil.
func (vs *Visitors) Find(key VisitorKey) *Visitor {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	return vs.attend(vs.of[key])
}

// attend lets the place of v be kept. Its call, if its turn has come, ends
// when it would: a slot stays free for it, and a visitor that only asks for
// its turn would keep the slot from all others. The lock is held.
func (vs *Visitors) attend(v *Visitor) *Visitor {
	if v != nil {
		v.attended++
		if !v.Called() {
			v.absent.Stop()
		}
	}
	return v
}

// Hold lets one request that attends to v wait for its turn, until unhold;
// false if another one does. A request that waits so is in no queue and counts nowhere.
func (vs *Visitors) Hold(v *Visitor) bool {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if v.held {
		return false
	}
	v.held = true
	return true
}

// Unhold lets the next one.
func (vs *Visitors) Unhold(v *Visitor) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	v.held = false
}

// Invite finds or makes the visitor with that key, whom the caller attends to.
func (vs *Visitors) Invite(key VisitorKey, ask reserver.Ask) (*Visitor, error) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if v := vs.attend(vs.of[key]); v != nil {
		return v, nil
	}
	if !vs.all().take(&vs.all().places, len(vs.of), vs.service.Live.Load().maxWaiting) {
		return nil, reserver.ErrQueueFull
	}
	v := &Visitor{Key: key}
	if err := vs.service.Reserver.Visit(&v.Visitor, ask); err != nil {
		vs.all().places.Add(-1)
		return nil, err
	}
	return vs.add(v), nil
}

// Keep gives the place of r in the queue to a visitor with that key, to which
// no request attends yet. If there is no room for one more visitor, or the
// same one has a place already, r just leaves the queue. In both cases away is
// true. If r does not wait any more, it is false, and err is what Granted has
// delivered.
func (vs *Visitors) Keep(key VisitorKey, r *reserver.Reservation, linger time.Duration) (away bool, err error) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if vs.of[key] != nil || !vs.all().take(&vs.all().places, len(vs.of), vs.service.Live.Load().maxWaiting) {
		// The same visitor came twice, and has one place.
		return !r.Cancel(), nil
	}
	v := &Visitor{Key: key}
	if !r.Keep(&v.Visitor) {
		vs.all().places.Add(-1)
		return false, <-r.Granted()
	}
	vs.leaveLocked(vs.add(v), linger)
	return true, nil
}

func (vs *Visitors) add(v *Visitor) *Visitor {
	v.attended = 1
	v.absent = time.AfterFunc(time.Hour, func() { vs.gone(v) })
	v.absent.Stop()
	if vs.of == nil {
		vs.of = make(map[VisitorKey]*Visitor)
	}
	vs.of[v.Key] = v
	return v
}

// Leave ends attending to v. If no other request attends to it, its place is
// given up after linger. If its turn has come, the place is given up then in
// any case, and nothing makes that later.
func (vs *Visitors) Leave(v *Visitor, linger time.Duration) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	vs.leaveLocked(v, linger)
}

func (vs *Visitors) leaveLocked(v *Visitor, linger time.Duration) {
	v.attended--
	switch {
	case vs.of[v.Key] != v:
	case v.Called():
		if end := time.Now().Add(linger); v.claim.IsZero() || end.Before(v.claim) {
			v.claim = end
		}
		v.absent.Reset(time.Until(v.claim))
	case v.attended == 0:
		v.absent.Reset(linger)
	}
}

// gone gives up the place of a visitor that is not heard of, or was called and
// did not come.
func (vs *Visitors) gone(v *Visitor) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if v.attended == 0 || !v.claim.IsZero() && !time.Now().Before(v.claim) {
		vs.forget(v)
	}
}

// End ends attending to v, and v itself: it has arrived, or was sent away.
func (vs *Visitors) End(v *Visitor) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	v.attended--
	vs.forget(v)
}

// forget takes v out, even if a request attends to it. The lock is held.
func (vs *Visitors) forget(v *Visitor) {
	if vs.of[v.Key] != v {
		return
	}
	v.absent.Stop()
	delete(vs.of, v.Key)
	vs.all().places.Add(-1)
	v.Leave()
}

// clear takes all visitors out.
func (vs *Visitors) clear() {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	for _, v := range vs.of {
		vs.forget(v)
	}
}

// Open counts one more stream of an open page; false if there are too many.
func (vs *Visitors) Open() bool {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if !vs.all().take(&vs.all().streams, vs.streams, vs.service.Live.Load().maxWaiting) {
		return false
	}
	vs.streams++
	return true
}

// Closed counts one less.
func (vs *Visitors) Closed() {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	vs.streams--
	vs.all().streams.Add(-1)
}

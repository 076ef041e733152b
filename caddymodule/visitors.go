package caddymodule

import (
	"crypto/sha256"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-usher/usher/reserver"
)

// visitorKey tells visitors apart: who asks for what. Nothing has to be kept
// in the browser for it, so it also holds where scripts and cookies are off.
type visitorKey [sha256.Size]byte

// originalURI is what was asked for, before anything was rewritten.
func originalURI(r *http.Request) string {
	if orig, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		return orig.RequestURI
	}
	return r.RequestURI
}

// keyOf returns the key of the one who sends r.
func keyOf(r *http.Request) visitorKey {
	h := sha256.New()
	ip, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	for _, part := range []string{ip, r.UserAgent(), r.Host, originalURI(r)} {
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	return visitorKey(h.Sum(nil))
}

// visitor is somebody who looks at the waiting page: a place in the line, and
// who is there for it. It is guarded by the lock of its visitors.
type visitor struct {
	reserver.Guest
	key      visitorKey
	attended int         // requests and streams that are about it now
	absent   *time.Timer // ends the place of one who is not heard of
	held     bool        // whether a request of it waits for its turn
	claim    time.Time   // when its call is over; zero until it was told of it
}

// called says whether the turn of v has come.
func (v *visitor) called() bool {
	select {
	case <-v.Turn():
		return v.Reason() == nil
	default:
		return false
	}
}

// visitors are those of one service. A place outlives the request that got
// the page, until the next request of the same visitor comes; if nobody is
// heard of for a while it is given up.
type visitors struct {
	service *service

	mu      sync.Mutex
	of      map[visitorKey]*visitor // made for the first one
	streams int
}

// all is the limit over all services.
func (vs *visitors) all() *visitorLimit { return &vs.service.hub.visitors }

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

// find returns the visitor with that key, whom the caller attends to until it
// leaves, or nil.
func (vs *visitors) find(key visitorKey) *visitor {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	return vs.attend(vs.of[key])
}

// attend lets the place of v be kept. Its call, if its turn has come, ends
// when it would: a slot stays free for it, and who only asks whether it is
// its turn would keep it from all others. The lock is held.
func (vs *visitors) attend(v *visitor) *visitor {
	if v != nil {
		v.attended++
		if !v.called() {
			v.absent.Stop()
		}
	}
	return v
}

// hold lets one request that attends to v wait for its turn, until unhold;
// false if another one does. Whoever waits so is in no line and counts nowhere.
func (vs *visitors) hold(v *visitor) bool {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if v.held {
		return false
	}
	v.held = true
	return true
}

// unhold lets the next one.
func (vs *visitors) unhold(v *visitor) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	v.held = false
}

// invite finds or makes the visitor with that key, whom the caller attends to.
func (vs *visitors) invite(key visitorKey, quiet bool) (*visitor, error) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if v := vs.attend(vs.of[key]); v != nil {
		return v, nil
	}
	if !vs.all().take(&vs.all().places, len(vs.of), vs.service.live.Load().maxWaiting) {
		return nil, reserver.ErrQueueFull
	}
	v := &visitor{key: key}
	if err := vs.service.reserver.Invite(&v.Guest, quiet); err != nil {
		vs.all().places.Add(-1)
		return nil, err
	}
	return vs.add(v), nil
}

// keep gives the place of r in the line to a visitor with that key, whom
// nobody attends to yet, and returns errWaitingPage. If r waits no longer it
// returns what Granted has delivered. If there is no room for one more visitor
// r just leaves.
func (vs *visitors) keep(key visitorKey, r *reserver.Reservation, linger time.Duration) error {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if vs.of[key] != nil || !vs.all().take(&vs.all().places, len(vs.of), vs.service.live.Load().maxWaiting) {
		// The same visitor came twice, and has one place.
		if r.Cancel() {
			return nil
		}
		return errWaitingPage
	}
	v := &visitor{key: key}
	if !r.Keep(&v.Guest) {
		vs.all().places.Add(-1)
		return <-r.Granted()
	}
	vs.leaveLocked(vs.add(v), linger)
	return errWaitingPage
}

func (vs *visitors) add(v *visitor) *visitor {
	v.attended = 1
	v.absent = time.AfterFunc(time.Hour, func() { vs.gone(v) })
	v.absent.Stop()
	if vs.of == nil {
		vs.of = make(map[visitorKey]*visitor)
	}
	vs.of[v.key] = v
	return v
}

// leave ends attending to v. If nobody else does, its place is given up when
// nobody is heard of for so long. If its turn has come, it is given up then
// whoever attends to it, and nobody makes that later.
func (vs *visitors) leave(v *visitor, linger time.Duration) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	vs.leaveLocked(v, linger)
}

func (vs *visitors) leaveLocked(v *visitor, linger time.Duration) {
	v.attended--
	switch {
	case vs.of[v.key] != v:
	case v.called():
		if end := time.Now().Add(linger); v.claim.IsZero() || end.Before(v.claim) {
			v.claim = end
		}
		v.absent.Reset(time.Until(v.claim))
	case v.attended == 0:
		v.absent.Reset(linger)
	}
}

// gone gives up the place of one who is not heard of, or was called and did
// not come.
func (vs *visitors) gone(v *visitor) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if v.attended == 0 || !v.claim.IsZero() && !time.Now().Before(v.claim) {
		vs.forget(v)
	}
}

// end ends attending to v, and v itself: it has arrived, or was sent away.
func (vs *visitors) end(v *visitor) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	v.attended--
	vs.forget(v)
}

// forget takes v out, whoever attends to it. The lock is held.
func (vs *visitors) forget(v *visitor) {
	if vs.of[v.key] != v {
		return
	}
	v.absent.Stop()
	delete(vs.of, v.key)
	vs.all().places.Add(-1)
	v.Leave()
}

// clear takes all visitors out.
func (vs *visitors) clear() {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	for _, v := range vs.of {
		vs.forget(v)
	}
}

// open counts one more stream of an open page; false if there are too many.
func (vs *visitors) open() bool {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if !vs.all().take(&vs.all().streams, vs.streams, vs.service.live.Load().maxWaiting) {
		return false
	}
	vs.streams++
	return true
}

// closed counts one less.
func (vs *visitors) closed() {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	vs.streams--
	vs.all().streams.Add(-1)
}

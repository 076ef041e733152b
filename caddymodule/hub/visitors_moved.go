package hub

import (
	"encoding/json"
	"time"

	"go.uber.org/zap"
)

// A visitor with the waiting page may come to another Caddy of the cluster than
// before: its page listens there, or asks again there. Its place in the queue
// comes along. The Caddy where it has come asks the others, and the one that has
// the place gives it up and says how old it is. Until then it has a place like one
// that is new. A request that finds a slot asks no other Caddy.

// newsVisitor, before the name of a service, is the subject of news about visitors.
const newsVisitor = "visitor/"

// visitorNews asks for the place of a visitor, or gives it.
type visitorNews struct {
	Key []byte `json:"key"`

	// To is the boot of the Caddy that gets the place. Empty: the sender asks for it.
	To     string `json:"to,omitempty"`
	AgeMS  int64  `json:"age_ms,omitempty"`
	Called bool   `json:"called,omitempty"`
}

// A Place is what a visitor had at another Caddy.
type Place struct {
	Age    time.Duration // since it waits
	Called bool          // its turn had come
}

// SeekFor is how long a request is held, at least, for the place that its visitor
// may have at another Caddy. Asking takes two ways over the network.
const SeekFor = 100 * time.Millisecond

// seeker waits for the place of a visitor.
type seeker struct {
	key VisitorKey
	got func(Place)
}

// Seek asks the other Caddys of the cluster for the place of a visitor that has
// come here. got is called with it, soon or never, in another goroutine, and must
// not wait. stop has to be called; got is not called afterwards. Without a cluster
// nothing is asked, and asked is false.
func (vs *Visitors) Seek(key VisitorKey, got func(Place)) (stop func(), asked bool) {
	m := vs.service.shared
	if m == nil {
		return func() {}, false
	}
	s := &seeker{key, got}
	vs.mu.Lock()
	if vs.seekers == nil {
		vs.seekers = make(map[*seeker]struct{})
	}
	vs.seekers[s] = struct{}{}
	vs.mu.Unlock()
	m.tellVisitor(vs.service.Name, visitorNews{Key: key[:]})
	return func() {
		vs.mu.Lock()
		defer vs.mu.Unlock()
		delete(vs.seekers, s)
	}, true
}

// found hands a place over to one of those that seek it. If the answer comes after
// they have ended, it is for the place that the visitor has got here meanwhile: the
// other Caddy has it no longer.
func (vs *Visitors) found(key VisitorKey, p Place) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	for s := range vs.seekers {
		if s.key == key {
			delete(vs.seekers, s)
			s.got(p)
			return
		}
	}
	if v := vs.of[key]; v != nil {
		v.Advance(p.Age)
	}
}

// surrender gives up the place of a visitor that has come to another Caddy. One to
// which a page listens here stays.
func (vs *Visitors) surrender(key VisitorKey) (p Place, ok bool) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	v := vs.of[key]
	if v == nil || v.attended > 0 {
		return Place{}, false
	}
	p = Place{Age: time.Since(v.Since()), Called: v.Called()}
	vs.forget(v)
	return p, true
}

func (m *membership) tellVisitor(name string, n visitorNews) {
	b, err := json.Marshal(n)
	if err != nil {
		m.log().Error("the other Caddys are not asked for the place of a visitor", zap.String("service", name), zap.Error(err))
		return
	}
	m.driver.Tell(newsVisitor+name, b)
}

// hearVisitor takes what another Caddy says of a visitor. It reports whether
// others are to hear it, too.
func (m *membership) hearVisitor(from, name string, body []byte) (passOn bool) {
	var n visitorNews
	if err := json.Unmarshal(body, &n); err != nil || len(n.Key) != len(VisitorKey{}) {
		return false
	}
	_, s := m.of(name, nil)
	switch {
	case n.To == "":
		if s == nil {
			return true
		}
		p, ok := s.Visitors.surrender(VisitorKey(n.Key))
		if ok {
			m.tellVisitor(name, visitorNews{Key: n.Key, To: from, AgeMS: p.Age.Milliseconds(), Called: p.Called})
		}
		return !ok
	case n.To != m.boot:
		return true
	case s != nil:
		s.Visitors.found(VisitorKey(n.Key), Place{time.Duration(n.AgeMS) * time.Millisecond, n.Called})
	}
	return false
}

package control

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// tellsEnds is a platform that tells every Caddy of the ends of instances.
type tellsEnds struct {
	*platform
	fails error

	mu      sync.Mutex
	ended   map[string]bool
	changed func()
	open    int // observations
}

func (p *tellsEnds) Observe(_ scaler.Env, changed func()) (scaler.Observation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fails != nil {
		return nil, p.fails
	}
	p.changed = changed
	p.open++
	return p, nil
}

func (p *tellsEnds) Ended(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended[id]
}

func (p *tellsEnds) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
}

func (p *tellsEnds) observations() int {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open
}

func (p *tellsEnds) end(id string) {
	p.mu.Lock()
	p.ended[id] = true
	changed := p.changed
	p.mu.Unlock()
	changed()
}

func newTellsEnds() *tellsEnds {
	return &tellsEnds{platform: remote(), ended: make(map[string]bool)}
}

// follower is a member whose platform tells of ends.
func follower(t *testing.T, p *tellsEnds) *member {
	t.Helper()
	m := newMember(t, defaults(), p.platform)
	if err := m.SetBackend(p); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return m
}

func TestAnInstanceThatHasEndedIsNotUsedAlthoughTheLeaderListsIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newTellsEnds()
		m := follower(t, p)
		one := Shared{ID: "one", Network: "tcp", Address: "127.0.0.1:1", Slots: 1}
		two := Shared{ID: "two", Network: "tcp", Address: "127.0.0.1:2", Slots: 1}
		m.Follow([]Shared{one, two})
		m.SetShare("one", 1)
		in := m.inside()
		p.end("one")
		if all := m.Instances(); len(all) != 1 || all[0].ID != "two" {
			t.Fatalf("%+v", all)
		}
		if n := m.Inside("one"); n != 1 {
			t.Errorf("%d are inside, and its slot would be returned", n)
		}
		in.Release(reserver.Answered)
		r := m.waits()
		m.Follow([]Shared{one, two}) // the leader has not heard of it yet
		time.Sleep(time.Second)
		select {
		case <-r.Granted():
			t.Fatal("a request is sent to an instance that has ended")
		default:
		}
		// What is at its address now is another one.
		m.Follow([]Shared{{ID: "one.run2", Network: "tcp", Address: one.Address, Slots: 1}, two})
		m.SetShare("one.run2", 1)
		m.granted(r)
		r.Release(reserver.Answered)
	})
}

func TestThePlatformIsObservedOnlyWhileAnotherOneLeads(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newTellsEnds()
		m := follower(t, p)
		want := func(n int, when string) {
			t.Helper()
			if got := p.observations(); got != n {
				t.Errorf("%s: %d observations, want %d", when, got, n)
			}
		}
		want(1, "it follows")
		next := newTellsEnds()
		if err := m.SetBackend(next); err != nil {
			t.Fatal(err)
		}
		want(0, "the backend of before")
		p = next
		want(1, "the new one")
		m.leads()
		want(0, "it leads")
		m.Lead(false)
		want(1, "it follows again")
		_ = m.Close(t.Context())
		want(0, "it is closed")
	})
}

func TestAPlatformThatCannotBeObservedIsFollowedAnyway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newTellsEnds()
		p.fails = errors.New("no rights")
		m := follower(t, p)
		m.Follow([]Shared{{ID: "one", Network: "tcp", Address: "127.0.0.1:1", Slots: 1}})
		m.SetShare("one", 1)
		m.inside().Release(reserver.Answered)
	})
}

package control

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

// session is the first request of a session, which has a slot.
func (b *bench) session() *reserver.Reservation {
	b.t.Helper()
	r := new(reserver.Reservation)
	has, err := b.res.Reserve(r, reserver.Ask{Affinity: reserver.ByInstance})
	if err != nil {
		b.t.Fatal(err)
	}
	if !has {
		b.granted(r)
	}
	return r
}

func remembers(_ *bench, o *reserver.Options) { o.SessionTimeout = 10 * time.Minute }

func TestSessionsThatCannotGoOnKeepNoInstance(t *testing.T) {
	for name, end := range map[string]func(*bench){
		"suspended": func(b *bench) { b.Suspend("no") },
		"asleep":    func(b *bench) { b.Sleep() },
		"removed":   func(b *bench) { b.Retire(func() {}) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := &platform{local: true}
				b := newBench(t, defaults(), p, nil, remembers)
				b.session().Release(reserver.Answered)
				b.runs(1)
				end(b)
				b.runs(0)
			})
		})
	}
}

func TestG6ASessionKeepsItsInstanceWhileDemandFalls(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency, s.IdleTimeout = 2, 1, time.Hour }), p, nil, remembers)
		time.Sleep(time.Second)
		first, second := b.session(), b.session()
		b.runs(2)
		first.Release(reserver.Answered)
		second.Release(reserver.Answered)
		time.Sleep(9 * time.Minute)
		b.runs(2)
		time.Sleep(2 * time.Minute)
		b.runs(1)
	})
}

// After a restart the old instance serves its sessions while there may be
// further requests of them, and its drain_timeout at most.
func TestG16ADrainingInstanceIsKeptForItsSessions(t *testing.T) {
	for name, c := range map[string]struct{ session, drain, want time.Duration }{
		"until they may have ended": {20 * time.Second, time.Minute, 20 * time.Second},
		"until drain_timeout":       {10 * time.Minute, 30 * time.Second, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p, next := &platform{local: true}, &platform{local: true}
				b := newBench(t, with(func(s *Settings) { s.Max, s.Overlap, s.DrainTimeout = 2, OverlapOn, c.drain }), p, nil,
					func(_ *bench, o *reserver.Options) { o.SessionTimeout = c.session })
				first := b.session()
				home := first.Instance()
				first.Release(reserver.Answered)
				if err := b.SetBackend(next); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				b.runs(1)
				again := new(reserver.Reservation)
				if has, err := b.res.Reserve(again, reserver.Ask{Affinity: reserver.ByInstance, Instance: home}); !has || err != nil || again.Instance() != home {
					t.Fatalf("the session moved: %v, %v", has, err)
				}
				again.Release(reserver.Answered)
				for len(p.ids()) == 1 && time.Since(began) < time.Hour {
					time.Sleep(time.Second)
				}
				if took := time.Since(began); took < c.want || took > c.want+time.Second {
					t.Errorf("it was stopped after %v; want %v", took, c.want)
				}
				moved := new(reserver.Reservation)
				if has, err := b.res.Reserve(moved, reserver.Ask{Affinity: reserver.ByInstance, Instance: home}); !has || err != nil || moved.Session() != reserver.SessionMoved {
					t.Fatalf("%v, %v, %v", has, err, moved.Session())
				}
				moved.Release(reserver.Answered)
			})
		})
	}
}

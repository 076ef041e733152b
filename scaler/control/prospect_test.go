package control

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler/policies"
)

// What is said of the present is not what was so at the last decision.
func TestTheReasonIsThatOfThisMoment(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency, s.IdleTimeout = 5, 2, 5*time.Minute }), &platform{}, nil)
		says := func(want string) {
			t.Helper()
			waitIdle()
			if p := b.Prospect(); p.Reason != want {
				t.Errorf("%q, want %q", p.Reason, want)
			}
		}
		says("")
		var inside []*reserver.Reservation
		for range 6 {
			inside = append(inside, b.inside())
		}
		says("6 in use, 0 waiting")
		for _, r := range inside[1:] {
			r.Release(reserver.Answered)
		}
		says("highest demand of the last minute (down_window)")
		if p := b.Prospect(); !p.At.IsZero() {
			t.Errorf("it goes to %d in %v, although a request is inside", p.Target, time.Until(p.At))
		}
		inside[0].Release(reserver.Answered)
		time.Sleep(2 * time.Minute)
		says("one stays until idle_timeout")
		b.Sleep()
		says("put to sleep by an operator")
		b.Suspend("moving")
		says("")
	})
}

// It is told when instances go, and then they go.
func TestWhenInstancesGoIsToldAhead(t *testing.T) {
	for name, policy := range map[string]Settings{
		"queue":    {Policy: policies.Queue{}},
		"adaptive": {Policy: policies.Adaptive{}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := newBench(t, with(func(s *Settings) { s.Policy, s.IdleTimeout = policy.Policy, 5*time.Minute }), &platform{}, nil)
				for range 3 {
					b.comesAndGoes()
					time.Sleep(20 * time.Second)
				}
				b.runs(1)
				p := b.Prospect()
				if p.Target != 0 || !p.At.After(time.Now()) {
					t.Fatalf("it is not told when it sleeps: %+v", p)
				}
				time.Sleep(time.Until(p.At) - time.Second)
				b.runs(1)
				time.Sleep(time.Second + 10*time.Millisecond)
				b.runs(0)
			})
		})
	}
}

func TestNothingIsForetoldOfWhatStays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		least := newBench(t, with(func(s *Settings) { s.Min, s.IdleTimeout = 1, time.Minute }), &platform{}, nil)
		least.runs(1)
		if p := least.Prospect(); !p.At.IsZero() {
			t.Errorf("below its minimum: %+v", p)
		}
		quick := with(func(s *Settings) { s.IdleTimeout = time.Minute })
		db := named(t, "db", quick, &platform{}, nil)
		app := named(t, "app", with(func(s *Settings) { s.Needs, s.IdleTimeout = needs(db), time.Hour }), &platform{}, nil)
		group := new(Group)
		in := with(func(s *Settings) { s.Group, s.IdleTimeout = group, time.Minute })
		web, mail := named(t, "web", in, &platform{}, nil), named(t, "mail", in, &platform{}, nil)
		app.comesAndGoes()
		web.comesAndGoes()
		r := web.inside()
		time.Sleep(10 * time.Minute)
		for _, x := range []struct {
			b    *bench
			name string
		}{{db, "app"}, {mail, "web"}} {
			x.b.runs(1)
			if p := x.b.Prospect(); p.KeptFor != x.name || p.Reason != "kept awake for "+x.name || !p.At.IsZero() {
				t.Errorf("%+v, want it to be kept for %s", p, x.name)
			}
		}
		r.Release(reserver.Answered)
	})
}

// The reader of the events sees the reason first, and then what comes of it.
func TestADecisionIsToldBeforeTheInstancesThatDrainByIt(t *testing.T) {
	for name, end := range map[string]func(*bench){
		"idle":      func(*bench) { time.Sleep(2 * time.Minute) },
		"asleep":    func(b *bench) { b.Sleep() },
		"suspended": func(b *bench) { b.Suspend("no") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := newBench(t, with(func(s *Settings) { s.IdleTimeout = time.Minute }), &platform{local: true}, nil)
				b.comesAndGoes()
				end(b)
				b.runs(0)
				b.rec.mu.Lock()
				defer b.rec.mu.Unlock()
				at := func(what string) int {
					return slices.IndexFunc(b.rec.events, func(e string) bool { return strings.Contains(e, what) })
				}
				if decided, drains := at("target 1->0"), at("draining"); decided < 0 || drains < decided {
					t.Errorf("in this order:\n%s", strings.Join(b.rec.events, "\n"))
				}
			})
		})
	}
}

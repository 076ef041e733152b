package reserver

import (
	"testing"
	"testing/synctest"
	"time"
)

// A websocket is one request that can take longer than any timeout.
func TestASessionIsInUseAsLongAsARequestOfItIsInside(t *testing.T) {
	for name, begin := range map[string]func(*Service, *Reservation){
		"key":    func(s *Service, r *Reservation) { _, _ = s.Reserve(r, Ask{Affinity: ByKey, Key: 7}) },
		"cookie": func(s *Service, r *Reservation) { _, _ = s.Reserve(r, Ask{Affinity: ByInstance}) },
		"learned": func(s *Service, r *Reservation) {
			_, _ = s.Reserve(r, Ask{})
			r.Learn(7)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New(Options{MaxWaiting: 10, SessionTimeout: time.Minute}, nil, hooks{})
				s.Add("a", "r", "tcp", "x", 2)
				s.Add("b", "r", "tcp", "x", 2)
				open := new(Reservation)
				begin(s, open)
				i := open.Instance()
				for range 3 {
					time.Sleep(time.Hour)
					if i.SessionUntil() != time.Now().Add(time.Minute) {
						t.Fatal(i.SessionUntil())
					}
					if name != "cookie" {
						other := new(Reservation)
						_, _ = s.Reserve(other, Ask{Affinity: ByKey, Key: 8 + uint64(time.Now().Unix())}) // forgets what is over
						other.Release(Answered)
						r := new(Reservation)
						if _, _ = s.Reserve(r, Ask{Affinity: ByKey, Key: 7}); r.Instance() != i || r.Session() != SessionKept {
							t.Fatal(r.Session())
						}
						r.Release(Answered)
					}
				}
				open.Release(Answered)
				time.Sleep(59 * time.Second)
				if i.SessionUntil().IsZero() {
					t.Error("it is over at once")
				}
				time.Sleep(time.Second + 1)
				if !i.SessionUntil().IsZero() {
					t.Error("it is never over")
				}
				next := new(Reservation)
				if _, _ = s.Reserve(next, Ask{Affinity: ByKey, Key: 7}); next.Session() != SessionNew {
					t.Error(next.Session())
				}
			})
		})
	}
}

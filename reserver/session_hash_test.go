package reserver

import "testing"

// After a start of this program its instances come one after the other, and
// cookies name instances that it does not know yet.
func TestARequestFindsTheInstanceOfItsSessionThatComesWhileItWaits(t *testing.T) {
	s := New(Options{MaxWaiting: 10, SessionTimeout: 1 << 40}, nil, hooks{})
	other := s.Add("other", "r", "tcp", "x", 1)
	full := new(Reservation)
	if ok, _ := s.Reserve(full, Ask{}); !ok {
		t.Fatal("no slot")
	}
	r := new(Reservation)
	if ok, err := s.Reserve(r, Ask{Affinity: ByInstance, Key: hashOf("own")}); ok || err != nil {
		t.Fatal(ok, err)
	}
	own := s.Add("own", "r", "tcp", "x", 1)
	if err := <-r.Granted(); err != nil || r.Instance() != own || r.Session() != SessionKept {
		t.Fatal(err, r.Instance(), r.Session())
	}
	full.Release(Answered)
	again := new(Reservation)
	if ok, err := s.Reserve(again, Ask{Affinity: ByInstance, Key: own.Hash()}); ok || err != nil || !again.Bound() {
		t.Fatal("it does not wait for its own instance", ok, err)
	}
	own.Remove()
	if err := <-again.Granted(); err != nil || again.Instance() != other || again.Session() != SessionMoved {
		t.Fatal(err, again.Instance(), again.Session())
	}
	again.Release(Answered)
	late := new(Reservation)
	if ok, _ := s.Reserve(late, Ask{Affinity: ByInstance, Key: own.Hash()}); !ok || late.Session() != SessionMoved {
		t.Fatal("it waits for an instance that is gone", late.Session())
	}
}

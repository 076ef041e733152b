package hub

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

func TestEveryPlaceOfAVisitorIsGivenBack(t *testing.T) {
	t.Parallel()
	h := newHub()
	t.Cleanup(func() { _ = h.closeAll() })
	s := h.Acquire("web")
	places := func(want int) {
		t.Helper()
		if n, kept := h.visitorLimit.places.Load(), len(s.Visitors.of); int(n) != want || kept != want {
			t.Errorf("%d places over all services, %d of this one, want %d", n, kept, want)
		}
	}
	arrives, err := s.Visitors.Invite(VisitorKey{1}, reserver.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	var r reserver.Reservation
	if ok, err := s.Reserver.Reserve(&r, reserver.Ask{}); ok || err != nil {
		t.Fatal(ok, err)
	}
	if away, err := s.Visitors.Keep(VisitorKey{2}, &r, time.Hour); !away {
		t.Fatal(err)
	}
	places(2)
	if again, err := s.Visitors.Invite(VisitorKey{2}, reserver.Ask{}); err != nil || again != s.Visitors.Find(VisitorKey{2}) {
		t.Error("the same visitor has another place", err)
	}
	places(2)
	s.Visitors.End(arrives)
	places(1)
	s.Visitors.clear()
	places(0)
	s.Visitors.End(arrives) // once more is no harm
	places(0)
}

// The other Caddy has given the place up when its answer comes.
func TestAPlaceThatIsFoundLateIsNotLost(t *testing.T) {
	t.Parallel()
	h := newHub()
	t.Cleanup(func() { _ = h.closeAll() })
	s := h.Acquire("web")
	var all [2]*Visitor
	for k := range all {
		v, err := s.Visitors.Invite(VisitorKey{byte(k)}, reserver.Ask{})
		if err != nil {
			t.Fatal(err)
		}
		all[k] = v
	}
	if n := all[1].Ahead(); n != 1 {
		t.Fatalf("%d ahead", n)
	}
	s.Visitors.found(all[1].Key, Place{Age: time.Hour})
	if n := all[1].Ahead(); n != 0 {
		t.Errorf("%d are ahead of one that has waited for an hour", n)
	}
	s.Visitors.found(VisitorKey{9}, Place{Age: time.Hour}) // it is gone here, too
}

package hub

import (
	"slices"
	"testing"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler/control"
)

func TestPlacementsArriveAsTheyWere(t *testing.T) {
	all := []reserver.Placement{{Key: 1, Instance: 1 << 63}, {Key: 1<<64 - 1, Instance: 2, Learned: true}}
	if got := decodePlaced(encodePlaced(all)); !slices.Equal(got, all) {
		t.Errorf("%+v", got)
	}
	if got := decodePlaced(encodePlaced(all)[:20]); !slices.Equal(got, all[:1]) {
		t.Errorf("of a broken one: %+v", got)
	}
}

// A member may be told of a session before it is told of its instance.
func TestASessionOnAnInstanceThatIsNotKnownYetIsRemembered(t *testing.T) {
	h, m := joined(t)
	s := newService(h, "web")
	t.Cleanup(func() { _ = s.Loop.Close(t.Context()) })
	s.shared = m
	m.share(s)
	s.Reserver.SetOptions(reserver.Options{MaxWaiting: 5, SessionTimeout: 1 << 40})
	other := reserver.New(reserver.Options{}, nil, new(control.Loop).Hooks()).Add("one", "", "", "", 1)
	m.hearPlaced("web", encodePlaced([]reserver.Placement{{Key: 7, Instance: other.Hash()}}))
	if n := len(s.Reserver.Placements()); n != 0 {
		t.Fatalf("%d are placed nowhere", n)
	}
	m.Follow("web", []cluster.Instance{{ID: "one", Network: "tcp", Address: "127.0.0.1:1", Slots: 5}})
	if got := s.Reserver.Placements(); len(got) != 1 || got[0].Key != 7 {
		t.Errorf("%+v", got)
	}
}

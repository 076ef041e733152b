package hub

import (
	"context"
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

// placing is a member that shares a service whose sessions have keys.
func placing(t *testing.T) (*membership, *Service) {
	t.Helper()
	h, m := joined(t)
	s := newService(h, "web")
	t.Cleanup(func() { _ = s.Loop.Close(context.Background()) })
	s.shared = m
	m.share(s)
	s.Reserver.SetOptions(reserver.Options{MaxWaiting: 5, SessionTimeout: 1 << 40})
	return m, s
}

// hears tells m that the session of a key is on an instance.
func (m *membership) hears(key uint64, id string) {
	i := reserver.New(reserver.Options{}, nil, new(control.Loop).Hooks()).Add(id, "", "", "", 1)
	m.hearPlaced("web", encodePlaced([]reserver.Placement{{Key: key, Instance: i.Hash()}}))
}

// followsThose tells m which instances there are.
func (m *membership) followsThose(ids ...string) {
	var list []cluster.Instance
	for _, id := range ids {
		list = append(list, cluster.Instance{ID: id, Network: "tcp", Address: "127.0.0.1:1", Slots: 5})
	}
	m.Follow("web", list)
}

// wantOn looks for the only key, which is to be on an instance that there is.
func wantOn(t *testing.T, s *Service, id string) {
	t.Helper()
	i := reserver.New(reserver.Options{}, nil, new(control.Loop).Hooks()).Add(id, "", "", "", 1)
	if all := s.Reserver.Placements(); len(all) != 1 || all[0].Instance != i.Hash() {
		t.Errorf("placed are %+v, and the key is on %s, which is %d", all, id, i.Hash())
	}
}

// A member may be told of a session before it is told of its instance.
func TestASessionOnAnInstanceThatIsNotKnownYetIsRemembered(t *testing.T) {
	m, s := placing(t)
	m.hears(7, "one")
	if n := len(s.Reserver.Placements()); n != 0 {
		t.Fatalf("%d are placed nowhere", n)
	}
	m.followsThose("one")
	wantOn(t, s, "one")
}

func TestALaterWordCountsForASessionOnAnInstanceThatIsNotKnownYet(t *testing.T) {
	t.Run("that it is on one that is known", func(t *testing.T) {
		m, s := placing(t)
		m.followsThose("two")
		m.hears(7, "one")
		m.hears(7, "two")
		m.followsThose("one", "two")
		wantOn(t, s, "two")
	})
	t.Run("that it is on another one that is not", func(t *testing.T) {
		m, s := placing(t)
		m.hears(7, "one")
		m.hears(7, "two")
		m.followsThose("one")
		m.followsThose("one", "two")
		wantOn(t, s, "two")
	})
	t.Run("that of this Caddy, once it leads", func(t *testing.T) {
		m, s := placing(t)
		m.followsThose("two")
		m.hears(7, "one")
		m.Lead(true, 1)
		m.hears(7, "two")
		m.Lead(false, 1)
		m.followsThose("one", "two")
		wantOn(t, s, "two")
	})
}

func TestASessionOnAnInstanceThatNeverComesIsForgotten(t *testing.T) {
	m, _ := placing(t)
	m.hears(7, "one")
	m.followsThose("two")
	m.followsThose("two", "three")
	if k, _ := m.of("web", nil); len(k.early) != 0 {
		t.Errorf("%v is kept", k.early)
	}
}

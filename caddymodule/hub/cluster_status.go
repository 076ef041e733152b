package hub

import (
	"fmt"
	"maps"
	"slices"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/cluster"
)

// ClusterStatus is what this Caddy knows of its cluster.
type ClusterStatus struct {
	Name        string `json:"name"`
	Member      string `json:"member"` // this Caddy
	Coordinator string `json:"coordinator"`

	// View is the number of the view that is followed, and Leader the member that
	// leads in it; empty if there is none.
	View   uint64 `json:"view"`
	Leader string `json:"leader"`

	// LeaseMS is for how long this Caddy may send requests without a further word,
	// in milliseconds. Isolated is true if it may not.
	LeaseMS  int64 `json:"lease_ms"`
	Isolated bool  `json:"isolated"`

	Members  []ClusterMember  `json:"members"`
	Services []ClusterService `json:"services"`
}

// ClusterMember is one Caddy of a cluster.
type ClusterMember struct {
	Member string `json:"member"`
	Leader bool   `json:"leader"`

	// Connected is true if this Caddy has a connection to it. Members have one to
	// the leader, and the leader has one to each.
	Connected bool `json:"connected"`

	// Lost is true if it is no member any more and may still have requests inside.
	Lost bool `json:"lost"`
}

// ClusterService is what this Caddy has of a service that is shared.
type ClusterService struct {
	Service string `json:"service"`

	// Held is the number of slots that this Caddy holds.
	Held int `json:"held"`

	// Lost is the number of slots that lost Caddys may hold, so that no other one
	// can use them. The leader alone knows it.
	Lost int `json:"lost"`

	// Waiting and InUse are those of all Caddys.
	Waiting int `json:"waiting"`
	InUse   int `json:"in_use"`

	// Handovers is how often another Caddy gave slots back because the leader
	// asked it to, since this Caddy leads. The leader alone counts them.
	Handovers int `json:"handovers"`

	// Differs are the members that define the service in another way than the
	// leader.
	Differs []string `json:"differs,omitempty"`
}

// ClusterStatus returns what is known of the cluster; nil if this Caddy is in
// none.
func (h *Hub) ClusterStatus() *ClusterStatus {
	m := h.member.Load()
	if m == nil {
		return nil
	}
	return m.status()
}

func (m *membership) status() *ClusterStatus {
	m.mu.Lock()
	names := slices.Sorted(maps.Keys(m.services))
	m.mu.Unlock()
	d := m.driver.Status(names...)
	leader, _ := d.View.Peer(d.View.Leader)
	st := &ClusterStatus{
		Name: m.cluster.config.Name, Member: m.cluster.config.Advertise, Coordinator: m.coordinator.String(),
		View: d.View.Number, Leader: leader.ID, LeaseMS: d.LeaseLeft.Milliseconds(),
		Members: []ClusterMember{}, Services: []ClusterService{},
	}
	add := func(peers []cluster.Peer, lost bool) {
		for _, p := range peers {
			_, connected := slices.BinarySearch(d.Connected, p.Boot)
			st.Members = append(st.Members, ClusterMember{Member: p.ID, Leader: p.Boot == d.View.Leader, Connected: connected, Lost: lost})
		}
	}
	add(d.View.Members, false)
	add(d.View.Lost, true)
	m.mu.Lock()
	defer m.mu.Unlock()
	st.Isolated = m.isolated
	for _, name := range names {
		k := m.services[name]
		if k.service == nil {
			continue
		}
		s := ClusterService{Service: name, Waiting: k.sum.Waiting, InUse: k.sum.InUse, Differs: slices.Sorted(maps.Keys(k.differs))}
		s.Lost, s.Handovers = d.Lost[name], k.handovers
		for _, held := range d.Held[name] {
			s.Held += held.N
		}
		st.Services = append(st.Services, s)
	}
	return st
}

// ForgetMember is an operator's word that a member, or a lost one, has ended, and
// has no requests inside any more. It returns an error if there is none to which
// this can apply.
func (h *Hub) ForgetMember(id string) error {
	m := h.member.Load()
	if m == nil {
		return ErrNoCluster
	}
	d := m.driver.Status()
	for _, p := range slices.Concat(d.View.Members, d.View.Lost) {
		if p.ID != id {
			continue
		}
		if p.ID == m.cluster.config.Advertise {
			return fmt.Errorf("%s is this Caddy", id)
		}
		if _, connected := slices.BinarySearch(d.Connected, p.Boot); connected {
			return fmt.Errorf("%s runs: this Caddy has a connection to it", id)
		}
		m.driver.Forget(id)
		m.log().Info("an operator says that a member has ended", zap.String("member", id))
		return nil
	}
	return fmt.Errorf("there is no member %s", id)
}

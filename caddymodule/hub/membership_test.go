package hub

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/coordinator"
	"github.com/caddy-usher/usher/cluster/link"
	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/test/addr"
)

// away is a coordinator that cannot be reached, so its cluster never has a view.
type away struct{}

func (away) Open(string) (coordinator.Coordinator, error) { return away{}, nil }

func (away) Read(context.Context) (cluster.View, error) { return cluster.View{}, errors.New("away") }

func (away) Swap(context.Context, cluster.View, cluster.View) (cluster.SwapResult, cluster.View, error) {
	return cluster.Failed, cluster.View{}, errors.New("away")
}

func (away) String() string { return "a coordinator that is away" }

func (away) Close() error { return nil }

// joined is a hub that takes part in a cluster in which nothing happens.
func joined(t *testing.T) (*Hub, *membership) {
	t.Helper()
	identity, err := link.FromSecret("a secret of the tests, long enough")
	if err != nil {
		t.Fatal(err)
	}
	address := addr.Free(t).String()
	h := newHub()
	c := &Cluster{config: ClusterConfig{Name: "test", Listen: address, Advertise: address, Lease: caddy.Duration(time.Second)}, opener: away{}, identity: identity}
	m, err := h.join(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.member.Store(m)
	t.Cleanup(func() {
		m.close(context.Background())
		h.cancel()
	})
	return h, m
}

// What the protocol says of a service before a configuration has it holds for it,
// too: the slots are this Caddy's.
func TestAServiceThatIsSharedLaterGetsWhatWasSaidBefore(t *testing.T) {
	h, m := joined(t)
	m.SetSlots("web", "one", 2)
	m.SetSlots("web", "two", 1)
	m.SetSlots("web", "two", 0)
	list := []cluster.Instance{{ID: "one", Network: "tcp", Address: "127.0.0.1:1", Slots: 5}, {ID: "two", Network: "tcp", Address: "127.0.0.1:2", Slots: 5}}
	m.Follow("web", list)
	s := newService(h, "web")
	t.Cleanup(func() { _ = s.Loop.Close(context.Background()) })
	s.shared = m
	m.share(s)
	var held []*reserver.Reservation
	for range 3 {
		r := new(reserver.Reservation)
		has, err := s.Reserver.Reserve(r, reserver.Ask{})
		if err != nil {
			t.Fatal(err)
		}
		if has {
			held = append(held, r)
		}
	}
	if len(held) != 2 || held[0].Instance().ID != "one" || held[1].Instance().ID != "one" {
		t.Errorf("%d requests have a slot, and one has two", len(held))
	}
	if n := m.InUse("web", "one"); n != 2 {
		t.Errorf("%d are inside", n)
	}
	need := m.Need("web")
	if need.Waiting != 1 || need.InUse != 2 || need.Demand != 3 {
		t.Errorf("%+v", need)
	}
}

func TestWhoIsInNoClusterHasNoStatus(t *testing.T) {
	h := newHub()
	t.Cleanup(h.cancel)
	if h.ClusterStatus() != nil {
		t.Error("it has one")
	}
	if err := h.ForgetMember("a"); !errors.Is(err, ErrNoCluster) {
		t.Errorf("%v", err)
	}
}

func TestOptionsOfAClusterThatCannotWork(t *testing.T) {
	whole := ClusterConfig{CoordinatorRaw: []byte(`{"type":"etcd"}`), Listen: ":7443", Advertise: "127.0.0.1:7443", Secret: "long enough, it is"}
	if err := whole.check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*ClusterConfig){
		"no coordinator":             func(c *ClusterConfig) { c.CoordinatorRaw = nil },
		"nowhere to be reached":      func(c *ClusterConfig) { c.Advertise = "" },
		"everywhere to be reached":   func(c *ClusterConfig) { c.Listen, c.Advertise = "0.0.0.0:7443", "" },
		"no port":                    func(c *ClusterConfig) { c.Advertise = "10.0.0.1" },
		"a short lease":              func(c *ClusterConfig) { c.Lease = caddy.Duration(time.Millisecond) },
		"lost before the lease ends": func(c *ClusterConfig) { c.LostAfter = caddy.Duration(time.Second) },
		"a negative lease":           func(c *ClusterConfig) { c.Lease = -1 },
		"isolated in another way":    func(c *ClusterConfig) { c.Isolated = "panic" },
	} {
		c := whole
		change(&c)
		if err := c.check(); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	for name, change := range map[string]func(*ClusterConfig){
		"no secret":        func(c *ClusterConfig) { c.Secret = "" },
		"a short secret":   func(c *ClusterConfig) { c.Secret = "short" },
		"a secret and tls": func(c *ClusterConfig) { c.TLS = new(ClusterTLS) },
		"certificates of air": func(c *ClusterConfig) {
			c.Secret, c.TLS = "", &ClusterTLS{"/nonexistent", "/nonexistent", "/nonexistent"}
		},
	} {
		c := whole
		change(&c)
		if _, err := c.identity(); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	listens := whole
	listens.Listen, listens.Advertise = "10.0.0.1:7443", ""
	if err := listens.check(); err != nil || listens.Advertise != "10.0.0.1:7443" {
		t.Errorf("%v, advertise %s", err, listens.Advertise)
	}
}

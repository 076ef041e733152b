package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/coordinator"
	"github.com/caddy-usher/usher/cluster/driver"
	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

// membership is this Caddy's part in a cluster. It is the driver's host: it
// carries out what the protocol says, in the loops and reservers of the services
// that are shared.
type membership struct {
	hub         *Hub
	cluster     *Cluster
	coordinator coordinator.Coordinator
	driver      *driver.Driver
	boot        string     // that of this Caddy
	accounting  sync.Mutex // only one account is written at a time
	leads       atomic.Bool
	left        chan struct{} // closed when it has left, or given up
	leaving     sync.Once

	mu       sync.Mutex
	services map[string]*sharedService
	orders   bool
	isolated bool
}

// sharedService is what is known of a service that is shared. It outlives the
// Service: it is this Caddy that holds the slots.
type sharedService struct {
	service   *Service // nil while no configuration has it
	slots     map[string]int
	list      []control.Shared
	watch     bool
	early     map[uint64]earlyPlacement // by key; on instances that are not known here yet
	sum       cluster.Load
	others    cluster.Load
	handovers int
	differs   map[string]bool // members that define it in another way, by ID

	pacing sync.Mutex
	need   reserver.Need
	told   time.Time
	due    bool

	accounted  time.Time
	accountDue bool
}

// join begins to take part in a cluster.
func (h *Hub) join(c *Cluster, notes []cluster.Note) (*membership, error) {
	listener, err := net.Listen("tcp", c.config.Listen)
	if err != nil {
		return nil, fmt.Errorf("cluster: listening for the other Caddys: %w", err)
	}
	store, err := c.opener.Open(c.config.Name)
	if err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("cluster: opening the coordinator: %w", err)
	}
	m := &membership{hub: h, cluster: c, coordinator: store, left: make(chan struct{}), services: make(map[string]*sharedService), isolated: true}
	m.mu.Lock()
	defer m.mu.Unlock()
	self := c.self()
	m.boot = self.Boot
	m.driver = driver.Start(driver.Config{
		Cluster: c.config.Name, Self: self, Options: c.config.options(), Coordinator: store, Host: m,
		Identity: c.identity, Listener: listener, Notes: notes, Logger: slogTo(h.logs.logger.Named("cluster")),
		Answer: m.answer,
	})
	h.logs.logger.Named("cluster").Info("this Caddy takes part in a cluster", zap.String("cluster", c.config.Name), zap.String("member", self.ID), zap.String("coordinator", store.String()))
	return m, nil
}

// leave gives all slots back, as requests end, and then takes no more part. It
// returns at once.
func (m *membership) leave() {
	m.leaving.Do(func() {
		go func() {
			defer close(m.left)
			ctx, cancel := context.WithTimeoutCause(context.Background(), leaveTimeout, errLeaving)
			defer cancel()
			if err := m.driver.Leave(ctx); err != nil {
				m.log().Warn("this Caddy leaves its cluster without a word: the others find out that it has ended", zap.Error(err))
			} else {
				m.log().Info("this Caddy has left its cluster")
			}
		}()
	})
}

// leaveTimeout bounds leaving: the grace period of Caddy may be long.
const leaveTimeout = 30 * time.Second

var errLeaving = errors.New("its slots could not be given back in time")

// close ends all that runs, once this Caddy has left or ctx has ended.
func (m *membership) close(ctx context.Context) {
	m.leave()
	select {
	case <-m.left:
	case <-ctx.Done():
	}
	m.driver.Close()
	if err := m.coordinator.Close(); err != nil {
		m.log().Warn("closing the coordinator", zap.Error(err))
	}
}

func (m *membership) log() *zap.Logger { return m.hub.logs.logger.Named("cluster") }

// applyCluster begins to take part in the cluster of g. The lock is held.
func (h *Hub) applyCluster(g *Generation, notes []cluster.Note) error {
	m := h.member.Load()
	switch {
	case m == nil && g.Cluster == nil:
		return nil
	case m == nil && len(h.generations) > 0:
		return errors.New("cluster: it is new, and what runs already is not shared: restart Caddy")
	case m == nil:
		joined, err := h.join(g.Cluster, notes)
		if err == nil {
			h.member.Store(joined)
		}
		return err
	case g.Cluster == nil:
		return errors.New("cluster: it is no longer configured, and what runs is shared: restart Caddy")
	case !reflect.DeepEqual(g.Cluster.given, m.cluster.given):
		return errors.New("cluster: its options have changed, which takes a restart of Caddy")
	}
	return nil
}

// shared reports whether the instances of a definition are shared with other
// Caddys.
func (d *Definition) shared() bool {
	s, ok := d.Backend.(scaler.Sharer)
	return ok && s.Shared()
}

// share makes a service one that is shared, before it has a backend.
func (m *membership) share(s *Service) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := s.Name
	k := m.known(name)
	k.service = s
	s.Loop.Share(control.Sharing{
		List:    func(all []control.Shared) { m.driver.List(name, instancesOf(all)) },
		Refused: func(r *control.Refusal) { m.refused(name, r) },
		Decided: func() { m.decided(s, k) },
		Spent:   func(id string) { m.driver.Tell(newsSpent+name, []byte(id)) },
	})
	s.Reserver.SetFreed(func(i *reserver.Instance) { m.driver.Freed(name, i.ID) })
	s.Reserver.SetChanged(func() { m.changed(name, k) })
	s.Reserver.SetPlaced(func() { time.AfterFunc(placedPause, func() { m.tellPlaced(s) }) })
	for id, n := range k.slots {
		s.Loop.SetShare(id, n)
	}
	s.Reserver.SetElsewhere(k.others.Waiting - k.others.Visitors)
	s.Loop.Follow(k.list)
	s.Reserver.WatchFreed(k.watch)
	s.Loop.FollowRefusal(refusalOf(m.driver.Note(noteRefused + name)))
	s.Loop.FollowAccount(accountOf(m.driver.Note(noteAccount + name)))
	if m.leading() {
		s.Loop.Lead(true)
		s.Loop.Order(m.orders)
	}
	m.driver.Demand(name) // the first reading, which asks for the next
	if !m.isolated {
		m.hub.background.Go(func() { m.fetchAllPlaced([]*Service{s}) })
	}
}

// unshare forgets a service that no configuration has any more.
func (m *membership) unshare(s *Service) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := m.services[s.Name]; k != nil && k.service == s {
		k.service = nil
		m.hub.background.Go(func() { m.takeNotes(s.Name) })
	}
}

// takeNotes takes away what the loop of a service has told, if this Caddy leads: it
// would hold for the next service of that name.
func (m *membership) takeNotes(name string) {
	m.accounting.Lock()
	defer m.accounting.Unlock()
	if _, s := m.of(name, nil); s != nil || !m.leading() {
		return
	}
	for _, key := range []string{noteAccount + name, noteRefused + name} {
		if !m.driver.Note(key).Gone {
			m.driver.Take(key)
		}
	}
}

// known returns what is known of a service. The lock is held.
func (m *membership) known(name string) *sharedService {
	k := m.services[name]
	if k == nil {
		k = &sharedService{slots: make(map[string]int), differs: make(map[string]bool)}
		m.services[name] = k
	}
	return k
}

// needPause is the least time between two readings of what a service needs.
const needPause = 5 * time.Millisecond

// changed has the need of a service read: at once after a quiet time, else after
// a pause.
func (m *membership) changed(name string, k *sharedService) {
	k.pacing.Lock()
	defer k.pacing.Unlock()
	if k.due {
		return
	}
	rest := needPause - time.Since(k.told)
	if rest <= 0 {
		m.driver.Demand(name)
		return
	}
	k.due = true
	time.AfterFunc(rest, func() {
		k.pacing.Lock()
		k.due = false
		k.pacing.Unlock()
		m.driver.Demand(name)
	})
}

// of returns what is known of a service, after a change, and the service if a
// configuration has it. One that is shared later finds the change.
func (m *membership) of(name string, change func(*sharedService)) (*sharedService, *Service) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.known(name)
	if change != nil {
		change(k)
	}
	return k, k.service
}

// all returns the services that a configuration has.
func (m *membership) all() (all []*Service) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.services {
		if k.service != nil {
			all = append(all, k.service)
		}
	}
	return all
}

// whole is what all Caddys together have of a service.
type whole struct {
	others    cluster.Load // that of the other Caddys; visitors count as waiting
	slots     int          // of the instances that take requests
	unlimited bool         // one of them has no limit
}

// whole returns what all Caddys together have of a service.
func (m *membership) whole(name string) (w whole) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.known(name)
	for _, i := range k.list {
		if i.State == control.SharedOpen {
			w.slots += i.Slots
			w.unlimited = w.unlimited || i.Slots == 0
		}
	}
	w.others = k.others
	return w
}

// What follows implements driver.Host.

func (m *membership) SetSlots(name, id string, n int) {
	switch n {
	case 0:
		n = reserver.NoSlots
	case cluster.Unlimited:
		n = reserver.Unlimited
	}
	_, s := m.of(name, func(k *sharedService) {
		if n == reserver.NoSlots {
			delete(k.slots, id)
		} else {
			k.slots[id] = n
		}
	})
	if s != nil {
		s.Loop.SetShare(id, n)
	}
}

func (m *membership) InUse(name, id string) int {
	if _, s := m.of(name, nil); s != nil {
		return s.Loop.Inside(id)
	}
	return 0
}

func (m *membership) Need(name string) cluster.Need {
	k, s := m.of(name, nil)
	if s == nil {
		return cluster.Need{}
	}
	leads := m.leading()
	k.pacing.Lock()
	defer k.pacing.Unlock()
	k.told = time.Now()
	s.Reserver.Need(&k.need)
	r := &k.need
	need := cluster.Need{Load: cluster.Load{
		// A visitor is called when a slot is free, so it needs one here.
		Waiting: r.Waiting + r.Visitors, Visitors: r.Visitors, InUse: r.InUse, Demand: r.Demand, Peak: r.Demand, Arrivals: r.Arrivals,
	}}
	since := func(t time.Time) time.Duration {
		if t.IsZero() {
			return 0
		}
		return k.told.Sub(t)
	}
	need.Oldest = max(since(r.OldestWait), since(r.OldestVisitor))
	if !leads {
		need.Peak = max(need.Peak, s.Reserver.TakePeak()) // the leader's loop takes its own
	}
	for _, b := range r.Bound {
		need.Bound = append(need.Bound, cluster.BoundNeed{Instance: b.Instance.ID, Waiting: b.Waiting, Oldest: since(b.OldestWait)})
	}
	return need
}

// leading reports whether this Caddy leads. It takes no lock: loops ask under
// their own.
func (m *membership) leading() bool { return m.leads.Load() }

func (m *membership) Watch(name string, on bool) {
	if _, s := m.of(name, func(k *sharedService) { k.watch = on }); s != nil {
		s.Reserver.WatchFreed(on)
	}
}

// errIsolated is why requests are ended whose slots others may use soon.
var errIsolated = fmt.Errorf("this Caddy has lost its cluster, and others may use its slots soon: %w", control.ErrGone)

func (m *membership) Cut(name, id string) {
	if _, s := m.of(name, nil); s != nil {
		s.Loop.Interrupt(id, errIsolated)
	}
}

func (m *membership) Follow(name string, instances []cluster.Instance) {
	list := make([]control.Shared, 0, len(instances))
	for _, i := range instances {
		slots := i.Slots
		if slots == cluster.Unlimited {
			slots = 0
		}
		list = append(list, control.Shared{ID: i.ID, Network: i.Network, Address: i.Address, Slots: slots, State: control.SharedState(i.State), Fresh: i.Fresh})
	}
	var early map[uint64]earlyPlacement
	if _, s := m.of(name, func(k *sharedService) {
		k.list = list
		early, k.early = k.early, nil
	}); s != nil {
		s.Loop.Follow(list)
		m.placeEarly(s, early)
	}
}

// instancesOf are instances as the protocol knows them.
func instancesOf(all []control.Shared) []cluster.Instance {
	list := make([]cluster.Instance, 0, len(all))
	for _, i := range all {
		slots := i.Slots
		if slots == 0 {
			slots = cluster.Unlimited
		}
		list = append(list, cluster.Instance{ID: i.ID, Network: i.Network, Address: i.Address, Slots: slots, State: cluster.State(i.State), Fresh: i.Fresh})
	}
	return list
}

func (m *membership) Sum(name string, all, others cluster.Load) {
	_, s := m.of(name, func(k *sharedService) { k.sum, k.others = all, others })
	if s == nil {
		return
	}
	s.Reserver.SetElsewhere(others.Waiting - others.Visitors)
	l := control.Load{Waiting: others.Waiting, InUse: others.InUse, Demand: others.Demand, Peak: others.Peak, Arrivals: others.Arrivals}
	if others.Waiting > 0 {
		l.OldestWait = time.Now().Add(-others.Oldest)
	}
	s.Loop.Elsewhere(l)
}

func (m *membership) Lead(on bool, term uint64) {
	m.mu.Lock()
	m.leads.Store(on)
	m.orders = m.orders && on
	for _, k := range m.services {
		k.handovers, k.early = 0, nil // from now on it is up to this Caddy, or to the next
	}
	m.mu.Unlock()
	if on {
		m.log().Info("this Caddy leads the cluster", zap.Uint64("term", term))
	} else {
		m.log().Info("this Caddy leads the cluster no longer")
	}
	for _, s := range m.all() {
		s.Loop.Lead(on)
	}
}

func (m *membership) Confirmed(on bool) {
	m.mu.Lock()
	m.orders = on
	m.mu.Unlock()
	for _, s := range m.all() {
		s.Loop.Order(on)
	}
}

func (m *membership) Empty(name, id string) {
	if _, s := m.of(name, nil); s != nil {
		s.Loop.Emptied(id)
	}
}

func (m *membership) Replace(name, id string) {
	if _, s := m.of(name, nil); s != nil {
		s.Log().Warn("an instance is replaced, because a lost Caddy may have requests inside", zap.String("instance", id))
		s.Loop.ReplaceShared(id)
	}
}

func (m *membership) HandedOver(name string, took time.Duration) {
	if _, s := m.of(name, func(k *sharedService) { k.handovers++ }); s != nil && !s.metrics.gone.Load() {
		handoverSeconds.WithLabelValues(name).Observe(took.Seconds())
	}
}

func (m *membership) Isolated(on bool) {
	m.mu.Lock()
	changed := m.isolated != on
	m.isolated = on
	m.mu.Unlock()
	switch {
	case !changed:
	case on && m.cluster.config.Isolated == IsolatedKeep:
		m.log().Warn("this Caddy has lost its cluster: it goes on, and instances may get more requests than they have slots")
	case on:
		m.log().Warn("this Caddy has lost its cluster: requests wait until it is back")
	default:
		m.log().Info("this Caddy may send requests")
		m.hub.background.Go(func() { m.fetchAllPlaced(m.all()) })
		m.hub.background.Go(m.catchUpMade)
	}
}

func (m *membership) Differs(name string, member cluster.Peer, on bool) {
	m.of(name, func(k *sharedService) {
		if on {
			k.differs[member.ID] = true
		} else {
			delete(k.differs, member.ID)
		}
	})
	if on {
		m.log().Warn("a Caddy defines a service in another way than the leader, whose definition holds: give all the same configuration", zap.String("service", name), zap.String("member", member.ID))
	}
}

// MayWrite reports whether the first byte of a request may be written to an
// instance now. It is asked directly before.
func (s *Service) MayWrite() bool {
	if s.shared == nil {
		return true
	}
	return s.shared.driver.MayWrite()
}

// AwaitLease returns when requests find slots again only if they may be sent,
// after MayWrite has said no.
func (s *Service) AwaitLease(ctx context.Context) {
	if s.shared != nil {
		s.shared.driver.Settle(ctx)
	}
}

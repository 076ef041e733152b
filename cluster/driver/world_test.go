package driver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for what has to happen by itself. It decides nothing.
const patience = 30 * time.Second

// options are short times, so that a lost Caddy is given up soon.
var options = cluster.Options{Lease: time.Second, LostAfter: 500 * time.Millisecond, Fair: 20 * time.Millisecond}

// byProof makes time prove nothing: only the end of a lost Caddy does.
func byProof(c *Config) { c.Options.Replace = true }

// store is a coordinator in memory.
type store struct {
	mu     sync.Mutex
	view   cluster.View
	away   bool          // it answers with an error
	silent chan struct{} // it does not answer until this is closed
}

func (s *store) wait(ctx context.Context) error {
	s.mu.Lock()
	away, silent := s.away, s.silent
	s.mu.Unlock()
	if silent != nil {
		select {
		case <-silent:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if away {
		return errors.New("no connection")
	}
	return nil
}

func (s *store) Read(ctx context.Context) (cluster.View, error) {
	if err := s.wait(ctx); err != nil {
		return cluster.View{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view, nil
}

func (s *store) Swap(ctx context.Context, expect, next cluster.View) (cluster.SwapResult, cluster.View, error) {
	if err := s.wait(ctx); err != nil {
		return cluster.Unknown, cluster.View{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.view.Equal(expect) {
		return cluster.Conflict, s.view, nil
	}
	s.view = next
	return cluster.Swapped, cluster.View{}, nil
}

func (s *store) String() string { return "memory" }

func (s *store) Close() error { return nil }

func (s *store) set(away bool, silent chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away, s.silent = away, silent
}

// platform has the instances of one service, and knows what is inside.
type platform struct {
	t      *testing.T
	mu     sync.Mutex
	all    []cluster.Instance
	inside map[string]int
}

func (p *platform) enter(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inside[id]++
	for _, i := range p.all {
		if i.ID == id && p.inside[id] > i.Slots {
			p.t.Errorf("%d requests inside %s, which has %d slots", p.inside[id], id, i.Slots)
		}
	}
}

func (p *platform) exit(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inside[id]--
}

const service = "web"

// host is a Caddy with a queue for one service.
type host struct {
	d        *Driver
	platform *platform

	mu       sync.Mutex
	slots    map[string]int
	inUse    map[string]int
	queue    []chan string
	since    []time.Time
	watch    bool
	arrivals uint64
	isolated bool
	leads    bool
	differs  map[string]bool
	noted    []cluster.Note
	empty    []string
	told     []string

	handedOver int
	sum        cluster.Load
	others     cluster.Load
	ready      atomic.Bool
}

// hand gives free slots to those that wait, and tells that fewer do. It is called
// with the lock.
func (h *host) hand() {
	before := len(h.queue)
	defer func() {
		if len(h.queue) < before {
			h.d.Demand(service)
		}
	}()
	for len(h.queue) > 0 && h.d.MayWrite() {
		free := ""
		for id, n := range h.slots {
			if h.inUse[id] < n {
				free = id
			}
		}
		if free == "" {
			return
		}
		h.inUse[free]++
		h.queue[0] <- free
		h.queue, h.since = h.queue[1:], h.since[1:]
	}
}

// do has a request inside an instance for a moment.
func (h *host) do(ctx context.Context, work func(instance string)) error {
	got := make(chan string, 1)
	h.mu.Lock()
	h.queue, h.since = append(h.queue, got), append(h.since, time.Now())
	h.arrivals++
	h.hand()
	h.mu.Unlock()
	h.d.Demand(service)
	select {
	case id := <-got:
		h.platform.enter(id)
		work(id)
		h.platform.exit(id)
		h.mu.Lock()
		h.inUse[id]--
		over := h.inUse[id] >= h.slots[id]
		h.hand()
		tell := over || h.watch
		h.mu.Unlock()
		if tell {
			h.d.Freed(service, id)
		}
		h.d.Demand(service)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *host) SetSlots(_, id string, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slots[id] = n
	h.hand()
}

func (h *host) InUse(_, id string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.inUse[id]
}

func (h *host) Need(string) (n cluster.Need) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n.Waiting = len(h.queue); n.Waiting > 0 {
		n.Oldest = time.Since(h.since[0])
	}
	for _, k := range h.inUse {
		n.InUse += k
	}
	n.Demand, n.Arrivals = n.Waiting+n.InUse, h.arrivals
	return n
}

func (h *host) Watch(_ string, on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watch = on
}

func (h *host) Cut(string, string) {}

func (h *host) Follow(_ string, all []cluster.Instance) {
	h.ready.Store(len(all) > 0)
}

func (h *host) Sum(_ string, l, others cluster.Load) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sum, h.others = l, others
}

func (h *host) Lead(on bool, _ uint64) {
	h.mu.Lock()
	h.leads = on
	h.mu.Unlock()
	if on {
		h.list()
	}
}

// list tells of the instances, as the control loop of a leader does.
func (h *host) list() {
	h.platform.mu.Lock()
	all := slices.Clone(h.platform.all)
	h.platform.mu.Unlock()
	h.d.List(service, all)
}

func (h *host) Confirmed(bool) {}

func (h *host) Empty(_, id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.empty = append(h.empty, id)
}

func (h *host) Replace(string, string) {}

func (h *host) Isolated(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.isolated = on
	if !on {
		h.hand()
	}
}

func (h *host) Noted(n cluster.Note) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noted = append(h.noted, n)
}

func (h *host) HandedOver(string, time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handedOver++
}

func (h *host) Told(from, subject string, body []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told = append(h.told, from+" "+subject+" "+string(body))
	return subject != "for the leader"
}

func (h *host) Differs(_ string, m cluster.Peer, on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.differs[m.ID] = on
}

func (h *host) holds(what func(*host) bool) func() bool {
	return func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return what(h)
	}
}

// world is a cluster in one process, over real connections.
type world struct {
	t     *testing.T
	store *store
	*platform
	secret   string
	identity *link.Identity
	log      *slog.Logger
}

func newWorld(t *testing.T, slots ...int) *world {
	t.Helper()
	secret := rand.Text()
	identity, err := link.FromSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		t: t, store: new(store), platform: &platform{t: t, inside: make(map[string]int)}, secret: secret, identity: identity,
		log: slog.New(slog.DiscardHandler),
	}
	for k, n := range slots {
		w.all = append(w.all, cluster.Instance{ID: fmt.Sprint("i", k), Slots: n, Fresh: true})
	}
	return w
}

// join starts a Caddy.
func (w *world) join(id string, change ...func(*Config)) *host {
	w.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	h := &host{platform: w.platform, slots: make(map[string]int), inUse: make(map[string]int), differs: make(map[string]bool)}
	c := Config{
		Cluster: "test", Self: cluster.Peer{ID: id, Boot: id + "-" + rand.Text(), Address: listener.Addr().String()},
		Options: options, Coordinator: w.store, Host: h, Identity: w.identity, Listener: listener, Logger: w.log,
	}
	for _, f := range change {
		f(&c)
	}
	// The Driver may call before Start has returned.
	h.mu.Lock()
	h.d = Start(c)
	h.mu.Unlock()
	w.t.Cleanup(h.d.Close)
	return h
}

// eventually waits for what has to happen by itself.
func (w *world) eventually(what string, holds func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if holds() {
			return
		}
	}
	w.t.Fatalf("it does not happen that %s; the view is %+v", what, w.store.view)
}

// together waits until all hosts are members with a lease, and one of them leads.
func (w *world) together(hosts ...*host) (leader *host) {
	w.t.Helper()
	w.eventually("all are members with a lease", func() bool {
		leader = nil
		for _, h := range hosts {
			s := h.d.Status()
			if s.LeaseLeft <= 0 || len(s.View.Members) != len(hosts) || !h.ready.Load() {
				return false
			}
			if s.Leads {
				leader = h
			}
		}
		return leader != nil
	})
	return leader
}

// known returns when each of the Caddys has reached all others, so that their ends
// can be proven. The end of one that ends before that, in its first moments, cannot.
func (w *world) known(hosts ...*host) {
	w.t.Helper()
	for _, h := range hosts {
		for _, o := range hosts {
			if p := o.d.c.Self; h != o {
				if err := h.d.link.Reach(w.t.Context(), link.Hello{ID: p.ID, Boot: p.Boot, Address: p.Address}); err != nil {
					w.t.Fatal(err)
				}
			}
		}
	}
}

// beside returns the one of two hosts that does not lead.
func beside(leader, a, b *host) *host {
	if leader == a {
		return b
	}
	return a
}

// load has so many clients, each of which sends one request after the other to
// the hosts in turn until stop is called, which returns how many were served.
func (w *world) load(clients int, hosts ...*host) (stop func() int64) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var served atomic.Int64
	var running sync.WaitGroup
	for k := range clients {
		running.Go(func() {
			for n := k; ctx.Err() == nil; n++ {
				if hosts[n%len(hosts)].do(ctx, func(string) { time.Sleep(time.Millisecond) }) == nil {
					served.Add(1)
				}
			}
		})
	}
	return func() int64 {
		cancel()
		running.Wait()
		return served.Load()
	}
}

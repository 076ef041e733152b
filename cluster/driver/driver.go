package driver

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/coordinator"
	"github.com/caddy-usher/usher/cluster/link"
)

// Host carries out what the Node says. Its methods are called by the Driver's
// goroutine alone, one after the other, and may not wait for anything. They may
// call the methods of Driver that report something.
type Host interface {
	// SetSlots sets how many requests of this Caddy may be inside an instance: a
	// number, 0 for none, or cluster.Unlimited. It ends no request. It may be
	// called before Follow has named the instance.
	SetSlots(service, instance string, slots int)

	// InUse returns how many requests of this Caddy are inside an instance.
	InUse(service, instance string) int

	// Need returns how the requests for a service are doing.
	Need(service string) cluster.Need

	// Watch says whether Driver.Freed has to be called for each slot of a service
	// that was freed and that no request took. It has to be called in any
	// case when a request leaves an instance that had more inside than its slots.
	Watch(service string, on bool)

	// Cut ends the requests inside an instance. Driver.Freed follows.
	Cut(service, instance string)

	// Follow says which instances a service has.
	Follow(service string, instances []cluster.Instance)

	// Sum is the load that all Caddys together have for a service, and that of
	// the others.
	Sum(service string, all, others cluster.Load)

	// Lead says whether this Caddy runs the control loops. The term is different
	// each time that a Caddy begins to lead.
	Lead(on bool, term uint64)

	// Confirmed says, while this Caddy leads, whether orders may go to platforms.
	Confirmed(on bool)

	// Empty says, while this Caddy leads, that an instance that was withdrawn has
	// no request inside.
	Empty(service, instance string)

	// Replace says, while this Caddy leads, that an instance has to be drained
	// and replaced.
	Replace(service, instance string)

	// Isolated says whether this Caddy has no lease.
	Isolated(on bool)

	// Noted says that another Caddy has put a note on the board of the cluster, or
	// has taken one away.
	Noted(cluster.Note)

	// HandedOver says, while this Caddy leads, how long another one took to give
	// slots of a service back, since it was asked to.
	HandedOver(service string, took time.Duration)

	// Told says what another Caddy, named by its boot, has told with Driver.Tell.
	// The result is for the Caddy that leads: whether the others are told, too.
	Told(from, subject string, body []byte) (passOn bool)

	// Differs says whether a Caddy defines a service in another way than the
	// leader, whose definition holds.
	Differs(service string, member cluster.Peer, on bool)
}

// Config says how a Caddy takes part in a cluster.
type Config struct {
	Cluster     string       // its name
	Self        cluster.Peer // a boot that was never used before
	Options     cluster.Options
	Coordinator coordinator.Coordinator
	Host        Host
	Identity    *link.Identity
	Listener    net.Listener   // for the other Caddys; Close closes it
	Notes       []cluster.Note // of the board, as this Caddy knew them last
	Logger      *slog.Logger

	// Answer answers the questions of other members, several at a time. It has to
	// return soon once ctx has ended.
	Answer func(ctx context.Context, question []byte) []byte
}

// Driver runs one Caddy's part in a cluster. All methods may be called from any
// goroutine.
type Driver struct {
	c       Config
	node    *cluster.Node // of the goroutine that takes the steps
	lease   *cluster.Lease
	base    time.Time
	link    *link.Link
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	wake    chan struct{}

	orders map[instance]uint64 // the last SetSlots of each; of the goroutine of the steps
	asked  map[recalled]owed   // the slots that others owe; as orders
	seen   uint64              // the number of the view that was followed last; as orders
	troubles

	mu       sync.Mutex
	events   []func() cluster.Event
	demand   map[string]bool   // services whose Need has changed
	freed    map[instance]bool // instances that a request has left
	streams  map[string]*stream
	target   cluster.Peer    // the Caddy to keep a stream to
	proving  map[string]bool // boots whose end is looked for at the moment
	board    *cluster.Board
	left     chan struct{}
	dialWake chan struct{}
}

type instance struct{ service, id string }

// Start begins to take part. Nothing is shared before the Host hears of it.
func Start(c Config) *Driver {
	d := &Driver{
		c: c, base: time.Now(), wake: make(chan struct{}, 1), dialWake: make(chan struct{}, 1), left: make(chan struct{}),
		orders: make(map[instance]uint64), asked: make(map[recalled]owed), demand: make(map[string]bool), freed: make(map[instance]bool),
		streams: make(map[string]*stream), proving: make(map[string]bool), board: cluster.NewBoard(c.Self.Boot),
	}
	d.board.Merge(c.Notes)
	d.c.Options = d.c.Options.WithDefaults()
	d.node = cluster.New(c.Self, c.Options, d.now())
	d.lease = d.node.Lease()
	d.troubles.log = c.Logger
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.link = link.Listen(c.Listener, link.Config{
		Identity: c.Identity, Cluster: c.Cluster, ID: c.Self.ID, Boot: c.Self.Boot, Address: c.Self.Address,
		Silence: d.c.Options.Lease, Logger: c.Logger, Accept: d.accept,
	})
	d.running.Go(d.run)
	d.running.Go(d.dial)
	return d
}

// Close ends all that runs, without a word to the others: for them this Caddy is
// lost. Leave is to be called before.
func (d *Driver) Close() {
	d.cancel()
	d.link.Close()
	d.running.Wait()
}

// Leave gives all slots back as they become free, and returns when the others
// know that this Caddy has none any more. An error means that they do not know
// it yet, and that they will have to find out. Once this Caddy has no slots, that
// is not waited for longer than two leases: the coordinator may be away.
func (d *Driver) Leave(ctx context.Context) error {
	d.post(cluster.Leaving{})
	look := time.NewTicker(d.c.Options.Beat)
	defer look.Stop()
	var empty time.Time // since when it has no slots
	for {
		select {
		case <-d.left:
			return nil
		case <-d.ctx.Done():
			return d.ctx.Err()
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-look.C:
		}
		switch {
		case !d.holdsNothing():
			empty = time.Time{}
		case empty.IsZero():
			empty = time.Now()
		case time.Since(empty) > 2*d.c.Options.Lease:
			return errNoNote
		}
	}
}

var errNoNote = errors.New("it has given all slots back, and neither the leader nor the coordinator has taken note of it")

// holdsNothing asks the Node whether this Caddy has no slots.
func (d *Driver) holdsNothing() (nothing bool) {
	done := make(chan struct{})
	d.postLater(func() cluster.Event {
		nothing = d.node.HoldsNothing()
		close(done)
		return nil
	})
	select {
	case <-done:
		return nothing
	case <-d.ctx.Done():
		return false
	}
}

func (d *Driver) now() cluster.Instant { return cluster.InstantOf(time.Now(), d.base) }

// MayWrite reports whether the first byte of a request may be written to an
// instance now. It has to be asked directly before.
func (d *Driver) MayWrite() bool { return d.lease.MayWrite(d.now()) }

// Settle returns when the Host has heard what follows from the time that it is
// now: when MayWrite says no, all instances have no slots afterwards, or there is
// a lease again.
func (d *Driver) Settle(ctx context.Context) {
	done := make(chan struct{})
	d.post(cluster.Tick{})
	d.postLater(func() cluster.Event {
		close(done)
		return nil
	})
	select {
	case <-done:
	case <-ctx.Done():
	case <-d.ctx.Done():
	}
}

// Demand says that the Need of a service has changed.
func (d *Driver) Demand(service string) {
	d.mu.Lock()
	known := d.demand[service]
	d.demand[service] = true
	d.mu.Unlock()
	if !known {
		d.wakeUp()
	}
}

// Freed says that a request has left an instance, as Host.Watch wants to know.
// Calls that come late or twice do no harm.
func (d *Driver) Freed(service, id string) {
	i := instance{service, id}
	d.mu.Lock()
	known := d.freed[i]
	d.freed[i] = true
	d.mu.Unlock()
	if !known {
		d.wakeUp()
	}
}

// Define says what this Caddy's configuration says of its services, instead of
// what was said before.
func (d *Driver) Define(definitions []cluster.Definition) {
	d.post(cluster.Defined{Definitions: definitions})
}

// List says, while this Caddy leads, which instances a service has.
func (d *Driver) List(service string, instances []cluster.Instance) {
	d.post(cluster.Listed{Service: service, Instances: instances})
}

// Forget is an operator's word that no Caddy with this ID or boot has requests
// inside.
func (d *Driver) Forget(member string) { d.post(cluster.Forget{ID: member}) }

// ForgetOthers is an operator's word that no other Caddy has requests inside.
func (d *Driver) ForgetOthers() { d.post(cluster.Forget{All: true}) }

// member returns the member of the view with that ID.
func (d *Driver) member(id string) (p cluster.Peer, ok bool) {
	for _, p := range d.Status().View.Members {
		if p.ID == id {
			return p, true
		}
	}
	return p, false
}

// Status is what this Caddy knows of its cluster.
type Status struct {
	View      cluster.View
	Leads     bool
	LeaseLeft time.Duration // 0 without a lease
	Connected []string      // boots of the Caddys to which a stream stands, sorted
	Held      map[string][]cluster.Slots
	Lost      map[string]int // as Node.Lost
}

// Status returns what this Caddy knows, and what it holds of the services that
// are named. It waits for the step that is being taken.
func (d *Driver) Status(services ...string) (s Status) {
	done := make(chan struct{})
	d.postLater(func() cluster.Event {
		s = Status{View: d.node.View(), Leads: d.node.Leads(), LeaseLeft: d.node.LeaseLeft(), Held: make(map[string][]cluster.Slots, len(services)), Lost: make(map[string]int)}
		for _, name := range services {
			s.Held[name] = d.node.Held(name)
			s.Lost[name] = d.node.Lost(name)
		}
		close(done)
		return nil
	})
	select {
	case <-done:
	case <-d.ctx.Done():
		return Status{}
	}
	d.mu.Lock()
	for boot := range d.streams {
		s.Connected = append(s.Connected, boot)
	}
	d.mu.Unlock()
	slices.Sort(s.Connected)
	return s
}

// post puts an event behind those that wait.
func (d *Driver) post(e cluster.Event) { d.postLater(func() cluster.Event { return e }) }

// postLater puts an event behind those that wait, which is made when its turn
// comes. A nil event is none.
func (d *Driver) postLater(e func() cluster.Event) {
	d.mu.Lock()
	d.events = append(d.events, e)
	d.mu.Unlock()
	d.wakeUp()
}

func (d *Driver) wakeUp() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// run takes the steps.
func (d *Driver) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for d.ctx.Err() == nil {
		select {
		case <-d.wake:
		case <-timer.C:
			d.step(cluster.Tick{})
		case <-d.ctx.Done():
			return
		}
		d.takeWhatWaits()
		d.lookForProof()
		timer.Reset(time.Duration(d.node.Next() - d.now().Mono))
	}
}

func (d *Driver) takeWhatWaits() {
	d.mu.Lock()
	events := d.events
	d.events = nil
	var freed map[instance]bool
	if len(d.freed) > 0 {
		freed, d.freed = d.freed, make(map[instance]bool)
	}
	var demand map[string]bool
	if len(d.demand) > 0 {
		demand, d.demand = d.demand, make(map[string]bool)
	}
	d.mu.Unlock()
	for _, e := range events {
		if e := e(); e != nil {
			d.step(e)
		}
	}
	used := make(map[string][]string)
	for i := range freed {
		used[i.service] = append(used[i.service], i.id)
	}
	for service, ids := range used {
		d.used(service, ids)
	}
	for service := range demand {
		need := d.c.Host.Need(service)
		need.Service = service
		d.step(cluster.Demand{Need: need})
	}
}

// used tells the Node how many requests are inside instances.
func (d *Driver) used(service string, ids []string) {
	slices.Sort(ids)
	ids = slices.Compact(ids)
	u := cluster.Used{Service: service, Instances: make([]cluster.Use, 0, len(ids))}
	for _, id := range ids {
		u.Instances = append(u.Instances, cluster.Use{Instance: id, Order: d.orders[instance{service, id}], InUse: d.c.Host.InUse(service, id)})
	}
	d.step(u)
}

// step takes a step and carries out what it says. What the reservers are told
// is answered in further steps.
func (d *Driver) step(e cluster.Event) {
	used := make(map[string][]string)
	d.noteReturns(e)
	for _, o := range d.node.Step(d.now(), e) {
		d.carryOut(o, used)
	}
	if v := d.node.View(); v.Number != d.seen {
		d.seen = v.Number
		d.reachAll(v)
	}
	for service, ids := range used {
		d.used(service, ids)
	}
}

func (d *Driver) carryOut(o cluster.Output, used map[string][]string) {
	host := d.c.Host
	switch o := o.(type) {
	case cluster.Send:
		if r, ok := o.Message.Body.(cluster.Recall); ok {
			d.asks(o.To, r)
		}
		d.send(o)
	case cluster.Connect:
		d.connect(o.Peer)
	case cluster.Disconnect:
		d.disconnect(o.Boot)
	case cluster.Read:
		d.read(o)
	case cluster.Swap:
		d.swap(o)
	case cluster.SetSlots:
		host.SetSlots(o.Service, o.Instance, o.Slots)
		d.orders[instance{o.Service, o.Instance}] = o.Order
		used[o.Service] = append(used[o.Service], o.Instance)
	case cluster.Watch:
		host.Watch(o.Service, o.On)
		if o.On { // a slot may have become free before
			for i := range d.orders {
				if i.service == o.Service {
					used[o.Service] = append(used[o.Service], i.id)
				}
			}
		}
	case cluster.Cut:
		host.Cut(o.Service, o.Instance)
		used[o.Service] = append(used[o.Service], o.Instance)
	case cluster.Follow:
		d.forgetOrders(o)
		host.Follow(o.Service, o.Instances)
	case cluster.Sum:
		host.Sum(o.Service, o.Load, o.Others)
	case cluster.Lead:
		clear(d.asked)
		host.Lead(o.On, o.Term)
	case cluster.Confirmed:
		host.Confirmed(o.On)
	case cluster.Empty:
		host.Empty(o.Service, o.Instance)
	case cluster.Replace:
		host.Replace(o.Service, o.Instance)
	case cluster.Isolated:
		host.Isolated(o.On)
	case cluster.Differs:
		p, _ := d.node.View().Peer(o.Boot)
		p.Boot = o.Boot
		host.Differs(o.Service, p, o.On)
	case cluster.Forgotten:
		d.c.Logger.Error("the coordinator has forgotten the view that this cluster follows: it was restored from a backup, or something else writes to it; the leader writes a newer one, and gives no slots until all requests of both have ended",
			slog.Uint64("found", o.Found.Number), slog.Uint64("followed", o.Followed.Number))
	case cluster.Left:
		close(d.left)
	}
}

// forgetOrders forgets instances that have ended, once nothing is inside.
func (d *Driver) forgetOrders(f cluster.Follow) {
	listed := make(map[string]bool, len(f.Instances))
	for _, i := range f.Instances {
		listed[i.ID] = true
	}
	for i := range d.orders {
		if i.service == f.Service && !listed[i.id] && d.c.Host.InUse(i.service, i.id) == 0 {
			delete(d.orders, i)
		}
	}
}

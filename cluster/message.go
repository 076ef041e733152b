package cluster

import "time"

// Message is what one Caddy tells another. Messages of one stream arrive in
// the order in which they were sent, or the stream is broken.
type Message struct {
	// View is the number of the view that the sender follows. A message of
	// another view than the receiver's has no effect.
	View uint64

	// Session is a number of the member that sends or gets the message. A
	// message of an earlier session has no effect. It is 0 where a message
	// belongs to no session: NewView, Ask and Still.
	Session uint64

	// Body is one of the types below.
	Body Body
}

// Body is one of Hello, Heartbeat, Return, Need, Leave and Still, which
// members send to the leader, or Welcome, Ack, Announce, Grant, Recall, Ask and
// NewView, which the leader sends to members.
type Body interface{ body() }

// Slots is a number of slots of one instance.
type Slots struct {
	Service, Instance string
	N                 int

	// Network and Address say where the instance is, or was. They are given in a
	// Hello only.
	Network, Address string `json:",omitempty"`
}

// Hello begins a session: the leader's record of what the member holds is
// replaced by Held.
type Hello struct {
	Peer Peer

	// Held are the slots that the member holds. Instances of which it holds
	// none are left out.
	Held []Slots

	// Definitions are the hashes of the member's definitions of services.
	Definitions []Definition

	// Leaving is true if the member is about to leave, and wants no slots.
	Leaving bool
}

// Definition names what a Caddy's configuration says of a service.
type Definition struct {
	Service, Hash string
}

// Welcome says that the leader has taken note of a Hello. The services follow,
// an Announce each.
type Welcome struct{}

// Heartbeat asks for a longer lease.
type Heartbeat struct {
	// Sent is read by the member only, when it comes back in the Ack.
	Sent Instant
}

// Ack gives a lease that ends Rest after the Heartbeat was sent.
type Ack struct {
	Sent Instant
	Rest time.Duration
}

// Grant gives slots to a member.
type Grant struct{ Slots []Slots }

// Return gives slots back to the leader.
type Return struct{ Slots []Slots }

// Recall asks for slots. It says how many the member is to have returned since
// the session began, all together, so an older number is replaced by a newer
// one, and none is counted twice.
type Recall struct {
	Service string

	// Instance is empty if slots of any instance of the service will do.
	Instance string

	// Until is the number of slots to have returned. Free ones are returned at
	// once, others when requests leave them and none waits for them.
	Until uint64

	// Busy is how many of those are to be returned although requests wait for
	// them.
	Busy int
}

// Need says how a member's requests for one service are doing.
type Need struct {
	Service string
	Load

	// Granted is the number of slots that the member got in this session, so
	// that the leader knows which grants Waiting does not reflect yet.
	Granted uint64

	// Bound are the requests that wait for one instance alone.
	Bound []BoundNeed
}

// BoundNeed says how many requests wait for one instance alone.
type BoundNeed struct {
	Instance string
	Waiting  int
	Oldest   time.Duration // how long the oldest of them has been waiting
	Granted  uint64        // slots of this instance that the member got in this session
}

// Load is the use of one service, of one Caddy or of all.
type Load struct {
	// Waiting is the number of requests that wait for any instance. The oldest
	// has been waiting for Oldest.
	Waiting int
	Oldest  time.Duration

	// Visitors is how many of them are no requests, but visitors that wait to be
	// called.
	Visitors int

	// InUse is the number of slots in use.
	InUse int

	// Demand is the number of requests and visitors that are a reason to have
	// instances. Peak is the highest Demand of late.
	Demand, Peak int

	// Arrivals is the number of requests that have come since the Caddy began.
	Arrivals uint64
}

// Leave says that a member holds nothing any more and goes.
type Leave struct{}

// Announce says what the leader knows of one service. It replaces what it said
// before.
type Announce struct {
	Service string

	// Definition is the hash of the leader's definition of the service, which
	// holds.
	Definition string

	// Instances are all instances of the service, sorted by ID.
	Instances []Instance

	// Sum is the load of all Caddys.
	Sum Load
}

// Instance is one running copy of a service that has been ready.
type Instance struct {
	// ID is never used again for another instance of the service.
	ID string

	Revision, Network, Address string

	// Slots is how many requests may be inside at a time, or Unlimited.
	Slots int

	// State says who may use it.
	State State

	// Fresh is true if the instance was not ready before the leader took over,
	// for sure. Its slots cannot be in use under an earlier leader.
	Fresh bool
}

// Unlimited is the number of slots of an instance without a limit. It is not
// 0, which means none.
const Unlimited = -1

// State says who may use an instance.
type State uint8

// The states of an instance.
const (
	// Open instances take requests.
	Open State = iota
	// Cordoned instances take requests of their sessions only.
	Cordoned
	// Withdrawn instances take no requests: all slots are returned as they
	// become free.
	Withdrawn
)

// Ask asks all members, the leader too, whether they still follow the view.
type Ask struct{ Round uint64 }

// Still answers Ask.
type Still struct{ Round uint64 }

// NewView tells of a view that lies in the coordinator.
type NewView struct{ View View }

func (Hello) body()     {}
func (Welcome) body()   {}
func (Heartbeat) body() {}
func (Ack) body()       {}
func (Grant) body()     {}
func (Return) body()    {}
func (Recall) body()    {}
func (Need) body()      {}
func (Leave) body()     {}
func (Announce) body()  {}
func (Ask) body()       {}
func (Still) body()     {}
func (NewView) body()   {}

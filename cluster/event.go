package cluster

// Event is what happens to a Caddy: the input of Node.Step.
type Event interface{ event() }

// Tick says that time has passed. A step is due at the moment that Node.Next
// returns.
type Tick struct{}

// StreamUp says that a new stream to a Caddy stands, and earlier ones do not
// deliver any more.
type StreamUp struct{ Boot string }

// StreamDown says that the stream to a Caddy is broken.
type StreamDown struct{ Boot string }

// Received is a message from the Caddy at the other end of a stream.
type Received struct {
	From    string // its boot
	Message Message
}

// Dead says that the process of a Caddy has ended, for sure, and with it all
// its connections. Nothing less may be taken for it: see the package's doc.
type Dead struct{ Boot string }

// Forget is an operator's word that no Caddy with this ID, or this boot, has
// requests inside. One to which a stream stands is left out. With All it is the
// word that this holds for all others.
type Forget struct {
	ID  string
	All bool
}

// ReadDone answers a Read. Exactly one comes for each.
type ReadDone struct {
	ID   uint64
	View View  // as it was at some moment between the question and the answer
	Err  error // the view could not be read
}

// SwapDone answers a Swap. Exactly one comes for each.
type SwapDone struct {
	ID     uint64
	Result SwapResult
	View   View // with Conflict: what lies there, as in ReadDone
}

// SwapResult says what became of a compare-and-swap.
type SwapResult uint8

// The results of a swap.
const (
	// Swapped: the new view lies in the coordinator.
	Swapped SwapResult = iota
	// Conflict: another view than the expected one lies there.
	Conflict
	// Failed: the view was not changed, and will not be by this swap, ever.
	Failed
	// Unknown: nothing is known. The view may have been changed, or may still be.
	Unknown
)

// Used says how many requests are inside instances of a service.
type Used struct {
	Service   string
	Instances []Use
}

// Use is the number of requests inside an instance, read at a moment when the
// order with this number was in force and no later one. 0 is an instance for
// which no order was given yet.
type Use struct {
	Instance string
	Order    uint64
	InUse    int
}

// Demand says how the requests of this Caddy for a service are doing. Granted
// is filled in by the Node.
type Demand struct{ Need Need }

// Defined says what this Caddy's configuration says of its services. It
// replaces what was said before.
type Defined struct{ Definitions []Definition }

// Listed says which instances a service has. It comes to the leader only, from
// its control loop, and replaces what was said before. An instance that is left
// out has ended for good.
type Listed struct {
	Service   string
	Instances []Instance
}

// Leaving says that this Caddy is about to end, or takes no more part.
type Leaving struct{}

func (Tick) event()       {}
func (StreamUp) event()   {}
func (StreamDown) event() {}
func (Received) event()   {}
func (Dead) event()       {}
func (Forget) event()     {}
func (ReadDone) event()   {}
func (SwapDone) event()   {}
func (Used) event()       {}
func (Demand) event()     {}
func (Defined) event()    {}
func (Listed) event()     {}
func (Leaving) event()    {}

// Output is what a Caddy has to do after a step, in this order.
type Output interface{ output() }

// Send sends a message on the stream to a Caddy. If there is no stream, or it
// breaks, the message is lost.
type Send struct {
	To      string // its boot
	Message Message
}

// Connect says which Caddy to keep a stream to: the leader. With an empty Boot
// there is none.
type Connect struct{ Peer Peer }

// Disconnect closes the stream to a Caddy, if there is one. StreamDown follows
// at both ends.
type Disconnect struct{ Boot string }

// Read asks for the view in the coordinator. What is answered has to be as it
// was after the question was asked: no cache, no replica that lags.
type Read struct{ ID uint64 }

// Swap asks the coordinator to replace the view Expect, as it was read, by
// Next.
type Swap struct {
	ID           uint64
	Expect, Next View
}

// Follow says which instances a service has, in the leader's words.
type Follow struct {
	Service   string
	Instances []Instance
}

// SetSlots sets how many requests of this Caddy may be inside an instance: a
// number, 0 for none, or Unlimited. A lowered number ends no request. Used
// answers it.
type SetSlots struct {
	Service, Instance string
	Slots             int
	Order             uint64 // counts the orders for this instance
}

// Watch says whether Used has to come when a slot of the service was freed and
// no request took it. For instances with more inside than their slots it
// always has to come when a request leaves.
type Watch struct {
	Service string
	On      bool
}

// Cut ends the requests inside an instance: their connections are closed. Used
// follows when they have ended.
type Cut struct{ Service, Instance string }

// Lead says whether this Caddy is the leader and runs the control loops. Term
// is the number of the view in which it took over.
type Lead struct {
	On   bool
	Term uint64
}

// Confirmed says, on the leader, whether it may give orders to platforms now.
type Confirmed struct{ On bool }

// Sum is the load of all Caddys, and Others that of all but this one.
type Sum struct {
	Service      string
	Load, Others Load
}

// Empty says, on the leader, that a withdrawn instance has no request of any
// Caddy inside.
type Empty struct{ Service, Instance string }

// Replace says, on the leader, that an instance may have requests of a lost
// Caddy inside for an unknown time. It has to be drained and replaced.
type Replace struct{ Service, Instance string }

// Isolated says whether this Caddy has lost its lease: no more request gets
// in, or, with Options.KeepServing, the limits may be passed.
type Isolated struct{ On bool }

// Differs says that a Caddy's definition of a service is not the leader's,
// which holds. It comes on both.
type Differs struct {
	Service string
	Boot    string
	On      bool // false: it no longer differs
}

// Forgotten says that the coordinator has a view that cannot be newer than the
// one that this Caddy follows: it was restored from a backup, or written by
// something else.
type Forgotten struct{ Found, Followed View }

// Left says that this Caddy is no member any more, as it wished.
type Left struct{}

func (Send) output()       {}
func (Connect) output()    {}
func (Disconnect) output() {}
func (Read) output()       {}
func (Swap) output()       {}
func (Follow) output()     {}
func (SetSlots) output()   {}
func (Watch) output()      {}
func (Cut) output()        {}
func (Lead) output()       {}
func (Confirmed) output()  {}
func (Sum) output()        {}
func (Empty) output()      {}
func (Replace) output()    {}
func (Isolated) output()   {}
func (Differs) output()    {}
func (Forgotten) output()  {}
func (Left) output()       {}

package cluster

import (
	"slices"
	"time"
)

// Node is one Caddy's part in the protocol: a member, and the leader while the
// view says so. It is a state machine: it does nothing but in Step, and its
// methods are not safe for concurrent use, except those of Lease.
type Node struct {
	options Options
	self    Peer
	lease   *Lease
	now     Instant
	next    int64 // when a step is due
	out     []Output
	inbox   []Message // from this Caddy as a member to this Caddy as the leader, and back

	view     View
	followed int64    // when view was followed first
	streams  []string // boots of Caddys to which a stream stands, sorted
	dead     []string // boots of Caddys that have ended, of those in view

	register register
	member   member
	lead     *leader // nil while another Caddy leads

	faults faults
}

// faults takes rules of the protocol away, for tests that show what each is
// good for.
type faults struct {
	noLease       bool // requests start without a lease, and stay
	leaseFromAck  bool // a lease is counted from the ack's arrival
	noWait        bool // a new leader does not wait for the members
	anySession    bool // messages of old sessions count
	anyView       bool // messages of old views count
	noConfirm     bool // the leader acts without a confirmation
	forceHello    bool // a hello is believed, whatever the ledger says
	forgetLost    bool // lost members do not stand in the view
	dropSilent    bool // a silent member that holds nothing is dropped from the view at once
	grantOutsider bool // slots are granted to Caddys that the view does not have
	stillUnsure   bool // a Caddy that has asked for a new view says that it follows the old one
	followLower   bool // a view with a lower number is followed
	healAtOnce    bool // a leader that mends the coordinator gives leases at once
	trustFound    bool // the founder of a cluster believes that it is alone
	noVacancy     bool // an address that an instance has left is used anew at once
	returnEarly   bool // slots are returned before the reserver has let go of them
}

// New returns the node of a Caddy that has just started.
func New(self Peer, o Options, now Instant) *Node {
	n := &Node{options: o.WithDefaults(), self: self, lease: new(Lease), now: now, next: now.Mono}
	n.member.isolated = true
	n.lease.set(now)
	return n
}

// Lease returns the check to be made before the first byte of a request.
func (n *Node) Lease() *Lease { return n.lease }

// View returns the view that the Caddy follows.
func (n *Node) View() View { return n.view }

// Leads reports whether the Caddy is the leader, as far as it knows.
func (n *Node) Leads() bool { return n.lead != nil }

// Next returns when the next step is due if nothing happens before: a reading
// of the monotonic clock as in Instant.
func (n *Node) Next() int64 { return n.next }

// Step takes note of an event, and returns what to do. The clocks are read
// when the step is taken, not when the event occurred.
func (n *Node) Step(now Instant, e Event) []Output {
	now.Mono = max(now.Mono, n.now.Mono)
	n.now, n.out = now, nil
	n.checkLease()
	n.handle(e)
	n.deliver()
	n.checkLease()
	n.act()
	n.deliver()
	n.schedule()
	return n.out
}

func (n *Node) emit(o Output) { n.out = append(n.out, o) }

// send sends a message of the view. What a Caddy tells itself is delivered
// within the step.
func (n *Node) send(to string, session uint64, b Body) {
	m := Message{View: n.view.Number, Session: session, Body: b}
	if to == n.self.Boot {
		n.inbox = append(n.inbox, m)
	} else if n.connected(to) {
		n.emit(Send{To: to, Message: m})
	}
}

// deliver delivers what this Caddy tells itself, and divides the slots anew
// where that changes something. What goes on for too long goes on in the next
// step.
func (n *Node) deliver() {
	for range 1000 {
		if len(n.inbox) == 0 {
			if n.lead != nil {
				n.divide()
			}
			if len(n.inbox) == 0 {
				return
			}
		}
		m := n.inbox[0]
		n.inbox = n.inbox[1:]
		n.receive(n.self.Boot, m)
	}
}

func (n *Node) connected(boot string) bool {
	if boot == n.self.Boot {
		return true
	}
	_, ok := slices.BinarySearch(n.streams, boot)
	return ok
}

func (n *Node) isDead(boot string) bool { return slices.Contains(n.dead, boot) }

func (n *Node) handle(e Event) {
	switch e := e.(type) {
	case StreamUp:
		n.streamUp(e.Boot)
	case StreamDown:
		n.streamDown(e.Boot)
	case Received:
		n.receive(e.From, e.Message)
	case Dead:
		n.died(e.Boot)
	case Forget:
		n.forget(e)
	case ReadDone:
		n.readDone(e)
	case SwapDone:
		n.swapDone(e)
	case Used:
		n.used(e)
	case Demand:
		n.demand(e.Need)
	case Defined:
		n.define(e.Definitions)
	case Listed:
		if n.lead != nil {
			n.list(e)
		}
	case Leaving:
		n.leave()
	}
}

func (n *Node) streamUp(boot string) {
	if k, ok := slices.BinarySearch(n.streams, boot); !ok {
		n.streams = insert(n.streams, k, boot)
	} else {
		n.broken(boot)
	}
	switch {
	case n.lead != nil: // it may not know of the view
		n.send(boot, 0, NewView{View: n.view})
	case boot == n.view.Leader:
		n.hello()
	}
}

func (n *Node) streamDown(boot string) {
	if k, ok := slices.BinarySearch(n.streams, boot); ok {
		n.streams = slices.Delete(slices.Clone(n.streams), k, k+1)
	}
	n.broken(boot)
}

// broken ends the session that ran over a stream.
func (n *Node) broken(boot string) {
	if boot == n.view.Leader {
		n.endSession()
	}
	if n.lead != nil {
		n.lead.disconnected(boot)
	}
}

func (n *Node) died(boot string) {
	if boot == n.self.Boot || n.isDead(boot) {
		return
	}
	if _, ok := n.view.Peer(boot); !ok {
		return
	}
	n.dead = append(slices.Clone(n.dead), boot)
	n.register.readAt = n.now.Mono // there may be something to ask for
	n.streamDown(boot)
	if n.lead != nil {
		n.writeOff(boot)
	}
}

func (n *Node) forget(e Forget) {
	for _, p := range slices.Concat(n.view.Members, n.view.Lost) {
		if e.All || (p.ID == e.ID || p.Boot == e.ID) && !n.connected(p.Boot) {
			n.died(p.Boot)
		}
	}
	if e.All && n.lead != nil {
		n.lead.blind = 0
		n.settle()
	}
}

// receive takes a message that has arrived.
func (n *Node) receive(from string, m Message) {
	if v, ok := m.Body.(NewView); ok {
		n.hear(v.View)
		return
	}
	if m.View != n.view.Number && !(n.faults.anyView && from != n.self.Boot) {
		if m.View > n.view.Number {
			n.register.wanted = true
		}
		return
	}
	switch b := m.Body.(type) {
	case Hello, Heartbeat, Return, Need, Leave, Still:
		if n.lead != nil {
			n.fromMember(from, m)
		}
	case Ask:
		if from == n.view.Leader && (!n.register.odd && !n.register.unsure() || n.faults.stillUnsure) {
			n.send(from, 0, Still(b))
		}
	default:
		if from == n.view.Leader || n.faults.anyView {
			n.fromLeader(m)
		}
	}
}

// follow begins to follow a newer view.
func (n *Node) follow(v View) {
	if v.Number <= n.view.Number && !n.faults.followLower {
		return
	}
	before, led, risky, healed := n.view, n.lead != nil, n.register.risky, n.register.odd
	own := led && n.register.continues(before, v)
	n.view, n.followed = v, n.now.Mono
	n.register.followed()
	n.dead = slices.DeleteFunc(slices.Clone(n.dead), func(b string) bool {
		_, ok := v.Peer(b)
		return !ok
	})
	n.inbox = nil // of the view before
	n.endSession()
	switch {
	case v.Leader != n.self.Boot:
		n.lead = nil
		if led {
			n.emit(Lead{Term: v.Number})
		}
	case own:
		n.adopt()
	default:
		n.takeOver(risky)
		if healed && !n.faults.healAtOnce {
			n.lead.quiet = after(n.now.Mono, n.options.Lease+n.options.LostAfter)
		}
		n.emit(Lead{On: true, Term: v.Number})
	}
	if led || n.lead != nil {
		for _, b := range n.streams {
			n.send(b, 0, NewView{View: v})
		}
	}
	leader, _ := v.Peer(v.Leader)
	if n.lead != nil {
		leader = Peer{}
	}
	n.emit(Connect{Peer: leader})
	if n.member.leaving && !v.Has(n.self.Boot) {
		n.emit(Left{})
		return
	}
	if n.connected(v.Leader) {
		n.hello()
	}
}

// act does what time alone makes due.
func (n *Node) act() {
	n.actAsMember()
	n.deliver()
	if n.lead != nil {
		n.actAsLeader()
	}
	n.coordinate()
}

// due makes sure that a step is taken at a moment.
func (n *Node) due(at int64) { n.next = min(n.next, at) }

func (n *Node) schedule() {
	n.next = never
	n.scheduleMember()
	n.scheduleRegister()
	if len(n.inbox) > 0 {
		n.due(n.now.Mono)
	}
	if n.lead != nil {
		n.scheduleLeader()
	}
	n.next = max(n.next, n.now.Mono+int64(time.Millisecond)) // nothing is in a greater hurry
}

func after(at int64, d time.Duration) int64 { return at + int64(d) }

package cluster

import (
	"container/heap"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// sim is a simulated network of Caddys with clients, instances and a
// coordinator. Everything in it follows from the seed.
type sim struct {
	rnd     *rand.Rand
	options Options
	faults  faults
	now     int64
	seq     int
	events  agenda
	nodes   []*caddy
	streams map[[2]int]*stream
	store   View
	away    bool // the coordinator does not answer

	services map[string]map[string]*truth
	next     map[string]string // by instance that has ended: the one that has its address now
	oneWay   map[[2]int]bool   // from, to: nothing arrives
	rtt      func(*rand.Rand) int64
	mishaps  bool
	seen     func(*caddy, Output)
	worktime func(*rand.Rand) int64

	served, recalls int
	breach          string // what must not happen, in words: everything stops then
}

// truth is an instance, and how many requests are inside.
type truth struct {
	Instance
	inside int
}

// caddy is a node with the parts of Caddy that matter here.
type caddy struct {
	k        int
	node     *Node
	alive    bool
	pausedTo int64
	mailbox  []func()
	wall     int64 // what the wall clock is ahead
	target   string
	parts    map[string]*part
	timer    int
	leads    bool
	left     bool
	empty    map[string]bool
}

// part is what a reserver knows of a service.
type part struct {
	instances map[string]*room
	queue     []int64 // arrivals
	watch     bool
	telling   bool
}

type room struct {
	slots, inUse int
	order        uint64
	era          int            // requests of earlier eras were cut
	where        map[*truth]int // those inside
}

type stream struct {
	up    bool
	stuck [2]bool // nothing arrives any more, in this direction
	last  [2]int64
}

type happening struct {
	at  int64
	seq int
	do  func()
}

type agenda []happening

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	return a[i].at < a[j].at || a[i].at == a[j].at && a[i].seq < a[j].seq
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(happening)) }
func (a *agenda) Pop() any {
	last := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return last
}

const ms = int64(time.Millisecond)

func newSim(seed uint64, options Options) *sim {
	return &sim{
		rnd: rand.New(rand.NewPCG(seed, 0)), options: options, now: int64(time.Hour),
		streams: make(map[[2]int]*stream), next: make(map[string]string), services: make(map[string]map[string]*truth), oneWay: make(map[[2]int]bool),
		rtt:      func(r *rand.Rand) int64 { return ms/10 + r.Int64N(ms) },
		worktime: func(r *rand.Rand) int64 { return ms + r.Int64N(100*ms) },
	}
}

func (s *sim) in(d int64, do func()) {
	s.seq++
	heap.Push(&s.events, happening{s.now + max(d, 0), s.seq, do})
}

// run lets everything happen for a time.
func (s *sim) run(d time.Duration) {
	end := s.now + int64(d)
	for len(s.events) > 0 && s.events[0].at <= end && s.breach == "" {
		h := heap.Pop(&s.events).(happening)
		s.now = h.at
		h.do()
	}
	s.now = end
}

func (s *sim) name(k int) string { return fmt.Sprintf("%03d", k) }

// join starts a Caddy.
func (s *sim) join() *caddy {
	k := len(s.nodes)
	c := &caddy{k: k, alive: true, parts: make(map[string]*part), empty: make(map[string]bool)}
	c.node = New(Peer{ID: s.name(k % 5), Boot: s.name(k), Address: s.name(k)}, s.options, s.at(c))
	c.node.faults = s.faults
	s.nodes = append(s.nodes, c)
	s.in(0, func() { s.step(c, Tick{}) })
	s.in(0, func() { s.connects(c) })
	return c
}

func (s *sim) at(c *caddy) Instant { return Instant{Mono: s.now, Wall: s.now + c.wall} }

// on does something in a Caddy, once that is not paused.
func (s *sim) on(c *caddy, do func()) {
	if s.now < c.pausedTo {
		c.mailbox = append(c.mailbox, do)
		return
	}
	if c.alive {
		do()
	}
}

func (s *sim) step(c *caddy, e Event) {
	s.on(c, func() { s.carryOut(c, c.node.Step(s.at(c), e)) })
}

func (s *sim) carryOut(c *caddy, outputs []Output) {
	used := make(map[string]bool)
	for _, o := range outputs {
		if s.seen != nil {
			s.seen(c, o)
		}
		switch o := o.(type) {
		case Send:
			s.send(c, o)
		case Connect:
			c.target = o.Peer.Boot
		case Disconnect:
			s.breakStream(c.k, number(o.Boot))
		case Read:
			s.ask(c, func(err error) Event { return ReadDone{ID: o.ID, View: s.store, Err: err} })
		case Swap:
			s.swap(c, o)
		case SetSlots:
			r := c.part(o.Service).room(o.Instance)
			r.slots, r.order = o.Slots, o.Order
			used[o.Service] = true
		case Watch:
			c.part(o.Service).watch = o.On
			used[o.Service] = used[o.Service] || o.On
		case Cut:
			s.cut(c, o.Service, o.Instance)
			used[o.Service] = true
		case Lead:
			if c.leads = o.On; o.On {
				s.in(20*ms, func() { s.list(c) })
			}
		case Empty:
			if i := s.services[o.Service][o.Instance]; i != nil && i.inside > 0 {
				s.breach = fmt.Sprintf("%s is said to be empty, with %d requests inside", o.Instance, i.inside)
			}
			delete(s.services[o.Service], o.Instance)
			s.in(ms, func() { s.list(c) })
		case Replace:
			if s.services[o.Service][o.Instance] != nil {
				s.in(100*ms, func() {
					delete(s.services[o.Service], o.Instance)
					s.list(c)
				})
			}
		case Left:
			c.left = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(used)) {
		s.pump(c, name)
		s.used(c, name)
	}
	if next := c.node.Next(); next != never {
		c.timer++
		timer := c.timer
		s.in(next-s.now, func() {
			if timer == c.timer {
				s.step(c, Tick{})
			}
		})
	}
}

func (s *sim) used(c *caddy, service string) {
	p := c.part(service)
	u := Used{Service: service}
	for _, id := range slices.Sorted(maps.Keys(p.instances)) {
		u.Instances = append(u.Instances, Use{Instance: id, Order: p.instances[id].order, InUse: p.instances[id].inUse})
	}
	s.step(c, u)
}

// number is the Caddy with a boot.
func number(boot string) (k int) {
	fmt.Sscanf(boot, "%d", &k)
	return k
}

func (c *caddy) part(service string) *part {
	p := c.parts[service]
	if p == nil {
		p = &part{instances: make(map[string]*room)}
		c.parts[service] = p
	}
	return p
}

func (p *part) room(instance string) *room {
	r := p.instances[instance]
	if r == nil {
		r = &room{where: make(map[*truth]int)}
		p.instances[instance] = r
	}
	return r
}

// list has the control loop of a leader list the instances.
func (s *sim) list(c *caddy) {
	if !c.alive || !c.leads {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(s.services)) {
		var all []Instance
		for _, id := range slices.Sorted(maps.Keys(s.services[name])) {
			all = append(all, s.services[name][id].Instance)
		}
		s.step(c, Listed{Service: name, Instances: all})
	}
}

func (s *sim) listAll() {
	for _, c := range s.nodes {
		s.list(c)
	}
}

// start makes an instance. It is fresh unless a leader may have used it.
func (s *sim) start(service, id string, slots int, fresh bool) {
	if s.services[service] == nil {
		s.services[service] = make(map[string]*truth)
	}
	s.services[service][id] = &truth{Instance: Instance{ID: id, Network: "tcp", Address: "of " + id, Slots: slots, Fresh: fresh}}
}

// replace has an instance end, and another one at its address at once. Caddys that
// have not heard of it may send requests there: to the other one.
func (s *sim) replace(service, id, next string, fresh bool) {
	old := s.services[service][id]
	delete(s.services[service], id)
	s.start(service, next, old.Slots, fresh)
	s.services[service][next].Address = old.Address
	s.next[id] = next
	for _, c := range s.nodes {
		if !c.alive {
			continue
		}
		s.on(c, func() { // its connections break
			s.cut(c, service, id)
			s.pump(c, service)
			s.used(c, service)
		})
	}
	s.listAll()
}

// reached is what requests reach that are sent to an instance; nil if that is nothing.
func (s *sim) reached(service, id string) *truth {
	for s.services[service][id] == nil && s.next[id] != "" {
		id = s.next[id]
	}
	return s.services[service][id]
}

// Streams.

func pair(a, b int) [2]int { return [2]int{min(a, b), max(a, b)} }

func (s *sim) connects(c *caddy) {
	if !c.alive || c.left {
		return
	}
	s.in(50*ms, func() { s.connects(c) })
	if c.target == "" || s.now < c.pausedTo {
		return
	}
	j := number(c.target)
	o := s.nodes[j]
	if st := s.streams[pair(c.k, j)]; !o.alive || s.now < o.pausedTo || j == c.k || st != nil && st.up || s.oneWay[[2]int{c.k, j}] || s.oneWay[[2]int{j, c.k}] {
		return
	}
	s.streams[pair(c.k, j)] = &stream{up: true}
	s.step(o, StreamUp{Boot: s.name(c.k)})
	s.step(c, StreamUp{Boot: s.name(j)})
}

func (s *sim) breakStream(a, b int) {
	st := s.streams[pair(a, b)]
	if st == nil || !st.up {
		return
	}
	st.up = false
	delete(s.streams, pair(a, b))
	for _, d := range [][2]int{{a, b}, {b, a}} {
		s.in(s.rnd.Int64N(20*ms), func() {
			if now := s.streams[pair(a, b)]; now == nil || !now.up {
				s.step(s.nodes[d[0]], StreamDown{Boot: s.name(d[1])})
			}
		})
	}
}

func (s *sim) send(c *caddy, o Send) {
	j := number(o.To)
	st := s.streams[pair(c.k, j)]
	if st == nil || !st.up {
		return
	}
	if _, ok := o.Message.Body.(Recall); ok {
		s.recalls++
	}
	way := 0
	if c.k > j {
		way = 1
	}
	switch {
	case s.oneWay[[2]int{c.k, j}] && !st.stuck[way]:
		st.stuck[way] = true
		s.in(s.rnd.Int64N(3000*ms), func() { s.breakStream(c.k, j) }) // the link finds out
	case s.mishaps && s.rnd.IntN(20000) == 0:
		s.in(s.rnd.Int64N(ms), func() { s.breakStream(c.k, j) })
	}
	if st.stuck[way] {
		return
	}
	arrives := max(st.last[way], s.now+s.rtt(s.rnd)/2)
	st.last[way] = arrives
	from := s.name(c.k)
	s.in(arrives-s.now, func() {
		late := s.mishaps && s.rnd.IntN(3) == 0 // of a stream that is broken
		if st.up || late {
			s.step(s.nodes[j], Received{From: from, Message: o.Message})
		}
		if st.up && s.mishaps && s.rnd.IntN(1000) == 0 { // once more, over the next stream
			s.in(s.rnd.Int64N(10_000*ms), func() {
				s.on(s.nodes[j], func() {
					if now := s.streams[pair(c.k, j)]; !s.nodes[j].node.connected(from) || now != nil && now != st {
						s.step(s.nodes[j], Received{From: from, Message: o.Message})
					}
				})
			})
		}
	})
}

// The coordinator.

func (s *sim) ask(c *caddy, answer func(error) Event) {
	s.in(ms+s.rnd.Int64N(2*ms), func() {
		if s.away {
			s.in(500*ms, func() { s.step(c, answer(errors.New("no answer"))) })
			return
		}
		e := answer(nil)
		s.in(ms+s.rnd.Int64N(2*ms), func() { s.step(c, e) })
	})
}

func (s *sim) swap(c *caddy, o Swap) {
	s.ask(c, func(err error) Event {
		lost := s.mishaps && s.rnd.IntN(10) == 0
		switch {
		case err != nil, lost && s.rnd.IntN(2) == 0:
			return SwapDone{ID: o.ID, Result: Unknown}
		case !s.store.Equal(o.Expect):
			return SwapDone{ID: o.ID, Result: Conflict, View: s.store}
		}
		s.store = o.Next
		if lost {
			return SwapDone{ID: o.ID, Result: Unknown}
		}
		return SwapDone{ID: o.ID, Result: Swapped}
	})
}

// Clients.

// client sends one request after the other to Caddys at random.
func (s *sim) client(service string) {
	var up []*caddy
	for _, c := range s.nodes {
		if c.alive && !c.left && s.now >= c.pausedTo {
			up = append(up, c)
		}
	}
	if len(up) == 0 {
		s.in(100*ms, func() { s.client(service) })
		return
	}
	c := up[s.rnd.IntN(len(up))]
	p := c.part(service)
	p.queue = append(p.queue, s.now)
	s.pump(c, service)
}

// pump starts the requests for which there is a slot.
func (s *sim) pump(c *caddy, service string) {
	p := c.part(service)
	for len(p.queue) > 0 && c.node.Lease().MayWrite(s.at(c)) {
		var to string
		for _, id := range slices.Sorted(maps.Keys(p.instances)) {
			if r := p.instances[id]; s.reached(service, id) != nil && (r.slots == Unlimited || r.inUse < r.slots) {
				to = id
				break
			}
		}
		if to == "" {
			break
		}
		p.queue = p.queue[1:]
		s.begin(c, service, to)
	}
	if !p.telling {
		p.telling = true
		s.in(0, func() { s.on(c, func() { s.tell(c, service) }) })
	}
}

func (s *sim) tell(c *caddy, service string) {
	p := c.part(service)
	p.telling = false
	need := Need{Service: service}
	need.Waiting = len(p.queue)
	if need.Waiting > 0 {
		need.Oldest = time.Duration(s.now - p.queue[0])
	}
	for _, r := range p.instances {
		need.InUse += r.inUse
	}
	need.Demand = need.Waiting + need.InUse
	s.step(c, Demand{Need: need})
}

func (s *sim) begin(c *caddy, service, id string) {
	r, i := c.part(service).instances[id], s.reached(service, id)
	r.inUse++
	r.where[i]++
	i.inside++
	if i.Slots != Unlimited && i.inside > i.Slots && !s.options.KeepServing {
		s.breach = fmt.Sprintf("at %v: %d requests inside %s, which has %d slots", time.Duration(s.now), i.inside, i.ID, i.Slots)
	}
	era := r.era
	s.in(s.worktime(s.rnd), func() {
		s.on(c, func() {
			if r.era != era {
				return // it was cut
			}
			r.inUse--
			r.where[i]--
			i.inside--
			s.served++
			above := r.inUse >= r.slots && r.slots != Unlimited
			s.pump(c, service)
			if p := c.part(service); above || p.watch {
				s.used(c, service)
			}
			s.client(service)
		})
	})
}

// cut ends what is inside. The clients go on elsewhere.
func (s *sim) cut(c *caddy, service, id string) {
	r := c.part(service).room(id)
	for i, n := range r.where {
		i.inside -= n
	}
	clear(r.where)
	for range r.inUse {
		s.in(10*ms, func() { s.client(service) })
	}
	r.inUse = 0
	r.era++
}

// Mishaps.

func (s *sim) crash(c *caddy) {
	c.alive = false
	for _, name := range slices.Sorted(maps.Keys(c.parts)) {
		p := c.parts[name]
		for _, id := range slices.Sorted(maps.Keys(p.instances)) {
			s.cut(c, name, id)
		}
		for range p.queue {
			s.in(10*ms, func() { s.client(name) })
		}
		p.queue = nil
	}
	proven := s.rnd.IntN(4) > 0
	for j, o := range s.nodes {
		if j != c.k {
			s.breakStream(c.k, j)
			if proven {
				s.in(s.rnd.Int64N(50*ms), func() { s.step(o, Dead{Boot: s.name(c.k)}) })
			}
		}
	}
}

// pause stops a Caddy as a whole.
func (s *sim) pause(c *caddy, d int64) {
	c.pausedTo = s.now + d
	s.in(d, func() {
		box := c.mailbox
		c.mailbox = nil
		for _, do := range box {
			s.on(c, do)
		}
		s.step(c, Tick{})
	})
}

func (s *sim) leave(c *caddy) {
	s.step(c, Leaving{})
	for _, name := range slices.Sorted(maps.Keys(c.parts)) {
		p := c.parts[name]
		for range p.queue {
			s.in(10*ms, func() { s.client(name) })
		}
		p.queue = nil
	}
	s.in(3000*ms, func() {
		if c.alive {
			s.crash(c) // it has had its time
		}
	})
}

func (s *sim) running() (up []*caddy) {
	for _, c := range s.nodes {
		if c.alive && !c.node.member.leaving {
			up = append(up, c)
		}
	}
	return up
}

// mishap has one thing go wrong.
func (s *sim) mishap() {
	up := s.running()
	c, o := up[s.rnd.IntN(len(up))], up[s.rnd.IntN(len(up))]
	lost := int64(s.options.LostAfter)
	switch s.rnd.IntN(9) {
	case 0:
		if len(up) > 2 {
			s.crash(c)
		}
	case 1:
		if len(up) < 5 {
			s.join()
		}
	case 2:
		if len(up) > 2 {
			s.leave(c)
		}
	case 3: // not while it is isolated: then it could not cut in time
		if s.now >= c.pausedTo && !c.node.member.isolated {
			s.pause(c, s.rnd.Int64N(lost*9/10))
		}
	case 4, 5:
		both := s.rnd.IntN(2) == 0
		s.oneWay[[2]int{c.k, o.k}] = true
		if both {
			s.oneWay[[2]int{o.k, c.k}] = true
		}
		s.in(s.rnd.Int64N(2*lost), func() {
			delete(s.oneWay, [2]int{c.k, o.k})
			delete(s.oneWay, [2]int{o.k, c.k})
		})
	case 6:
		s.away = true
		s.in(s.rnd.Int64N(lost), func() { s.away = false })
	case 7:
		c.wall += s.rnd.Int64N(int64(2*time.Hour)) - int64(time.Hour)
	case 8:
		s.breakStream(c.k, o.k)
	}
}

// scale changes the instances of a service.
func (s *sim) scale(service string, n int) {
	var open []string
	for _, id := range slices.Sorted(maps.Keys(s.services[service])) {
		if s.services[service][id].State == Open {
			open = append(open, id)
		}
	}
	if len(open) > 2 && s.rnd.IntN(2) == 0 {
		s.services[service][open[s.rnd.IntN(len(open))]].State = Withdrawn
	} else if len(open) < 8 {
		s.start(service, fmt.Sprintf("%s-%04d", service, n), 1+s.rnd.IntN(3), false)
	}
	s.listAll()
}

// watchIdle watches for slots that stand free although requests wait. It returns
// the longest time that it saw.
func (s *sim) watchIdle(service string, d time.Duration) (longest int64) {
	end, since := s.now+int64(d), int64(0)
	for s.now < end && s.breach == "" {
		s.run(time.Millisecond)
		waiting, free := 0, 0
		for _, c := range s.nodes {
			if c.alive && !c.left {
				waiting += len(c.part(service).queue)
			}
		}
		for _, i := range s.services[service] {
			if i.State == Open {
				free += i.Slots - i.inside
			}
		}
		if waiting == 0 || free == 0 {
			since = 0
		} else if since == 0 {
			since = s.now
		} else {
			longest = max(longest, s.now-since)
		}
	}
	return longest
}

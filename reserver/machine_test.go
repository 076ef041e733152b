package reserver

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// machine drives two services with one limit over both, and their models,
// through the same steps. pick returns a number in [0, n): what chooses the
// steps is a property test, a fuzzer or a seed.
type machine struct {
	pick   func(n int) int
	failf  func(format string, args ...any)
	shared *Limit
	max    int   // of shared
	asks   []Ask // what a request may ask for; without any, all are plain
	sides  [2]*side
	log    []string
}

// side is one service and its model.
type side struct {
	m        *machine
	s        *Service
	model    *model
	parties  []*party
	rang     int
	ejected  []*Instance
	asked    []*Instance
	drained  []*Instance
	used     []*Instance
	freed    []*Instance
	changed  int  // calls of the function of SetChanged since need was read
	need     Need // as it was read last
	lastIdle time.Time
	added    int
	gone     []*place // removed while a request was inside
	inUse    map[*Instance]int
	served   map[*Instance]uint64
	closed   map[*Instance]bool // had NoSlots
	began    time.Time
}

var errSuspended = errors.New("suspended")

// partiesOfASide is how many requests a service has at most in a random walk.
const partiesOfASide = 12

func newMachine(pick func(int) int, failf func(string, ...any), parties int, asks ...Ask) *machine {
	m := &machine{pick: pick, failf: failf, shared: new(Limit), max: pick(8), asks: asks}
	m.shared.Set(m.max)
	for k := range m.sides {
		sd := &side{m: m, model: &model{opts: m.options(), keys: map[uint64]*place{}}}
		sd.inUse, sd.served, sd.closed = map[*Instance]int{}, map[*Instance]uint64{}, map[*Instance]bool{}
		sd.s = New(sd.model.opts, m.shared, hooks{
			demand:          func() { sd.rang++ },
			ejected:         func(i *Instance) { sd.ejected = append(sd.ejected, i) },
			verifyRequested: func(i *Instance) { sd.asked = append(sd.asked, i) },
			drained:         func(i *Instance) { sd.drained = append(sd.drained, i) },
			spent:           func(i *Instance) { sd.used = append(sd.used, i) },
		})
		sd.s.SetFreed(func(i *Instance) { sd.freed = append(sd.freed, i) })
		sd.s.SetChanged(func() { sd.changed++ })
		sd.s.Need(&sd.need)
		sd.lastIdle = sd.s.Stats().IdleSince
		for range parties {
			x := &party{r: new(Reservation), g: new(Visitor), state: outside}
			if pick(4) > 0 {
				x.r.Interrupter = InterruptFunc(func(*Instance, error) { x.interrupted++ })
			}
			sd.parties = append(sd.parties, x)
		}
		m.sides[k] = sd
	}
	return m
}

func (m *machine) options() Options {
	o := Options{MaxWaiting: m.pick(7), Balance: Balance(m.pick(3)), SessionTimeout: time.Hour}
	if len(m.asks) > 0 {
		o.MaxRequests = m.pick(8)
	}
	return o
}

func (m *machine) logf(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf(format, args...))
	if len(m.log) > 40 {
		m.log = m.log[1:]
	}
}

// fail ends the test with what led there.
func (m *machine) fail(format string, args ...any) {
	for _, l := range m.log {
		format += "\n\t%s"
		args = append(args, l)
	}
	m.failf(format, args...)
}

// mayWait is the model of the limit over all services: every queue counted.
// It is asked while the one that asks stands in its model's queue already.
func (m *machine) mayWait() bool { return m.waiting()-1 < m.max }

func (m *machine) waiting() (n int) {
	for _, sd := range m.sides {
		n += len(sd.model.requests())
	}
	return n
}

// step is one call of the API, on the service and on its model.
type step struct {
	name string
	do   func(*side)
}

var steps = []step{
	{"reserve", (*side).reserve},
	{"reserve more", (*side).reserve},
	{"cancel", (*side).cancel},
	{"receive", (*side).receive},
	{"release", (*side).release},
	{"again", (*side).again},
	{"visit", (*side).visit},
	{"keep", (*side).keep},
	{"arrive", (*side).arrive},
	{"leave", (*side).leaveQueue},
	{"add", (*side).add},
	{"cordon", (*side).cordon},
	{"uncordon", (*side).uncordon},
	{"retire", (*side).retire},
	{"cordon least loaded", (*side).cordonLeastLoaded},
	{"restore", (*side).restore},
	{"vouch", (*side).vouch},
	{"eject, question", (*side).distrust},
	{"remove", (*side).remove},
	{"interrupt", (*side).interrupt},
	{"set slots", (*side).setSlots},
	{"options", (*side).setOptions},
	{"refuse", (*side).refuse},
	{"watch", (*side).watch},
	{"watch freed", (*side).watchFreed},
	{"peak, knocked, touch", (*side).observe},
	{"limit", (*side).setLimit},
}

// run does one step and then compares everything.
func (m *machine) run(st step) {
	m.logf("%s", st.name)
	sd := m.do(st)
	sd.check(st.name)
	for _, o := range m.sides {
		o.checkInside()
	}
	if got, want := int(m.shared.used.Load()), m.waiting(); got != want {
		m.fail("the limit over all counts %d waiting, there are %d", got, want)
	}
}

// do does one step.
func (m *machine) do(st step) *side {
	sd := m.sides[m.pick(2)]
	sd.model.begin()
	sd.rang, sd.ejected, sd.asked, sd.drained, sd.used, sd.freed = 0, nil, nil, nil, nil, nil
	sd.began = time.Now()
	st.do(sd)
	return sd
}

// any returns one of the reservations in one of the states, or nil.
func (sd *side) any(states ...partyState) *party {
	var found []*party
	for _, x := range sd.parties {
		if slices.Contains(states, x.state) {
			found = append(found, x)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return found[sd.m.pick(len(found))]
}

func (sd *side) anyPlace() *place {
	if len(sd.model.instances) == 0 {
		return nil
	}
	return sd.model.instances[sd.m.pick(len(sd.model.instances))]
}

func (sd *side) reserve() {
	x := sd.any(outside)
	if x == nil {
		return
	}
	quiet := sd.m.pick(4) == 0
	x.doubt, x.ask, x.session = false, sd.ask(), NoSession
	if !quiet {
		sd.model.arrivals++
	}
	ask := x.ask
	ask.Quiet = quiet
	ok, err := sd.s.Reserve(x.r, ask)
	wantOK, wantErr := sd.model.ask(x, quiet, false, nil, sd.m.mayWait)
	sd.answered(x, ok, err, wantOK, wantErr)
}

// ask picks what a request asks for. One of a session may name an instance that
// has gone.
func (sd *side) ask() (a Ask) {
	if len(sd.m.asks) == 0 {
		return a
	}
	a = sd.m.asks[sd.m.pick(len(sd.m.asks))]
	if a.Affinity == ByInstance {
		all := slices.Concat(sd.model.instances, sd.gone)
		if k := sd.m.pick(len(all) + 1); k < len(all) {
			a.Instance = all[k].i
		}
	}
	return a
}

func (sd *side) again() {
	x := sd.any(inside, inside, outside)
	if x == nil || x.r.service == nil {
		return
	}
	outcome := Outcome(sd.m.pick(5))
	x.doubt = outcome == Suspected
	sd.m.logf("outcome %d", outcome)
	ok, err := x.r.Requeue(outcome)
	from := x.at
	if from != nil {
		sd.model.leave(x, outcome)
		if outcome != Answered && x.session == SessionNew && sd.model.keys[x.ask.Key] == from {
			delete(sd.model.keys, x.ask.Key)
		}
	}
	// A visit in between does not change the reservation.
	x.ask = x.r.Ask
	wantOK, wantErr := sd.model.ask(x, x.r.Quiet, true, from, sd.m.mayWait)
	sd.answered(x, ok, err, wantOK, wantErr)
	sd.model.handOut()
	sd.model.emptied()
}

func (sd *side) visit() {
	x := sd.any(outside)
	if x == nil {
		return
	}
	quiet := sd.m.pick(4) == 0
	x.g, x.ask = new(Visitor), sd.ask()
	x.ask.Affinity, x.ask.Instance = NoAffinity, nil
	ask := x.ask
	ask.Quiet = quiet
	got, want := sd.s.Visit(x.g, ask), sd.model.visit(x, quiet)
	x.joined = sd.began
	if got != want {
		sd.m.fail("a visitor was told %v; want %v", got, want)
	}
}

// keep makes a visitor of a waiting request, which keeps its place.
func (sd *side) keep() {
	x := sd.any(inQueue, granted, rejected)
	if x == nil {
		return
	}
	g := new(Visitor)
	if got, want := x.r.Keep(g), x.state == inQueue; got != want {
		sd.m.fail("Keep of one that is %s returned %v", x.state, got)
	}
	if x.state != inQueue {
		return
	}
	x.g, x.state, x.bound = g, visiting, nil
	sd.model.note(sd.model.demand())
	if x.again {
		// The place of a visitor is that of its arrival: it stands behind the
		// requests that are tried again, and before all that came later.
		x.again = false
		sd.model.take(x)
		pos := slices.IndexFunc(sd.model.queue, func(o *party) bool { return !o.again && o.since().After(x.g.Since()) })
		if pos < 0 {
			pos = len(sd.model.queue)
		}
		sd.model.join(x, pos)
	}
	sd.model.handOut()
}

// arrive is the request of a visitor.
func (sd *side) arrive() {
	x := sd.any(visiting, called, sentAway)
	if x == nil {
		return
	}
	was := x.state
	x.doubt, x.session = false, NoSession
	ok, err := x.g.Reserve(x.r, x.g.Ask)
	sd.model.take(x)
	sd.model.note(sd.model.demand())
	wantOK, wantErr := sd.model.ask(x, x.quiet, was == called, nil, sd.m.mayWait)
	sd.answered(x, ok, err, wantOK, wantErr)
	sd.model.handOut()
}

// leaveQueue ends a visit.
func (sd *side) leaveQueue() {
	x := sd.any(visiting, called, sentAway)
	if x == nil {
		return
	}
	x.g.Leave()
	x.g.Leave() // once too often
	sd.model.take(x)
	x.state = outside
	sd.model.note(sd.model.demand())
	sd.model.handOut()
}

// since is when x has joined the queue.
func (x *party) since() time.Time {
	if x.state == visiting {
		return x.g.Since()
	}
	return x.r.service.made.Add(x.r.arrived)
}

func (sd *side) answered(x *party, ok bool, err error, wantOK bool, wantErr error) {
	x.joined = sd.began
	sd.m.logf("quiet %v: %v, %v", x.quiet, ok, err)
	if ok != wantOK || err != wantErr {
		sd.m.fail("asking gave %v, %v; want %v, %v", ok, err, wantOK, wantErr)
	}
}

func (sd *side) cancel() {
	x := sd.any(inQueue, granted, rejected, inside)
	if x == nil {
		return
	}
	got := x.r.Cancel()
	if want := x.state == granted || x.state == inside; got != want {
		sd.m.fail("Cancel of one that is %s returned %v", x.state, got)
	}
	switch x.state {
	case granted:
		x.state = inside
	case rejected:
		x.state = outside
	case inQueue:
		sd.model.take(x)
		x.state = outside
		sd.model.note(sd.model.demand())
	}
}

func (sd *side) receive() {
	x := sd.any(granted, rejected)
	if x == nil {
		return
	}
	var want error
	next := inside
	if x.state == rejected {
		want, next = x.reason, outside
	}
	select {
	case got := <-x.r.Granted():
		if got != want {
			sd.m.fail("one that is %s was told %v; want %v", x.state, got, want)
		}
	default:
		sd.m.fail("one that is %s was told nothing", x.state)
	}
	x.state = next
}

func (sd *side) release() {
	x := sd.any(inside, outside)
	if x == nil {
		return
	}
	outcome := Outcome(sd.m.pick(5))
	sd.m.logf("%s, outcome %d", x.state, outcome)
	x.r.Release(outcome)
	if x.state == outside {
		return // once too often
	}
	sd.model.leave(x, outcome)
	sd.model.handOut()
	sd.model.emptied()
}

func (sd *side) add() {
	if len(sd.model.instances) > 6 {
		return
	}
	sd.added++
	id := fmt.Sprint("i", sd.added)
	slots := sd.m.pick(5) + NoSlots
	add := sd.s.Add
	if sd.m.pick(2) == 0 {
		add = sd.s.AddUnbound
	}
	i := add(id, "rev", "tcp", id+":80", slots)
	sd.model.instances = append(sd.model.instances, &place{i: i, slots: slots})
	sd.model.changed()
}

func (sd *side) cordon() {
	if p := sd.anyPlace(); p != nil {
		p.i.Cordon()
		p.cordoned, p.retired = true, false
		sd.model.changed()
	}
}

func (sd *side) retire() {
	p := sd.anyPlace()
	if p == nil {
		return
	}
	force := sd.m.pick(2) == 0
	want := force || len(p.inside) == 0
	if got := p.i.Retire(force); got != want {
		sd.m.fail("Retire with %d inside returned %v", len(p.inside), got)
	}
	if want {
		p.cordoned, p.retired = true, true
		sd.model.changed()
	}
}

func (sd *side) uncordon() {
	if p := sd.anyPlace(); p != nil {
		p.i.Uncordon()
		if p.cordoned {
			p.cordoned, p.retired = false, false
		}
		sd.model.changed()
	}
}

func (sd *side) cordonLeastLoaded() {
	var among []*place
	var given []*Instance
	for _, p := range append(slices.Clone(sd.model.instances), sd.gone...) {
		for range sd.m.pick(3) { // not, once, twice
			among, given = append(among, p), append(given, p.i)
		}
	}
	n := sd.m.pick(5)
	var guard time.Time
	void := false
	switch sd.m.pick(3) {
	case 1:
		guard, void = sd.lastIdle, sd.model.demand() > 0
	case 2:
		guard, void = sd.lastIdle.Add(-1), true
	}
	got := sd.s.CordonLeastLoaded(n, given, guard)
	if void {
		if got != nil {
			sd.m.fail("cordoned %d although a request came in between", len(got))
		}
		return
	}
	want := sd.model.toGo(n, among)
	if !slices.Equal(got, want) {
		sd.m.fail("cordoned %v; want %v", got, want)
	}
	for _, p := range sd.model.instances {
		p.cordoned = p.cordoned || slices.Contains(want, p.i)
	}
	sd.model.changed()
}

func (sd *side) restore() {
	p := sd.anyPlace()
	if p == nil {
		return
	}
	p.i.Restore()
	if p.ejected {
		p.ejected, p.suspected, p.verifyRequested = false, false, false
		p.restore++
	}
	sd.model.changed()
}

func (sd *side) vouch() {
	if p := sd.anyPlace(); p != nil {
		p.i.Verify()
		p.suspected, p.verifyRequested = false, false
		sd.model.changed()
	}
}

func (sd *side) distrust() {
	p := sd.anyPlace()
	if p == nil {
		return
	}
	if sd.m.pick(2) == 0 {
		p.i.Eject()
		if !p.ejected {
			sd.model.judge(p, Refused)
		}
		sd.model.changed()
		return
	}
	p.i.RequestVerify()
	if p.i.AddressReusable() && !p.verifyRequested {
		p.verifyRequested = true
		sd.model.asked = append(sd.model.asked, p.i)
	}
}

func (sd *side) remove() {
	p := sd.anyPlace()
	if p == nil {
		return
	}
	p.i.Remove()
	p.i.Remove() // says nothing new
	p.removed = true
	sd.model.instances = slices.DeleteFunc(sd.model.instances, func(o *place) bool { return o == p })
	sd.gone = append(slices.DeleteFunc(sd.gone, func(o *place) bool { return len(o.inside) == 0 }), p)
	sd.model.changed()
	// What is said of one that is gone changes nothing.
	switch sd.m.pick(9) {
	case 4:
		p.i.Verify()
	case 5:
		p.i.RequestVerify()
	case 6:
		p.i.Eject()
	case 0:
		p.i.Cordon()
	case 1:
		p.i.Uncordon()
	case 2:
		p.i.Restore()
	case 3:
		p.slots = sd.m.pick(5) + NoSlots
		p.i.SetSlots(p.slots)
	}
}

func (sd *side) interrupt() {
	all := append(slices.Clone(sd.model.instances), sd.gone...)
	if len(all) == 0 {
		return
	}
	p := all[sd.m.pick(len(all))]
	for _, x := range sd.parties {
		x.interrupted = 0
	}
	if n := p.i.Interrupt(errSuspended); n != len(p.inside) {
		sd.m.fail("interrupted %d, inside are %d", n, len(p.inside))
	}
	for _, x := range sd.parties {
		want := 0
		if slices.Contains(p.inside, x) && x.r.Interrupter != nil {
			want = 1
		}
		if x.interrupted != want {
			sd.m.fail("one was interrupted %d times; want %d", x.interrupted, want)
		}
	}
}

func (sd *side) setSlots() {
	if p := sd.anyPlace(); p != nil {
		p.slots = sd.m.pick(6) + NoSlots
		p.i.SetSlots(p.slots)
		sd.model.changed()
	}
}

func (sd *side) setOptions() {
	sd.model.opts = sd.m.options()
	sd.s.SetOptions(sd.model.opts)
	sd.model.spend()
	sd.model.changed()
}

func (sd *side) refuse() {
	reason := []error{nil, errSuspended}[sd.m.pick(2)]
	sd.s.Refuse(reason)
	sd.model.refusal = reason
	if reason != nil {
		sd.model.dismiss(reason, func(*party) bool { return true })
	}
}

func (sd *side) watch() {
	mark := sd.m.pick(6)
	got, want := sd.s.Watch(mark), sd.model.demand() <= mark
	if got != want {
		sd.m.fail("Watch(%d) returned %v with a demand of %d", mark, got, sd.model.demand())
	}
	sd.model.mark = mark
	if !want {
		sd.model.mark = noMark
	}
}

func (sd *side) watchFreed() {
	sd.model.watchFreed = sd.m.pick(2) == 1
	sd.s.WatchFreed(sd.model.watchFreed)
}

func (sd *side) observe() {
	switch sd.m.pick(3) {
	case 0:
		if got := sd.s.TakePeak(); got != sd.model.peak {
			sd.m.fail("the peak is %d; want %d", got, sd.model.peak)
		}
		sd.model.peak = sd.model.demand()
	case 1:
		if got := sd.s.TakeRefusedDemand(); got != sd.model.refusedDemand {
			sd.m.fail("Knocked returned %v", got)
		}
		sd.model.refusedDemand = false
	case 2:
		sd.s.ResetIdle()
		sd.model.idleMoved = true
	}
}

func (sd *side) setLimit() {
	sd.m.max = sd.m.pick(8)
	sd.m.shared.Set(sd.m.max)
}

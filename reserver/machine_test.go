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
	max    int // of shared
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
	lastIdle time.Time
	added    int
	gone     []*place // removed, with somebody inside when it happened
	inUse    map[*Instance]int
	began    time.Time
}

var errSuspended = errors.New("suspended")

// partiesOfASide is how many requests a service has at most in a random walk.
const partiesOfASide = 12

func newMachine(pick func(int) int, failf func(string, ...any), parties int) *machine {
	m := &machine{pick: pick, failf: failf, shared: new(Limit), max: pick(8)}
	m.shared.Set(m.max)
	for k := range m.sides {
		sd := &side{m: m, model: &model{opts: m.options()}, inUse: map[*Instance]int{}}
		sd.s = New(sd.model.opts, m.shared, hooks{
			demand:     func() { sd.rang++ },
			ejected:    func(i *Instance) { sd.ejected = append(sd.ejected, i) },
			questioned: func(i *Instance) { sd.asked = append(sd.asked, i) },
			drained:    func(i *Instance) { sd.drained = append(sd.drained, i) },
		})
		sd.lastIdle = sd.s.Stats().IdleSince
		for range parties {
			x := &party{r: new(Reservation), state: outside}
			if pick(4) > 0 {
				x.r.Interrupt = func(error) { x.interrupted++ }
			}
			sd.parties = append(sd.parties, x)
		}
		m.sides[k] = sd
	}
	return m
}

func (m *machine) options() Options {
	return Options{MaxWaiting: m.pick(7), Balance: Balance(m.pick(3))}
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

// mayWait is the model of the limit over all services: every line counted.
// It is asked while the one that asks stands in its model's line already.
func (m *machine) mayWait() bool { return m.waiting()-1 < m.max }

func (m *machine) waiting() (n int) {
	for _, sd := range m.sides {
		n += len(sd.model.line)
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
	{"add", (*side).add},
	{"cordon", (*side).cordon},
	{"uncordon", (*side).uncordon},
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
	if got, want := m.shared.Used(), m.waiting(); got != want {
		m.fail("the limit over all counts %d waiting, there are %d", got, want)
	}
}

// do does one step.
func (m *machine) do(st step) *side {
	sd := m.sides[m.pick(2)]
	sd.model.begin()
	sd.rang, sd.ejected, sd.asked, sd.drained = 0, nil, nil, nil
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
	x.doubt = false
	ok, err := sd.s.Reserve(x.r, quiet)
	wantOK, wantErr := sd.model.ask(x, quiet, false, nil, sd.m.mayWait)
	sd.answered(x, ok, err, wantOK, wantErr)
}

func (sd *side) again() {
	x := sd.any(inside, inside, outside)
	if x == nil || x.r.service == nil {
		return
	}
	fate := Fate(sd.m.pick(5))
	x.doubt = fate == Doubted
	sd.m.logf("fate %d", fate)
	ok, err := x.r.Again(fate)
	from := x.at
	if from != nil {
		sd.model.leave(x, fate)
	}
	wantOK, wantErr := sd.model.ask(x, x.quiet, true, from, sd.m.mayWait)
	sd.answered(x, ok, err, wantOK, wantErr)
	sd.model.handOut(nil, nil)
}

func (sd *side) answered(x *party, ok bool, err error, wantOK bool, wantErr error) {
	x.joined = sd.began
	sd.m.logf("quiet %v: %v, %v", x.quiet, ok, err)
	if ok != wantOK || err != wantErr {
		sd.m.fail("asking gave %v, %v; want %v, %v", ok, err, wantOK, wantErr)
	}
}

func (sd *side) cancel() {
	x := sd.any(inLine, granted, rejected, inside)
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
	case inLine:
		sd.model.line = slices.DeleteFunc(sd.model.line, func(o *party) bool { return o == x })
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
	fate := Fate(sd.m.pick(5))
	sd.m.logf("%s, fate %d", x.state, fate)
	x.r.Release(fate)
	if x.state == outside {
		return // once too often
	}
	sd.model.leave(x, fate)
	sd.model.handOut(nil, nil)
}

func (sd *side) add() {
	if len(sd.model.instances) > 6 {
		return
	}
	sd.added++
	id := fmt.Sprint("i", sd.added)
	slots := sd.m.pick(4)
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
		p.cordoned = true
		sd.model.changed()
	}
}

func (sd *side) uncordon() {
	if p := sd.anyPlace(); p != nil {
		p.i.Uncordon()
		p.cordoned = false
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
		p.ejected, p.doubted, p.questioned = false, false, false
		p.restore++
	}
	sd.model.changed()
}

func (sd *side) vouch() {
	if p := sd.anyPlace(); p != nil {
		p.i.Vouch()
		p.doubted, p.questioned = false, false
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
	p.i.Question()
	if p.i.Unbound && !p.questioned {
		p.questioned = true
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
		p.i.Vouch()
	case 5:
		p.i.Question()
	case 6:
		p.i.Eject()
	case 0:
		p.i.Cordon()
	case 1:
		p.i.Uncordon()
	case 2:
		p.i.Restore()
	case 3:
		p.slots = sd.m.pick(4)
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
		if slices.Contains(p.inside, x) && x.r.Interrupt != nil {
			want = 1
		}
		if x.interrupted != want {
			sd.m.fail("one was interrupted %d times; want %d", x.interrupted, want)
		}
	}
}

func (sd *side) setSlots() {
	if p := sd.anyPlace(); p != nil {
		p.slots = sd.m.pick(5)
		p.i.SetSlots(p.slots)
		sd.model.changed()
	}
}

func (sd *side) setOptions() {
	sd.model.opts = sd.m.options()
	sd.s.SetOptions(sd.model.opts)
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

func (sd *side) observe() {
	switch sd.m.pick(3) {
	case 0:
		if got := sd.s.TakePeak(); got != sd.model.peak {
			sd.m.fail("the peak is %d; want %d", got, sd.model.peak)
		}
		sd.model.peak = sd.model.demand()
	case 1:
		if got := sd.s.Knocked(); got != sd.model.knocked {
			sd.m.fail("Knocked returned %v", got)
		}
		sd.model.knocked = false
	case 2:
		sd.s.Touch()
		sd.model.idleMoved = true
	}
}

func (sd *side) setLimit() {
	sd.m.max = sd.m.pick(8)
	sd.m.shared.Set(sd.m.max)
}

package control

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// world is a service on two platforms, of which a reload takes the other, and
// those who ask for it. It checks the promises after everything that happens.
type world struct {
	*Loop
	t        *testing.T
	res      *reserver.Service
	budget   *Budget
	settings Settings
	story    way

	platforms [2]*watched
	at        int // which of them is the current one
	slow, off bool

	waiting, inside []*reserver.Reservation // in the order of their coming
	inUse           map[string]int          // at the last check, by instance

	drains drains
}

// watched is a platform whose orders are looked at when they arrive.
type watched struct {
	*platform
	w *world
}

func (x *watched) Open(env scaler.Env) (scaler.Scaler, error) {
	if _, err := x.platform.Open(env); err != nil {
		return nil, err
	}
	return x, nil
}

func (x *watched) Scale(ctx context.Context, o scaler.Order) error {
	x.w.ordered(x.platform, o)
	return x.platform.Scale(ctx, o)
}

// drains knows since when instances drain.
type drains struct {
	recorder
	since sync.Map
}

func (d *drains) Observe(e Event) {
	i, ok := e.(InstanceStatus)
	if !ok {
		d.recorder.Observe(e)
		return
	}
	switch i.State {
	case InstanceDraining:
		d.since.LoadOrStore(i.ID, time.Now())
	case InstanceStopping:
	default:
		d.since.Delete(i.ID)
	}
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, budget: NewBudget(2), inUse: make(map[string]int)}
	w.settings = with(func(s *Settings) {
		s.Max, s.Concurrency, s.DrainTimeout, s.IdleTimeout = 2, 1, drainsFor, idlesFor
	})
	settings := w.settings // what a loop has got does not change any more
	w.Loop = NewLoop(scaler.Env{Service: "web", Logger: quiet}, &settings, w.budget, new(Timers), &w.drains)
	w.res = reserver.New(reserver.Options{MaxWaiting: 10}, nil, w.Hooks())
	w.Attach(w.res)
	for k := range w.platforms {
		w.platforms[k] = &watched{&platform{local: true, startTime: -1, stopTime: time.Second}, w}
	}
	if err := w.SetBackend(w.platforms[0]); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return w
}

// happens lets one thing happen, with all that follows at once, and checks the
// promises.
func (w *world) happens(k int) {
	w.story = append(w.story, k)
	happenings[k].do(w)
	w.settle()
	w.check(strings.HasPrefix(happenings[k].name, "a "))
}

// settle waits for what follows at once, and takes note of answers.
func (w *world) settle() {
	synctest.Wait()
	w.waiting = slices.DeleteFunc(w.waiting, func(r *reserver.Reservation) bool {
		select {
		case err := <-r.Granted():
			if (err == nil) != (r.Instance() != nil) {
				w.fail("was told %v, and has the instance %v", err, r.Instance())
			}
			if err == nil {
				w.inside = append(w.inside, r)
			}
			return true
		default:
			return false
		}
	})
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	w.t.Errorf("after %v: %s", w.story, fmt.Sprintf(format, args...))
}

// check checks the promises that hold at any time.
func (w *world) check(timePassed bool) {
	st := w.res.Stats()
	if st.Waiting != len(w.waiting) {
		w.fail("%d wait, and %d stand in the line", len(w.waiting), st.Waiting)
	}
	w.checkProgress()
	now := make(map[string]int)
	for _, i := range w.Instances() {
		held := 0
		for _, r := range w.inside {
			if r.Instance().ID == i.ID {
				held++
			}
		}
		if held != i.InUse {
			w.fail("%s: %d requests inside, %d counted", i.ID, held, i.InUse)
		}
		now[i.ID] = i.InUse
		before := w.inUse[i.ID]
		switch i.State {
		case InstanceReady:
			if i.Slots != w.settings.Concurrency {
				w.fail("%s has %d slots, want %d", i.ID, i.Slots, w.settings.Concurrency)
			}
			if i.InUse > i.Slots && i.InUse > before {
				w.fail("%s has %d requests inside and %d slots", i.ID, i.InUse, i.Slots)
			}
			if st.Waiting > 0 && i.InUse < i.Slots {
				w.fail("%d wait beside %s with %d of %d slots in use", st.Waiting, i.ID, i.InUse, i.Slots)
			}
		case InstanceDraining, InstanceStopping, InstanceEjected:
			if i.InUse > before && !timePassed {
				w.fail("%s is %s and was given a request", i.ID, i.State)
			}
		}
	}
	w.inUse = now
}

// checkProgress checks that what is wanted is on its way, unless something
// stands in its way: a new revision does not wait for the next request.
func (w *world) checkProgress() {
	st := w.Status()
	if w.slow || w.off || st.LastError != nil || st.Target == 0 || st.Starting > 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.current(); len(r.instances) == 0 && !r.ordering && !w.waitsForStop() {
		w.fail("%d are wanted, and none of the current revision is on its way", st.Target)
	}
}

// ordered checks an order as it arrives at a platform.
func (w *world) ordered(p *platform, o scaler.Order) {
	// The platforms are asked before the loop is held: they report under their
	// own lock, and the loop never asks them under its.
	var living, starts, exist, others int
	p.set(func() {
		living = p.living()
		starts, exist = o.Instances-(living-len(o.Stop)), len(p.all())+p.remains
	})
	for _, other := range w.platforms {
		if other.platform != p {
			others += other.exist() + other.left()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if o.Instances > living && o.Instances > w.Loop.settings.Max {
		w.fail("%d instances are ordered where %d run", o.Instances, living)
	}
	w.checkRoom(starts, exist, others)
	for _, r := range w.revisions {
		for _, id := range o.Stop {
			i := r.instances[id]
			if i == nil || i.inUse() == 0 {
				continue
			}
			if since, ok := w.drains.since.Load(id); !ok || time.Since(since.(time.Time)) < drainsFor {
				w.fail("%s is stopped with %d requests inside, before its time to drain is over", id, i.inUse())
			}
		}
	}
}

// checkRoom checks that what an order starts has room beside all that exists,
// what stops included: of the same revision, and with a maximum of 1 of any.
// The lock of the loop is held.
func (w *world) checkRoom(starts, exist, others int) {
	if starts <= 0 {
		return
	}
	if w.stopsFirst() {
		exist += others
	}
	if most := w.Loop.settings.Max; exist+starts > most {
		w.fail("%d are started beside %d, with max %d", starts, exist, most)
	}
}

func (w *world) request() {
	r := new(reserver.Reservation)
	switch ok, err := w.res.Reserve(r, reserver.Ask{}); {
	case ok:
		w.inside = append(w.inside, r)
	case err == nil:
		w.waiting = append(w.waiting, r)
	}
}

func (w *world) answer(k int) {
	w.inside[k].Release(reserver.Answered)
	w.inside = slices.Delete(w.inside, k, k+1)
}

func (w *world) leave(k int) {
	if w.waiting[k].Cancel() {
		w.fail("one that waits has a slot")
	}
	w.waiting = slices.Delete(w.waiting, k, k+1)
}

// some returns the oldest instance of the current platform, or else of the
// other, that is in this phase.
func (w *world) some(ph scaler.Phase) string {
	for _, p := range []*watched{w.platforms[w.at], w.platforms[1-w.at]} {
		if id := p.oldest(ph); id != "" {
			return id
		}
	}
	return ""
}

func (p *platform) oldest(ph scaler.Phase) (oldest string) {
	p.set(func() {
		for _, id := range slices.Sorted(slices.Values(p.all())) {
			if p.instance(id).Phase == ph {
				oldest = id
				return
			}
		}
	})
	return oldest
}

func (w *world) phase(id string, ph scaler.Phase) {
	for _, p := range w.platforms {
		p.phase(id, ph)
	}
}

func (w *world) dies(id string) {
	for _, p := range w.platforms {
		p.end(id, exit("killed"))
	}
}

// diesInPart lets an instance end of which a process runs on.
func (w *world) diesInPart() {
	id := w.some(scaler.PhaseReady)
	for _, p := range w.platforms {
		p.set(func() {
			if p.instance(id) != nil {
				p.remains = 1
			}
		})
		p.end(id, exit("killed"))
	}
}

// restDies ends what ended instances have left.
func (w *world) restDies() {
	for _, p := range w.platforms {
		if p.left() > 0 {
			p.do(func() { p.remains = 0 })
		}
	}
}

func hasRemains(w *world) bool { return w.platforms[0].left()+w.platforms[1].left() > 0 }

// left is how many ended instances have left a process.
func (p *platform) left() (n int) {
	p.set(func() { n = p.remains })
	return n
}

func (w *world) change(f func(*Settings)) {
	f(&w.settings)
	settings := w.settings
	w.Apply(&settings)
}

func (w *world) reload() {
	w.at = 1 - w.at
	if err := w.SetBackend(w.platforms[w.at]); err != nil {
		w.fail("reload: %v", err)
	}
}

// orders makes orders slow, or lets them through.
func (w *world) orders(slow bool) {
	w.slow = slow
	for _, p := range w.platforms {
		p.set(func() {
			if slow {
				p.gate = make(chan struct{})
			} else {
				close(p.gate)
				p.gate = nil
			}
		})
	}
}

// end checks that the service comes to rest from where it is: waiting
// requests are answered, what was asked for comes and goes, and nothing is left
// over.
func (w *world) end() {
	if w.slow {
		w.orders(false)
	}
	if w.off {
		w.Resume()
	}
	w.restDies()
	for round := 0; len(w.waiting)+len(w.inside) > 0; round++ {
		if round == 300 {
			w.fail("%d wait for ever\n%s", len(w.waiting), strings.Join(w.drains.events, "\n"))
			break
		}
		for id := w.some(scaler.PhaseStarting); id != ""; id = w.some(scaler.PhaseStarting) {
			w.phase(id, scaler.PhaseReady)
		}
		w.settle()
		w.check(true)
		for len(w.inside) > 0 {
			w.answer(0)
		}
		w.settle()
		time.Sleep(time.Second)
	}
	// Whatever starts late becomes ready, and goes.
	for range 4 {
		for id := w.some(scaler.PhaseStarting); id != ""; id = w.some(scaler.PhaseStarting) {
			w.phase(id, scaler.PhaseReady)
		}
		time.Sleep(idlesFor + time.Minute)
		synctest.Wait()
	}
	st, rs := w.Status(), w.res.Stats()
	if rs.Waiting+rs.InUse+rs.Demand+rs.Open != 0 || st.Target != 0 || len(w.Instances()) != 0 {
		w.fail("it does not come to rest: %+v %+v", st, rs)
	}
	for _, p := range w.platforms {
		if ids := p.ids(); len(ids) != 0 {
			w.fail("%v are left over", ids)
		}
	}
	w.run.Lock()
	active := w.run.poked != nil
	w.run.Unlock()
	if active {
		w.fail("a service that sleeps has a goroutine")
	}
	w.discard()
}

// discard ends the service where it is.
func (w *world) discard() {
	if w.slow {
		w.orders(false)
	}
	for _, r := range w.waiting {
		if r.Cancel() {
			w.inside = append(w.inside, r)
		}
	}
	for _, r := range w.inside {
		r.Release(reserver.Neutral)
	}
	if err := w.Close(context.Background()); err != nil && !errors.Is(err, ErrClosed) {
		w.fail("closing: %v", err)
	}
	if n := w.budget.used(); n != 0 {
		w.fail("%d places of the budget never came back", n)
	}
}

// key says what can make a difference later, as far as it is known: times
// only as how far away they are, and instances without their names.
func (w *world) key() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	now := time.Now()
	far := func(t time.Time) any {
		if t.IsZero() {
			return "-"
		}
		return int(now.Sub(t).Seconds())
	}
	res := reflect.ValueOf(w.res).Elem()
	fmt.Fprint(&b, w.at, w.slow, w.off, w.settings.Max, w.settings.Concurrency, len(w.waiting), len(w.inside), " ",
		w.target, w.state, w.startRequested, w.owed, w.asleep, w.refusal != nil, w.failures, w.permanentFailure, now.Before(w.backoffUntil), w.placeless, w.granted.Load(), " ",
		res.FieldByName("mark").Int(), res.FieldByName("peak").Int(), far(w.res.Stats().IdleSince))
	for _, s := range w.recalled().samples {
		if s.Reset {
			fmt.Fprint(&b, " reset")
		}
		fmt.Fprint(&b, " h", far(s.At), ",", s.Demand, ",", s.Instances)
	}
	for _, r := range w.revisions {
		fmt.Fprint(&b, "\nr", r.places, r.desired, r.ordered, r.ordering, now.Before(r.retryAt), r.retries, r.closing, far(r.missing), r.remains)
		var all []string
		for _, i := range r.instances {
			age := "-"
			if i.slots != nil {
				age = fmt.Sprint(now.Sub(i.readySince) < ProvenAfter)
			}
			all = append(all, fmt.Sprint(" ", i.state(), i.Phase, i.status().InUse, i.mustStop, i.readiness() == unready, i.stage == stopping, i.placeless, far(i.drainUntil), far(i.unreadyFrom), age))
		}
		slices.Sort(all)
		b.WriteString(strings.Join(all, ""))
	}
	return b.String()
}

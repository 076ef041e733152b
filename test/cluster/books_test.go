//go:build linux

package cluster

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// patience is how long a client waits for the end of anything. It only runs out
// if a request was forgotten.
const patience = 60 * time.Second

// slack is how much later than in Caddy something may be seen by a client, or
// noted by the test, on a busy machine.
const slack = time.Second

// record is what is known of one request.
type record struct {
	seq     string
	caddy   int // that was asked
	service string
	task    task

	began, over time.Time
	left        bool   // the client went away before the end
	status      int    // 0: not one byte of an answer
	code        string // of an error of Usher's own
	body        string
	wrong       string // what is wrong with what came
	err         error

	stays []stay // by the journal of the instances
}

// stay is one request inside one instance.
type stay struct {
	instance string
	from, to time.Time // to is zero if the instance never said that it left
}

func (r *record) String() string {
	return fmt.Sprintf("%s at Caddy %d, %s %s/%s, from %s to %s: status %d %s, left %t, %s, error %v, %.200q, inside %v",
		r.seq, r.caddy, r.task.method, r.service, r.task.path, r.began.Format(clock), r.over.Format(clock), r.status, r.code, r.left, r.wrong, r.err, r.body, r.stays)
}

func (s stay) String() string {
	return fmt.Sprintf("%s %s-%s", s.instance, s.from.Format(clock), s.to.Format(clock))
}

const clock = "15:04:05.000"

// task is what a client asks for.
type task struct {
	method, path string
	send         int           // bytes
	leave        time.Duration // the client goes away after that; 0: never
}

// draw returns what clients ask for: mostly something short, and some long
// answers, streams and bodies.
func draw(r *rand.Rand) (t task) {
	t.method = http.MethodGet
	switch n := r.IntN(100); {
	case n < 70:
		t.path = fmt.Sprintf("/sleep?d=%dms", 1+r.IntN(40))
	case n < 80:
		t.path = fmt.Sprintf("/sleep?d=%dms", 200+r.IntN(1300))
	case n < 88:
		t.path = fmt.Sprintf("/sse?n=%d&d=%dms", 1+r.IntN(20), 1+r.IntN(50))
	default:
		t.method, t.path, t.send = http.MethodPost, "/echo", 1+r.IntN(100<<10)
	}
	if r.IntN(25) == 0 {
		t.leave = time.Duration(1+r.IntN(500)) * time.Millisecond
	}
	return t
}

// crowd are clients that ask one thing after the other, until stop.
type crowd struct {
	end     chan struct{}
	once    sync.Once
	running sync.WaitGroup
	mu      sync.Mutex
	all     []*record
}

// crowd lets so many clients ask each of these Caddys.
func (w *town) crowd(caddys []int, clients int, seed uint64, services ...string) *crowd {
	c := &crowd{end: make(chan struct{})}
	for _, k := range caddys {
		for j := range clients {
			r := rand.New(rand.NewPCG(seed, uint64(1000*k+j)))
			name := fmt.Sprintf("c%d-%d", k, j)
			client := w.caddys[k].HTTP1()
			client.Timeout = patience
			c.running.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-c.end:
						return
					default:
					}
					c.one(w, client, &record{
						seq: fmt.Sprintf("%s-%d", name, n), caddy: k, service: services[r.IntN(len(services))], task: draw(r),
					})
				}
			})
		}
	}
	w.t.Cleanup(func() { c.stop() })
	return c
}

// stop ends the load once the requests under way have an outcome, and returns
// all of them.
func (c *crowd) stop() []*record {
	c.once.Do(func() { close(c.end) })
	c.running.Wait()
	return c.all
}

// one sends a request.
func (c *crowd) one(w *town, client *http.Client, r *record) {
	c.mu.Lock()
	c.all = append(c.all, r)
	c.mu.Unlock()
	body := bytes.Repeat([]byte("x"), r.task.send)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, r.task.method, "http://"+w.caddys[r.caddy].Addr+w.path(r.service)+r.task.path, bytes.NewReader(body))
	if err != nil {
		panic(err)
	}
	if r.task.send == 0 {
		req.Body = http.NoBody
	}
	req.Header.Set("X-Seq", r.seq)
	r.began = time.Now()
	var left time.Time
	if r.task.leave > 0 {
		var mu sync.Mutex
		leaving := time.AfterFunc(r.task.leave, func() {
			mu.Lock()
			defer mu.Unlock()
			left = time.Now()
			cancel()
		})
		defer func() {
			leaving.Stop()
			mu.Lock()
			defer mu.Unlock()
			if r.left = !left.IsZero() && r.err != nil; r.left {
				r.over = left
			}
		}()
	}
	res, err := client.Do(req)
	if err == nil {
		r.status, r.code = res.StatusCode, res.Header.Get("Usher-Error")
		var got []byte
		got, err = io.ReadAll(res.Body)
		res.Body.Close()
		switch {
		case r.status != http.StatusOK:
			r.body = string(got)
		case err == nil && r.task.send > 0 && !bytes.Equal(got, body):
			r.wrong = fmt.Sprintf("%d bytes came back of %d", len(got), len(body))
		case err == nil && len(got) == 0:
			r.wrong = "an empty answer"
		}
	}
	r.err, r.over = err, time.Now()
	if r.status == 0 && !errIsLeft(err) {
		time.Sleep(50 * time.Millisecond) // no Caddy is there
	}
}

func errIsLeft(err error) bool {
	return err != nil && strings.Contains(err.Error(), context.Canceled.Error())
}

// fine tells whether the request was served, whole.
func (r *record) fine() bool { return r.err == nil && r.wrong == "" && r.status == http.StatusOK }

// span is a time in which something was done to a Caddy, or to all.
type span struct {
	what     string
	caddy    int // everywhere: to all
	from, to time.Time
}

const everywhere = -2

func (s span) touches(from, to time.Time) bool { return !s.from.After(to) && !s.to.Before(from) }

// done is what was done.
type done struct {
	gone    []span // a Caddy was ended, until it served again
	reloads []span
	still   []span // a Caddy stood still as a whole
	apart   []span // a Caddy was cut off
	jumps   []span // the clock of a Caddy was changed
	deaths  []span // Caddys were killed
}

// all are all spans.
func (d *done) all() []span { return slices.Concat(d.gone, d.reloads, d.still, d.apart, d.jumps) }

func (d *done) String() string {
	all := d.all()
	slices.SortFunc(all, func(a, b span) int { return a.from.Compare(b.from) })
	var b strings.Builder
	for _, s := range all {
		fmt.Fprintf(&b, "  %s to %s: %s\n", s.from.Format(clock), s.to.Format(clock), s.what)
	}
	return b.String()
}

func touched(all []span, caddy int, from, to time.Time) bool {
	return slices.ContainsFunc(all, func(s span) bool {
		return (s.caddy == caddy || s.caddy == everywhere || caddy == everywhere) && s.touches(from, to)
	})
}

// books are what clients and instances have written down.
type books struct {
	t     *testing.T
	done  *done
	all   []*record
	bySeq map[string]*record
	found int
}

func (w *town) books(all []*record, d *done) *books {
	b := &books{t: w.t, done: d, all: all, bySeq: make(map[string]*record)}
	for _, r := range all {
		b.bySeq[r.seq] = r
	}
	for _, e := range w.caddys[0].Journal() {
		r := b.bySeq[e.Seq]
		if r == nil {
			continue
		}
		at := time.Unix(0, e.Time)
		switch e.Event {
		case "begin":
			r.stays = append(r.stays, stay{instance: e.Instance, from: at})
		case "end":
			for k := range r.stays {
				if s := &r.stays[k]; s.instance == e.Instance && s.to.IsZero() {
					s.to = at
					break
				}
			}
		}
	}
	return b
}

const findingsTold = 8

func (b *books) finding(r *record, format string, args ...any) {
	b.t.Helper()
	if b.found++; b.found <= findingsTold {
		b.t.Errorf(format+"\n  %s", append(args, r)...)
	}
	if b.found == findingsTold+1 {
		b.t.Errorf("and more; what was done:\n%s", b.done)
	}
}

// checkOutcomes checks that each request has an outcome that what was done
// allows.
func (b *books) checkOutcomes(waitTimeout time.Duration) {
	b.t.Helper()
	for _, r := range b.all {
		took := r.over.Sub(r.began)
		switch {
		case took > patience-time.Second:
			b.finding(r, "a request was not answered in %s", patience)
		case r.wrong != "":
			b.finding(r, "the answer is not the right one")
		case r.fine():
			if len(r.stays) == 0 {
				b.finding(r, "an answer came that no instance has given")
			}
		case r.left:
		case r.code != "" && len(r.stays) > 0:
			b.finding(r, "an instance has seen a request that was refused")
		case r.code == "shutting_down":
			if !touched(b.done.gone, r.caddy, r.began, r.over) {
				b.finding(r, "no Caddy was ended")
			}
		case r.code == "wait_timeout":
			if took < waitTimeout-50*time.Millisecond || !touched(b.done.all(), everywhere, r.began, r.over) {
				b.finding(r, "it timed out, for no reason")
			}
		default:
			if why := b.why(r); why == "" {
				b.finding(r, "nothing was done that explains it")
			}
		}
		if r.task.method == http.MethodPost && len(r.stays) > 1 {
			b.finding(r, "a POST was executed %d times", len(r.stays))
		}
	}
}

// why says what broke off a request; "" if nothing did.
func (b *books) why(r *record) string {
	switch {
	case touched(b.done.gone, r.caddy, r.began, r.over.Add(slack)):
		return "its Caddy was ended"
	case touched(b.done.jumps, r.caddy, r.began, r.over.Add(slack)):
		// A jump ahead looks as if the machine had been suspended.
		return "the clock of its Caddy jumped"
	case touched(b.done.reloads, r.caddy, r.began.Add(-slack), r.over) && r.status == 0 && len(r.stays) == 0:
		// When a listener is replaced, the kernel drops connections that have not
		// been accepted. The old server closes idle ones a moment later.
		return "its Caddy was reloaded"
	}
	for _, s := range slices.Concat(b.done.still, b.done.apart) {
		// Requests are ended shortly before lost_after. The one that leads may have been
		// the one that was away.
		if s.touches(r.began, r.over.Add(slack)) && s.to.Sub(s.from) > lostAfter*8/10 {
			return "its Caddy had no lease for too long"
		}
	}
	return ""
}

// checkSlots checks that no instance had more requests inside than slots (G14).
// A request counts until its instance says that it has ended, or its Caddy has
// ended, or its client has its answer: what the instance has not noticed yet is
// not in its slot any more. It returns how many overlapped because their Caddy
// stood still for too long, which is the one case that the contract allows.
func (b *books) checkSlots(slots map[string]int) (overlaps int) {
	b.t.Helper()
	type guest struct {
		*record
		stay
	}
	inside := make(map[string][]guest)
	for _, r := range b.all {
		for _, s := range r.stays {
			if r.left && r.over.Before(s.from) && !touched(b.done.still, r.caddy, r.began, s.from) {
				continue // it was written before its client left, and read after
			}
			end := s.to
			sooner := func(at time.Time) {
				if end.IsZero() || at.Before(end) {
					end = at
				}
			}
			// A Caddy that stands still does not notice that a client has left.
			if !r.left || !touched(b.done.still, r.caddy, r.began, r.over.Add(50*time.Millisecond)) {
				sooner(r.over)
			}
			for _, d := range b.done.deaths {
				if d.caddy == r.caddy && s.from.Before(d.to) {
					sooner(d.to)
				}
			}
			inside[s.instance] = append(inside[s.instance], guest{r, stay{s.instance, s.from, end}})
		}
	}
	for _, all := range inside {
		slices.SortFunc(all, func(x, y guest) int { return cmp.Or(x.from.Compare(y.from), cmp.Compare(x.seq, y.seq)) })
		var now []guest
		for _, g := range all {
			now = slices.DeleteFunc(now, func(o guest) bool { return o.to.Before(g.from) })
			now = append(now, g)
			late := 0
			for _, o := range now {
				if b.stoodStillTooLong(o.caddy, o.from, g.from) {
					late++
				}
			}
			if n, most := len(now), slots[g.service]; n > most && n-late <= most {
				overlaps++
			} else if n > most {
				b.finding(g.record, "instance %s had %d requests inside at %s, and %d slots; the others: %v", g.instance, n, g.from.Format(clock), most, now)
			}
		}
	}
	return overlaps
}

// stoodStillTooLong reports whether a Caddy that had a request inside since from
// has since then stood still for longer than lost_after, and others may have
// its slots at a time.
func (b *books) stoodStillTooLong(caddy int, from, at time.Time) bool {
	return slices.ContainsFunc(b.done.still, func(s span) bool {
		return s.caddy == caddy && from.Before(s.from.Add(slack)) && at.Sub(s.from) > lostAfter && at.Before(s.to.Add(slack))
	})
}

// beside is for how long a request may wait at one Caddy while a slot is free
// at another.
const beside = time.Second

// checkIdle checks that no request waits for longer than beside while a slot of
// a service is free, whose number of slots does not change. Since takes the time
// of a trouble to that from which this has to hold again.
func (b *books) checkIdle(service string, total int, from, to time.Time, until func(span) time.Time) {
	b.t.Helper()
	type edge struct {
		at time.Time
		n  int
	}
	var edges []edge
	for _, r := range b.all {
		if r.service != service {
			continue
		}
		for _, s := range r.stays {
			end := s.to
			if end.IsZero() || r.over.Before(end) {
				end = r.over
			}
			edges = append(edges, edge{s.from, 1}, edge{end, -1})
		}
	}
	slices.SortFunc(edges, func(x, y edge) int { return x.at.Compare(y.at) })
	// The times in which a slot was free for long.
	var free []span
	inside, since := 0, from
	for _, e := range edges {
		was := inside
		inside += e.n
		switch {
		case was < total && inside >= total && e.at.Sub(since) > beside:
			free = append(free, span{from: since, to: e.at})
		case was >= total && inside < total:
			since = e.at
		}
	}
	for _, f := range free {
		excused := slices.ContainsFunc(b.done.all(), func(s span) bool {
			return f.from.Before(until(s)) && f.to.After(s.from)
		})
		if excused || f.to.After(to) {
			continue
		}
		for _, r := range b.all {
			entered := r.over
			if len(r.stays) > 0 {
				entered = r.stays[0].from
			}
			begin, end := r.began, entered
			if begin.Before(f.from) {
				begin = f.from
			}
			if end.After(f.to) {
				end = f.to
			}
			if r.service == service && end.Sub(begin) > beside {
				b.finding(r, "it waited for %s while a slot was free, from %s to %s", end.Sub(begin), f.from.Format(clock), f.to.Format(clock))
			}
		}
	}
}

// tally sums the outcomes up.
func (b *books) tally() string {
	counts := make(map[string]int)
	for _, r := range b.all {
		switch {
		case r.fine():
			counts["served"]++
		case r.left:
			counts["left"]++
		case r.code != "":
			counts[r.code]++
		case r.status == 0:
			counts["no answer"]++
		default:
			counts[fmt.Sprintf("broken off with status %d", r.status)]++
		}
	}
	var all []string
	for what, n := range counts {
		all = append(all, fmt.Sprintf("%s %d", what, n))
	}
	slices.Sort(all)
	return fmt.Sprintf("%d requests: %s", len(b.all), strings.Join(all, ", "))
}

// checkNothingIsLeft waits until nothing is under way any more anywhere, and
// each of the Caddys has as few connections and goroutines as a quiet one.
func (w *town) checkNothingIsLeft(tasks int) {
	w.t.Helper()
	var last string
	quiet := func() bool {
		for k, c := range w.caddys {
			for _, s := range c.Services() {
				if s.Waiting != 0 || s.Slots.InUse != 0 {
					last = fmt.Sprintf("Caddy %d: %d wait and %d are inside %s", k, s.Waiting, s.Slots.InUse, s.Name)
					return false
				}
			}
			s, ok := w.status(k)
			if !ok || s.Isolated || len(s.Members) != len(w.caddys) {
				last = fmt.Sprintf("Caddy %d: %+v", k, s)
				return false
			}
		}
		peers, etcd := w.network.connections()
		// A connection to one that led before may stay.
		if n := len(w.caddys); peers < n-1 || peers > n*(n-1)/2 || etcd > 2*len(w.caddys) {
			last = fmt.Sprintf("there are %d connections between Caddys, and %d to etcd", peers, etcd)
			return false
		}
		if n := len(w.sim.Tasks()); n != tasks {
			last = fmt.Sprintf("%d tasks run", n)
			return false
		}
		return true
	}
	if !harness.WaitFor(soon, quiet) {
		w.t.Errorf("something is left over: %s", last)
	}
}

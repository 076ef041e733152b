package reserver

import "time"

// turns is the order of a queue with priorities, fair shares, and waiters that
// are bound to an instance:
//
//   - Urgent waiters come first.
//   - A higher class comes before a lower one. Waiters rise with time.
//   - The shares of a class have their turns one after the other: after a grant
//     a share goes behind all others, and a share that had no waiter begins
//     there.
//   - The waiters of a share have their turns in the order of arrival.
//
// Waiters that are bound to an instance stand in its own line. Adding a waiter,
// removing one and finding the next take O(log n), if n of them wait.
type turns struct {
	lines [kinds]line // the waiters that are bound to no instance
	all   [kinds]list // all waiters, in the order of arrival

	shares map[uint64]*share
	lanes  map[laneKey]*lane
	front  share // that of the urgent waiters
	turn   uint64

	rising heap[*riser]
	now    func() time.Duration // as waiter.arrived
}

// line is the waiters among which one has the next turn.
type line struct {
	levels [levels]heap[*lane]
	n      int
}

// A level is a class, or that of the urgent waiters, above all.
const levels = int(High-Low) + 2

func (w *waiter) level() int {
	if w.urgent {
		return levels - 1
	}
	return int(w.class - Low)
}

// share is a fair share. It exists while a waiter counts to it.
type share struct {
	id      uint64
	turn    uint64     // lower ones have their turns earlier
	waiting [kinds]int // in all lines
}

type laneKey struct {
	line  *line
	share *share
	level int
}

// lane is the waiters of one share and level in a line. turn is the share's
// when the lane was last looked at: it never falls, so what is too low is put
// right when the lane comes to the top.
type lane struct {
	laneKey
	waiters heap[*waiter]
	turn    uint64
	place   int
}

func (l *lane) comes(before *lane) bool { return l.turn < before.turn }
func (l *lane) put(place int)           { l.place = place }
func (l *lane) at() int                 { return l.place }

func (w *waiter) comes(before *waiter) bool { return w.arrived < before.arrived }
func (w *waiter) put(place int)             { w.place = place }
func (w *waiter) at() int                   { return w.place }

// riser is a waiter in the order of the times at which they rise.
type riser waiter

func (w *riser) comes(before *riser) bool { return w.rises < before.rises }
func (w *riser) put(place int)            { w.risePlace = place }
func (w *riser) at() int                  { return w.risePlace }

func newTurns(now func() time.Duration) *turns {
	return &turns{shares: make(map[uint64]*share), lanes: make(map[laneKey]*lane), now: now}
}

func (q *turns) push(w *waiter) {
	w.class, w.share, w.risePlace = w.Class, &q.front, -1
	if !w.urgent {
		if w.share = q.shares[w.Share]; w.share == nil {
			w.share = &share{id: w.Share}
			q.shares[w.Share] = w.share
			q.served(w)
		}
		if w.class < High && w.RiseAfter > 0 {
			w.rises = w.arrived + w.RiseAfter
			q.rising.push((*riser)(w))
		}
	}
	w.share.waiting[w.kind]++
	q.all[w.kind].insert(w)
	q.enter(w)
}

func (q *turns) remove(w *waiter) {
	q.exit(w)
	q.all[w.kind].remove(w)
	if w.risePlace >= 0 {
		q.rising.remove(w.risePlace)
	}
	w.share.waiting[w.kind]--
	if w.share != &q.front && w.share.waiting == ([kinds]int{}) {
		delete(q.shares, w.share.id)
	}
	w.share = nil
}

// enter puts w into the lane where it waits.
func (q *turns) enter(w *waiter) {
	l := &q.lines[w.kind]
	if w.bound != nil {
		l = &w.bound.line
	}
	k := laneKey{l, w.share, w.level()}
	w.lane = q.lanes[k]
	if w.lane == nil {
		w.lane = &lane{laneKey: k, turn: w.share.turn}
		q.lanes[k] = w.lane
		l.levels[k.level].push(w.lane)
	}
	w.lane.waiters.push(w)
	l.n++
}

// exit takes w out of its lane.
func (q *turns) exit(w *waiter) {
	l := w.lane
	l.waiters.remove(w.place)
	l.line.n--
	if len(l.waiters.items) == 0 {
		l.line.levels[l.level].remove(l.place)
		delete(q.lanes, l.laneKey)
	}
	w.lane = nil
}

// bind lets w wait in the line of an instance, or in that of all with nil.
func (q *turns) bind(w *waiter, i *Instance) {
	q.exit(w)
	w.bound = i
	q.enter(w)
}

// rise lets the waiters rise whose time has come.
func (q *turns) rise() {
	if len(q.rising.items) == 0 {
		return
	}
	now := q.now()
	for len(q.rising.items) > 0 && q.rising.items[0].rises <= now {
		w := (*waiter)(q.rising.items[0])
		q.exit(w)
		w.class++
		q.enter(w)
		if w.class == High {
			q.rising.remove(w.risePlace)
		} else {
			w.rises += w.RiseAfter
			q.rising.fix(w.risePlace)
		}
	}
}

// next returns the waiter of the line that has the next turn, or nil.
func (l *line) next() *waiter {
	if l.n == 0 {
		return nil
	}
	for k := levels - 1; k >= 0; k-- {
		h := &l.levels[k]
		for len(h.items) > 0 {
			top := h.items[0]
			if top.turn == top.share.turn {
				return top.waiters.items[0]
			}
			top.turn = top.share.turn
			h.down(0)
		}
	}
	return nil
}

func (q *turns) first(k kind) *waiter {
	q.rise()
	return q.lines[k].next()
}

func (q *turns) firstBound(i *Instance) *waiter {
	q.rise()
	return i.line.next()
}

func (q *turns) before(v, w *waiter) bool {
	switch a, b := v.level(), w.level(); {
	case a != b:
		return a > b
	case v.share != w.share:
		return v.share.turn < w.share.turn
	}
	return v.arrived < w.arrived
}

// served puts the share of w behind all others.
func (q *turns) served(w *waiter) {
	if w.share != &q.front {
		q.turn++
		w.share.turn = q.turn
	}
}

func (q *turns) oldest(k kind) *waiter { return q.all[k].first }

func (q *turns) each(k kind, f func(*waiter)) { q.all[k].each(f) }

func (q *turns) inShare(id uint64) int {
	if s := q.shares[id]; s != nil {
		return s.waiting[requests]
	}
	return 0
}

// ahead counts as if all that wait now were served and no other came. Waiters
// that are bound to an instance wait for others' slots. What turns of higher
// classes change in the order of the shares is left out.
func (q *turns) ahead(w *waiter, most int) int {
	q.rise()
	n, own, turn := 0, 0, q.turn+1
	if s := q.shares[w.Share]; w.share != nil {
		turn = w.share.turn
	} else if s != nil {
		turn = s.turn
	}
	shares := make(map[*share]int)
	for k := range kinds {
		for level := w.level(); level < levels; level++ {
			for _, l := range q.lines[k].levels[level].items {
				switch {
				case level > w.level():
					n += len(l.waiters.items)
				case l.share == &q.front || l.share.id == w.Share:
					own += l.olderThan(w)
				default:
					shares[l.share] += len(l.waiters.items)
				}
				if n+own >= most {
					return most
				}
			}
		}
	}
	// Before the turn of w, its own share has own turns, and so has each of the
	// others, or one more if it is nearer to its turn.
	n += own
	for s, waiting := range shares {
		n += min(waiting, own+truth(s.turn < turn))
	}
	return min(n, most)
}

// olderThan counts the waiters of the lane that came before w.
func (l *lane) olderThan(w *waiter) (n int) {
	for _, v := range l.waiters.items {
		n += truth(v != w && v.arrived < w.arrived)
	}
	return n
}

func truth(is bool) int {
	if is {
		return 1
	}
	return 0
}

var (
	_ element[*lane]   = (*lane)(nil)
	_ element[*waiter] = (*waiter)(nil)
	_ element[*riser]  = (*riser)(nil)
)

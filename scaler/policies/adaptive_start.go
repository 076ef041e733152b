package policies

import (
	"math"
	"sort"
	"time"
)

// share is the part of the slots that requests are taken to use on end.
const share = 0.7

// startsNeeded returns how many more instances the waiting requests are worth.
func (m *adaptiveMemory) startsNeeded(n now) int {
	q := float64(n.Waiting)
	starting := n.Running - n.Ready
	dt := m.elapsed(n)
	switch {
	case starting > 0 || q == 0 && m.waiting == 0:
		m.debt = 0
	default:
		// Rent: where the queue has cost as much as a start while nothing
		// starts, one more start is due.
		wait := (q + float64(m.waiting)) / 2 * dt
		m.debt = max(0, m.debt+n.worth/n.start*wait-dt)
	}
	if q == 0 {
		return 0
	}
	most := min(n.need(n.Demand), m.enough(n), n.Max) - n.Running
	if most <= 0 {
		return 0
	}
	more := 0
	if n.Running == 0 {
		more = 1
	}
	if math.IsInf(n.slots, 1) {
		return min(more, most)
	}
	more += m.furtherStarts(n, more, most-more)
	if more == 0 && m.debt >= n.start {
		more, m.debt = 1, 0
	}
	return min(more, most)
}

// furtherStarts returns how many instances beyond those that are there, and
// fresh ones that were just decided, spare waiting requests more than they
// cost.
func (m *adaptiveMemory) furtherStarts(n now, fresh, most int) int {
	rate, since := m.rate(n)
	mu := share * n.slots / n.service // what one instance serves in a second
	// What will wait when a further instance would be ready.
	behind := float64(n.Waiting) + rate*min(n.start, since) - float64(n.Ready)*mu*n.start
	young := n.Running - n.Ready - len(n.Started) + fresh // just ordered
	for range max(young, 0) {
		behind -= n.slots
	}
	for _, t := range n.Started {
		rest := max(n.start-n.Now.Sub(t).Seconds(), n.start/10)
		behind -= n.slots + mu*max(0, n.start-rest)
	}
	if behind <= 0 {
		return 0
	}
	a := float64(n.Running + fresh)
	arriving := rate * since / (since + n.start)
	area := func(k int) float64 {
		left := max(0, behind-float64(k)*n.slots)
		drain := (a+float64(k))*mu - arriving
		switch {
		case left == 0:
			return 0
		case drain <= 0:
			return math.Inf(1)
		}
		return left * left / (2 * drain)
	}
	worth := n.worth / n.start
	// Each further one spares less than the one before.
	return sort.Search(max(most, 0), func(k int) bool {
		here := area(k)
		return here == 0 || !math.IsInf(here, 1) && worth*(here-area(k+1)) <= 2*n.start
	})
}

// enoughTimes is how many times the instances that the rate of the arrivals
// keeps busy are enough: they work off what has come in the meantime in little more than
// the time that it took to come.
const enoughTimes = 1.8

// longStart is how many times the time of a request a start takes that is
// long.
const longStart = 4

// enough bounds the instances by the rate of the latest arrivals. A crowd that
// has waited for a long start needs more than it will need in a moment; all of
// them would be ready when most of the work is done.
func (m *adaptiveMemory) enough(n now) int {
	rate, _ := m.rate(n)
	if n.start < longStart*n.service {
		return noNeed // they are ready while the work is still there
	}
	if rate == 0 || m.arrivals-m.surge[0].arrivals < surgeArrivals/8 {
		return noNeed // too early to tell, or all came at once
	}
	return int(min(enoughTimes*rate*n.service/n.slots, noNeed-1)) + 1
}

// surgeArrivals is over how many arrivals the rate is taken at most.
const surgeArrivals = 64

// rate returns the rate of the latest arrivals since the last pause, and for
// how long they have come, both in seconds.
func (m *adaptiveMemory) rate(n now) (rate, since float64) {
	from := m.surge[0]
	d := n.Now.Sub(from.at).Seconds()
	if d <= 0 {
		return 0, 0
	}
	return float64(n.Arrivals-from.arrivals) / d, n.Now.Sub(m.surgeFrom).Seconds()
}

// observeArrivals takes note of arrivals: their rate, and how many come in the
// time of a start after a pause.
func (m *adaptiveMemory) observeArrivals(n now) {
	m.crowdGrows(n)
	if n.Arrivals == m.arrivals {
		return
	}
	pause := max(1, n.start, 4*n.service)
	if last := n.Now.Sub(m.arrivedAt).Seconds(); m.arrivedAt.IsZero() || last > pause || last < 0 {
		m.surge[0] = point{n.Now, m.arrivals}
		m.surge[1], m.surgeFrom = m.surge[0], n.Now
	}
	if n.Arrivals-m.surge[1].arrivals >= surgeArrivals/2 {
		m.surge[0], m.surge[1] = m.surge[1], point{n.Now, n.Arrivals}
	}
	if last := n.Now.Sub(m.arrivedAt).Seconds(); m.arrivedAt.IsZero() || last > n.start {
		if m.crowdAt.at.IsZero() {
			m.crowdAt, m.crowdArea = point{n.Now, m.arrivals}, 0
		}
	}
	m.arrivals, m.arrivedAt = n.Arrivals, n.Now
}

// crowdMost bounds how many whole waits one missing instance is taken to cost.
const crowdMost = 10

// crowdGrows integrates the arrivals in the time of a start after a pause: as
// many whole starts would be waited for, if there were no instance.
func (m *adaptiveMemory) crowdGrows(n now) {
	if m.crowdAt.at.IsZero() {
		return
	}
	end := m.crowdAt.at.Add(seconds(n.start))
	to := n.Now
	if to.After(end) {
		to = end
	}
	came := float64(m.arrivals - min(m.arrivals, m.crowdAt.arrivals))
	m.crowdArea += came * max(0, to.Sub(latestTime(m.at, m.crowdAt.at)).Seconds())
	if n.Now.Before(end) {
		return
	}
	crowd := max(1, m.crowdArea/n.start)
	m.Crowd = float32(float64(m.crowd()) + (crowd-float64(m.crowd()))/8)
	m.crowdAt = point{}
}

func (m *adaptiveMemory) crowd() float32 { return max(1, m.Crowd) }

func latestTime(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

package policies

import (
	"slices"
	"time"
)

// levels is for how many levels of need pauses are learned. Those above share
// what is known of the last.
const levels = 8

// freeMost bounds how many steps of levels are told apart that are not needed.
const freeMost = 10

// adaptiveMemory is what Adaptive remembers of a service. What it returned once
// does not change any more. The exported fields are stored.
type adaptiveMemory struct {
	Start   time.Duration `json:"start,omitempty"`
	Service time.Duration `json:"service,omitempty"`
	Inside  float32       `json:"inside,omitempty"` // the time inside of the latest requests, and how many left
	Left    float32       `json:"left,omitempty"`
	Crowd   float32       `json:"crowd,omitempty"`
	Gaps    [levels]*gaps `json:"gaps"`

	// Busy is up to which level instances were needed at the last look, Free
	// from when on the levels above were not: steps with falling times.
	Busy int    `json:"busy,omitempty"`
	Free []free `json:"free,omitempty"`

	at      time.Time // of the last decision, and what waited then
	waiting int
	inside  int
	done    uint64
	debt    float64 // what waiting has cost beyond what an instance would, in seconds

	idleSince time.Time // when demand became 0
	pause     time.Duration
	ahead     bool      // the instance was started before a request
	aheadAt   time.Time // the latest time of readiness of such a one

	arrivals  uint64
	arrivedAt time.Time
	surge     [2]point  // points of the latest arrivals since the last pause
	surgeFrom time.Time // when that ended
	crowdAt   point     // the beginning of a crowd; zero while there is none
	crowdArea float64
}

// point is how many requests had come by a time.
type point struct {
	at       time.Time
	arrivals uint64
}

// free says that the levels above the step before, up to Level, are not needed
// since then.
type free struct {
	Level int       `json:"level"`
	Since time.Time `json:"since"`
}

func (m *adaptiveMemory) clone() *adaptiveMemory {
	next := new(adaptiveMemory)
	if m != nil {
		*next = *m
		next.Free = slices.Clone(m.Free)
	}
	return next
}

// elapsed is how long ago the last decision was, in seconds.
func (m *adaptiveMemory) elapsed(n now) float64 {
	if m.at.IsZero() {
		return 0
	}
	return max(0, n.Now.Sub(m.at).Seconds())
}

// observe takes note of what happened since the last decision.
func (m *adaptiveMemory) observe(n now) {
	if n.Arrivals < m.arrivals { // the service was made anew
		m.arrivals, m.done = 0, 0
	}
	came := n.Arrivals != m.arrivals
	m.pause = min(max(2*m.pause, look), lookRarely)
	if came || n.Waiting > 0 {
		m.pause = look
	}
	if m.Busy > 0 && n.Demand == 0 && !came && n.Running > 0 {
		m.pause = look
	}
	m.observeArrivals(n)
	m.observeOthers(n)
	used := n.need(max(n.Peak, n.Demand))
	if came {
		used, m.ahead = max(used, 1), false
	}
	// What waits for an instance that does not exist is no use of its level.
	m.use(n, min(used, max(n.Running, 1)))
}

// use takes note that so many levels are needed, or were since the last
// decision.
func (m *adaptiveMemory) use(n now, used int) {
	below := m.Busy
	for _, f := range m.Free {
		pause := n.Now.Sub(f.Since).Seconds()
		for k := below + 1; k <= min(f.Level, used); k++ {
			m.learn(k, pause)
			if k >= levels {
				break // those above share what is learned
			}
		}
		below = f.Level
	}
	m.Free = slices.DeleteFunc(m.Free, func(f free) bool { return f.Level <= used })
	m.Busy = max(m.Busy, used)
}

// settle takes note of the levels that are not needed any more.
func (m *adaptiveMemory) settle(n now) {
	used := min(n.need(n.Peak), max(n.Running, 1))
	if n.Demand == 0 {
		used = 0
		if m.Busy > 0 {
			m.idleSince = n.Now
			if n.IdleSince.Before(n.Now) && !n.IdleSince.Before(m.at) {
				m.idleSince = n.IdleSince
			}
		}
	}
	if used >= m.Busy {
		return
	}
	since := n.Now
	if n.Demand == 0 && m.Busy == 1 {
		since = m.idleSince
	}
	m.setFree(append([]free{{m.Busy, since}}, m.Free...))
	m.Busy = used
}

// setFree sets the steps. Where there are too many, the highest become one.
func (m *adaptiveMemory) setFree(steps []free) {
	if n := len(steps); n > freeMost {
		steps[freeMost-1].Level = steps[n-1].Level
		steps = steps[:freeMost]
	}
	m.Free = steps
}

// observeOthers takes note of instances that another program has asked for
// since the last decision, or that ran before. They are capacity, which stays
// as if it had been needed until now. Nothing is learned from them.
func (m *adaptiveMemory) observeOthers(n now) {
	others := 0
	for _, s := range n.History {
		if !s.At.Before(m.at) {
			others = max(others, min(s.Instances, n.Running))
		}
	}
	if others < 2 || others <= m.Busy {
		return // the first one is judged by itself
	}
	var steps []free
	if m.Busy == 0 {
		steps = append(steps, free{1, n.Now})
		if len(m.Free) > 0 {
			steps[0].Since = m.Free[0].Since
		}
	}
	steps = append(steps, free{others, n.Now})
	for _, f := range m.Free {
		if f.Level > others {
			steps = append(steps, f)
		}
	}
	m.setFree(steps)
}

// learn adds a pause of a level. Short ones teach nothing: an instance stays
// for so long in any case.
func (m *adaptiveMemory) learn(level int, pause float64) {
	if pause < look.Seconds() {
		return
	}
	k := min(level, levels) - 1
	m.Gaps[k] = m.Gaps[k].learn(pause, k == 0)
}

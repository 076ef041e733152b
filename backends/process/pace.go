package process

import "time"

// The pace at which the output of an instance is read. It is far above what can
// be logged. An instance that writes faster, without end, would otherwise take
// most of a core of Caddy's only to have its lines dropped. So Caddy reads no
// faster, and the instance waits for its full pipe.
const (
	paceSlice = 50 * time.Millisecond
	// paceCost is what may be read in a slice: 8 MiB a second of long lines, or
	// 125000 lines a second of short ones.
	paceCost = 8 << 20 / int(time.Second/paceSlice)
	// lineCost is what handling a line costs, in bytes that could be read.
	lineCost = 64
)

// cost is what reading so many bytes with so many lines costs.
func cost(bytes, lines int) int { return bytes + lines*lineCost }

// pace bounds what is read in a slice of time.
type pace struct {
	began time.Time
	spent int
}

// pause takes note of what was read, and returns how long to wait before more
// is read.
func (p *pace) pause(cost int, now time.Time) time.Duration {
	if now.Sub(p.began) >= paceSlice {
		p.began, p.spent = now, 0
	}
	p.spent += cost
	if p.spent < paceCost {
		return 0
	}
	return p.began.Add(paceSlice).Sub(now)
}

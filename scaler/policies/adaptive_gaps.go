package policies

import (
	"math"
	"slices"
)

// octaves is into how many classes pauses are divided: below a second, and
// then each twice as long as the one before, up to 97 days.
const octaves = 24

// lasts is how many of the latest pauses of a class are kept.
const lasts = 8

// forgetAt is when a class halves its counts.
const forgetAt = 32

// gaps is what is known of the pauses of one level of need.
type gaps struct {
	Reached [octaves]uint8 `json:"reached"` // how many pauses came as far
	Ended   [octaves]uint8 `json:"ended"`   // how many of them ended there
	Latest  *latest        `json:"latest,omitempty"`
}

// latest are the latest pauses of each class, in seconds, the oldest first.
type latest struct {
	Count [octaves]uint8          `json:"count"`
	Value [octaves][lasts]float32 `json:"value"`
}

// of returns the latest pauses of a class.
func (l *latest) of(k int) []float32 {
	if l == nil {
		return nil
	}
	return l.Value[k][:l.Count[k]]
}

// with returns l and one more.
func (l *latest) with(k int, pause float32) *latest {
	next := new(latest)
	if l != nil {
		*next = *l
	}
	if next.Count[k] == lasts {
		copy(next.Value[k][:], next.Value[k][1:])
		next.Count[k]--
	}
	next.Value[k][next.Count[k]] = pause
	next.Count[k]++
	return next
}

// octaveOf is the class of a pause.
func octaveOf(s float64) int {
	if s < 1 {
		return 0
	}
	return min(1+int(math.Log2(s)), octaves-1)
}

// begin is where a class begins, in seconds.
func begin(octave int) float64 { return begins[octave] }

var begins = func() (all [octaves + 1]float64) {
	for k := 1; k <= octaves; k++ {
		all[k] = math.Ldexp(1, k-1)
	}
	return all
}()

// learn returns what is known when a pause has been added. With values, the
// pause itself is kept, too.
func (g *gaps) learn(s float64, values bool) *gaps {
	next := new(gaps)
	if g != nil {
		*next = *g
	}
	end := octaveOf(s)
	for k := 0; k <= end; k++ {
		if next.Reached[k]++; next.Reached[k] >= forgetAt {
			next.Reached[k] /= 2
			next.Ended[k] /= 2
		}
	}
	next.Ended[end]++
	if values {
		next.Latest = next.Latest.with(end, float32(s))
	}
	return next
}

// trouble is what stopping an instance and starting it ahead costs beyond the
// time of the start, as a part of what a cold start costs.
const trouble = 0.1

// A stay is a part of a pause in which an instance is there, in seconds since
// the pause began.
type stay struct {
	from, to float64
	window   bool // the requests of the past came in it
}

// plan returns when an instance is to be there in a pause, in order: first, if
// at all, from its beginning. start is the time of a start, cost what it costs
// in instance-seconds if the request that ends the pause has to wait.
//
// It goes back from the longest class: each has the cost of being on and of
// being off from its beginning to the end of the pause.
func (g *gaps) plan(start, cost float64, ahead bool) []stay {
	if g == nil {
		g = unknown
	}
	var on, off [octaves + 1]float64 // the best from here on
	var stays [octaves]bool          // staying on is better than to stop here
	var starts [octaves]stay         // to be there for in this class, after having stopped
	on[octaves] = math.Inf(1)
	ends := g.ends()
	for k := octaves - 1; k >= 0; k-- {
		from, width := begin(k), begin(k+1)-begin(k)
		p := ends[k]
		mid := g.mean(k) - from
		staying := p*mid + (1-p)*(width+min(on[k+1], off[k+1]))
		off[k] = p*cost + (1-p)*off[k+1]
		if ahead && k > 0 {
			start := start + trouble*cost
			if again := start + staying; again < 0.8*off[k] {
				off[k], starts[k] = again, stay{from: from, to: from + width}
			}
			if w, ok := g.window(k); ok {
				c := p*(start+max(0, g.mean(k)-w.from)) + (1-p)*(start+w.to-w.from+off[k+1])
				if c < 0.8*off[k] || starts[k].to > 0 && c < off[k] {
					off[k], starts[k] = c, w
				}
			}
		}
		stays[k] = staying < off[k]
		on[k] = min(staying, off[k])
	}
	return stitch(stays, starts)
}

// ends returns for each class the probability that a pause ends there that has
// reached it.
func (g *gaps) ends() (p [octaves]float64) {
	before, reached := 0.0, 0 // of the class before
	for k := range octaves {
		// Where nothing is known, long pauses tend to become longer. Where
		// pauses have ended at some rate, they go on to do so nearly as often.
		expect := 0.5
		if k >= 7 { // a minute
			expect = 0.35
		}
		if reached >= 2 {
			expect = max(expect, 1-math.Pow(1-before, steady))
		}
		p[k] = (float64(g.Ended[k]) + expect) / (float64(g.Reached[k]) + 1)
		before, reached = p[k], int(g.Reached[k])
	}
	return p
}

// steady is how many times the rate at which pauses end in a class is expected
// in the next one, which is twice as long: 2 would be a rate that stays the
// same, 1 one that falls as pauses become longer.
const steady = 1.6

// within is the probability that a pause ends within so many seconds.
func (g *gaps) within(s float64) float64 {
	if g == nil {
		g = unknown
	}
	longer := 1.0
	for k, p := range g.ends() {
		if begin(k+1) > s {
			break
		}
		longer *= 1 - p
	}
	return 1 - longer
}

// unknown is what is known of a level that was never needed twice.
var unknown = new(gaps)

// stitch puts the stays of the classes together.
func stitch(stays [octaves]bool, starts [octaves]stay) (all []stay) {
	here := true
	for k := range octaves {
		s := stay{from: begin(k), to: begin(k + 1)}
		switch {
		case here && stays[k]:
		case starts[k].to > 0:
			s = starts[k]
			here = !s.window && k+1 < octaves && stays[k+1]
		default:
			here = false
			continue
		}
		if n := len(all); n > 0 && all[n-1].to >= s.from {
			all[n-1].to = max(all[n-1].to, s.to)
			all[n-1].window = all[n-1].window || s.window
			continue
		}
		all = append(all, s)
	}
	return all
}

// mean is the mean pause of those that end in a class.
func (g *gaps) mean(k int) float64 {
	last := g.Latest.of(k)
	if len(last) == 0 {
		return (begin(k) + begin(k+1)) / 2
	}
	sum := 0.0
	for _, v := range last {
		sum += float64(v)
	}
	return sum / float64(len(last))
}

// windowValues is how many pauses it takes to know where they lie.
const windowValues = 2

// window returns where the pauses lie that end in a class, with room at both
// ends.
func (g *gaps) window(k int) (stay, bool) {
	last := g.Latest.of(k)
	if len(last) < windowValues {
		return stay{}, false
	}
	least, most := float64(slices.Min(last)), float64(slices.Max(last))
	room := max(0.005*begin(k), 1.5*(most-least)/float64(len(last))) + 1
	return stay{from: max(least-room, 0), to: most + room, window: true}, true
}

// early is how long before a stay an instance is ordered, in times of a start.
const early = 1.5

// at says whether the plan has an instance there after so many seconds, until
// when it stays so, and which stay that is for.
func at(plan []stay, elapsed, start float64) (on bool, until float64, which stay) {
	for k, s := range plan {
		from := s.from
		if k > 0 || from > 0 {
			from = max(0, from-early*start)
		}
		switch {
		case elapsed < from:
			return false, from, s
		case elapsed < s.to:
			return true, s.to, s
		}
	}
	return false, math.Inf(1), stay{}
}

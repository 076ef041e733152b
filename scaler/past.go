package scaler

import "time"

// past is what a loop remembers of what it did. Most loops of a large
// configuration have done nothing yet.
type past struct {
	decisions []Decision
	coldCount int
	coldLast  time.Duration
	startMean time.Duration // moving average of cold starts
}

// recalled returns what the loop remembers, to read it. The lock is held.
func (l *Loop) recalled() past {
	if l.past == nil {
		return past{}
	}
	return *l.past
}

// record returns what the loop remembers, to add to it. The lock is held.
func (l *Loop) record() *past {
	if l.past == nil {
		l.past = new(past)
	}
	return l.past
}

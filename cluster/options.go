package cluster

import "time"

// Options of a cluster. They have to be the same on all its Caddys.
type Options struct {
	// Lease is how long a Caddy may go on without a word from its leader, and
	// a leader without a word from the coordinator; 0 is DefaultLease.
	Lease time.Duration

	// LostAfter is how long after the end of its lease a Caddy may have
	// requests inside; 0 is DefaultLostAfter. It cuts them shortly before.
	// With Replace it is only used after the first view of a cluster, and
	// after a coordinator has forgotten one.
	LostAfter time.Duration

	// Replace makes safety independent of clocks: the slots of a lost Caddy are
	// not used again before its process has ended, it has come back, or the
	// instance is gone. Requests are not cut.
	Replace bool

	// KeepServing makes a Caddy without a lease go on with the slots that it
	// held. Then an instance may get more requests than it has slots.
	KeepServing bool

	// Fair is how much longer a request has to wait than those of another Caddy
	// before a slot that the other one needs is moved; 0 is DefaultFair.
	Fair time.Duration

	// Beat is the time between heartbeats, and between reads of the view by the
	// leader; 0 is a fifth of Lease.
	Beat time.Duration
}

// The defaults of Options.
const (
	DefaultLease     = 5 * time.Second
	DefaultLostAfter = time.Minute
	DefaultFair      = 100 * time.Millisecond
)

// needPause is the least time between two reports of a need of which only the
// numbers have changed.
const needPause = 50 * time.Millisecond

// WithDefaults returns the options with every default set.
func (o Options) WithDefaults() Options {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&o.Lease, DefaultLease)
	set(&o.LostAfter, DefaultLostAfter)
	set(&o.Fair, DefaultFair)
	set(&o.Beat, o.Lease/5)
	return o
}

// cutAfter is how long after the end of a lease requests are cut: before
// others may use their slots, with time for the connections to end.
func (o Options) cutAfter() time.Duration { return o.LostAfter - o.LostAfter/10 }

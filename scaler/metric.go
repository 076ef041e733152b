package scaler

import (
	"context"
	"time"
)

// Metric is where a policy's metric comes from. Its methods are safe for
// concurrent use.
//
// Metrics are guest modules of Caddy in the namespace usher.metrics.
type Metric interface {
	// Read returns the present value. It returns at the latest when ctx ends.
	// What it cannot tell is an error, and so is a value that is no number.
	Read(ctx context.Context, service Observed) (float64, error)

	// Interval is how often it is read, and how long one Read may take.
	Interval() time.Duration
}

// Metered is implemented by a Policy that decides by a metric. The control loop
// reads it, as long as the policy is in force, and hands on what it read as
// Inputs.Metric.
type Metered interface {
	Policy

	// Metric returns the source.
	Metric() Metric
}

// Observed is what Usher itself knows of a service when a metric is read.
type Observed struct {
	// Waiting is the number of requests in the queue, InUse of those inside,
	// and Ready of the instances that take requests.
	Waiting, InUse, Ready int

	// OldestWait is for how long the oldest of them has waited.
	OldestWait time.Duration

	// Rate is how many requests came per second since the last reading.
	Rate float64

	// Wait returns how long requests waited since the last reading: the wait
	// that a part of them, from 0 to 1, does not exceed.
	Wait func(part float64) time.Duration
}

// A Reading is what came of reading a metric.
type Reading struct {
	// Value is the last value that was read, and At when; zero if there is none.
	Value float64
	At    time.Time

	// Number counts the values that were read.
	Number uint64

	// Err is why there is none since; nil if the last reading succeeded.
	Err error

	// Interval is how often it is read.
	Interval time.Duration
}

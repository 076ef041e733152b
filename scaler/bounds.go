package scaler

import "time"

// The bounds of the numbers that a configuration may give. A configuration is
// refused beyond them; a control loop that gets such numbers all the same
// works with the nearest ones within. Within the bounds no sum and no product
// of these numbers overflows, and no pause is so short that it becomes a busy
// loop.
const (
	// MaxInstances is the greatest number of instances of a revision.
	MaxInstances = 100_000

	// MaxConcurrency is the greatest number of slots of an instance. For more
	// there is no limit at all: 0.
	MaxConcurrency = 1_000_000

	// MaxWaiting is the greatest length of a queue, and of all together.
	MaxWaiting = 1_000_000

	// MinDuration is the shortest duration that is not 0, MaxDuration the
	// longest: ten years.
	MinDuration = time.Millisecond
	MaxDuration = 10 * 365 * 24 * time.Hour

	// MinUtilization is the smallest part of the slots to be in use.
	MinUtilization = 0.01
)

package policies

import "time"

// Default is the policy of a service that names none, DefaultName its name in a
// configuration, and DefaultIdleTimeout the idle timeout of a service that has
// no other.
var Default = Adaptive{}

const (
	DefaultName        = "adaptive"
	DefaultIdleTimeout = 5 * time.Minute
)

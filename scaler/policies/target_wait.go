package policies

import (
	"math"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// keepsWaitBelow returns how many instances work off what waits now within a
// time: those in use, and as many as the work in the queue fills for so long.
// per is how many requests an instance is to have inside. If a request has
// waited for longer already, every one that waits gets a slot.
func keepsWaitBelow(in scaler.Inputs, wait time.Duration, per float64) int {
	all := math.Ceil(float64(in.Demand) / per)
	if in.Waiting == 0 || !in.OldestWait.IsZero() && in.Now.Sub(in.OldestWait) >= wait && in.Ready > 0 {
		return int(min(all, noNeed))
	}
	service := orElse(in.ServiceTime, priorService)
	n := math.Ceil(float64(in.Waiting) * float64(service) / (per * float64(wait)))
	busy := math.Ceil(float64(in.Demand-in.Waiting) / per)
	return int(min(max(n, busy, 1), all, noNeed))
}

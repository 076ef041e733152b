package control

import (
	"math/rand/v2"
	"time"
)

const (
	backoffFirst = time.Second
	backoffMax   = time.Minute

	// ProvenAfter is how long an instance has to be ready before its start
	// counts as one that succeeded.
	ProvenAfter = 10 * time.Second
)

// backoff is the pause after so many failures in a row: 1 s, 2 s, 4 s ... 1 m,
// a tenth more or less by chance, so that services that failed together do
// not try again together.
func backoff(failures int) time.Duration {
	d := backoffMax
	if n := failures - 1; n < 6 {
		d = backoffFirst << max(n, 0)
	}
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64()))
}

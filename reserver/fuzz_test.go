package reserver

import (
	"math/rand/v2"
	"testing"
)

// FuzzAgreesWithModel is TestAgreesWithModel with the choices taken from the
// input, one byte each.
func FuzzAgreesWithModel(f *testing.F) {
	// Short ones, because the fuzzer takes a minute to shorten a long one.
	for seed := range uint64(16) {
		random := rand.NewPCG(seed, 0)
		walk := make([]byte, 256)
		for k := range walk {
			walk[k] = byte(random.Uint64())
		}
		f.Add(walk)
	}
	f.Fuzz(func(t *testing.T, walk []byte) {
		next := func(n int) int {
			if len(walk) == 0 {
				return 0
			}
			b := walk[0]
			walk = walk[1:]
			return int(b) % n
		}
		m := newMachine(next, t.Fatalf, partiesOfASide)
		for len(walk) > 0 {
			m.run(steps[next(len(steps))])
		}
	})
}

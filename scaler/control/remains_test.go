package control

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

func TestTheStartAfterACrashWaitsForTheEndOfWhatIsLeft(t *testing.T) {
	for name, c := range map[string]struct {
		overlap Overlap
		most    int
		starts  bool // beside what is left
	}{
		"one instance":         {OverlapDefault, 1, false},
		"no overlap":           {OverlapOff, 2, true}, // there is room for a second one
		"overlap":              {OverlapOn, 1, true},
		"several":              {OverlapDefault, 2, true},
		"no overlap, only one": {OverlapOff, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := &platform{local: true, startTime: time.Second}
				b := newBench(t, with(func(s *Settings) { s.Max, s.Overlap = c.most, c.overlap }), p, nil)
				b.comesAndGoes()
				time.Sleep(2 * ProvenAfter)
				p.set(func() { p.remains = 1 })
				p.end(p.ids()[0], exit("signal: killed"))
				waitIdle()
				if f := b.lastFailure; f == nil || f.Short != "signal: killed" {
					t.Fatalf("the failure is told late: %v", f)
				}
				w := b.waits()
				time.Sleep(5 * time.Second)
				waitIdle()
				if started := p.exist() == 1; started != c.starts {
					t.Fatalf("%d instances beside what is left", p.exist())
				}
				p.do(func() { p.remains = 0 })
				b.granted(w)
				w.Release(reserver.Answered)
				b.runs(1)
			})
		})
	}
}

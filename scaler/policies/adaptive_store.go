package policies

import (
	"encoding/json"
	"fmt"
	"math"

	"github.com/caddy-usher/usher/scaler"
)

// adaptiveVersion is the version of what is stored.
const adaptiveVersion = 1

type storedAdaptive struct {
	Version int `json:"version"`
	*adaptiveMemory
}

// EncodeMemory implements scaler.Rememberer.
func (Adaptive) EncodeMemory(memory scaler.Memory) ([]byte, error) {
	m, ok := memory.(*adaptiveMemory)
	if !ok {
		return nil, fmt.Errorf("a %T is no memory of the policy adaptive", memory)
	}
	return json.Marshal(storedAdaptive{adaptiveVersion, m})
}

// DecodeMemory implements scaler.Rememberer.
func (Adaptive) DecodeMemory(b []byte) (scaler.Memory, error) {
	s := storedAdaptive{adaptiveMemory: new(adaptiveMemory)}
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	if s.Version != adaptiveVersion {
		return nil, fmt.Errorf("it is of version %d, and this one reads version %d", s.Version, adaptiveVersion)
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	if s.Busy > 0 {
		// Nothing tells what happened since.
		s.Free, s.Busy = nil, 0
	}
	return s.adaptiveMemory, nil
}

// check says whether a memory that was read can be one.
func (m *adaptiveMemory) check() error {
	for _, f := range []float32{m.Inside, m.Left, m.Crowd} {
		if f < 0 || math.IsNaN(float64(f)) || math.IsInf(float64(f), 0) {
			return fmt.Errorf("it has the number %v", f)
		}
	}
	if m.Start < 0 || m.Start > scaler.MaxDuration || m.Service < 0 || m.Service > scaler.MaxDuration {
		return fmt.Errorf("it has a start of %v and a service time of %v", m.Start, m.Service)
	}
	if m.Busy < 0 || m.Busy > noNeed || len(m.Free) > freeMost {
		return fmt.Errorf("it has %d levels in use and %d steps", m.Busy, len(m.Free))
	}
	below := m.Busy
	for _, f := range m.Free {
		if f.Level <= below || f.Level > noNeed {
			return fmt.Errorf("its steps do not rise: %d after %d", f.Level, below)
		}
		below = f.Level
	}
	for _, g := range m.Gaps {
		if g == nil {
			continue
		}
		for k := range octaves {
			if g.Ended[k] > g.Reached[k] || g.Reached[k] > forgetAt || g.Latest != nil && g.Latest.Count[k] > lasts {
				return fmt.Errorf("of %d pauses %d ended in class %d", g.Reached[k], g.Ended[k], k)
			}
			for _, v := range g.Latest.of(k) {
				// A rounding may have put one at the end of its class beyond it.
				if !(v >= 0 && v <= math.MaxFloat32) || max(octaveOf(float64(v))-k, k-octaveOf(float64(v))) > 1 {
					return fmt.Errorf("a pause of %v s is in class %d", v, k)
				}
			}
		}
	}
	return nil
}

var _ scaler.Rememberer = Adaptive{}

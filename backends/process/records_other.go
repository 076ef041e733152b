//go:build !linux

package process

import (
	"os"
	"time"
)

// record does not exist on this system: there is nothing here that names a
// process beyond the reuse of its pid.
type record struct {
	Instance, Service, Revision, Fingerprint string

	Network, Address string
	Since            time.Time
	StopSignal       int
	Keep, Ready      bool
	Socket           string
	Output           []string
}

func (*record) create(string) error { return nil }

func (*record) complete(int, uint64) error { return nil }

func (*record) becameReady(string) error { return nil }

func (r *record) remove(string) error {
	for _, path := range r.Output {
		_ = os.Remove(path)
	}
	return nil
}

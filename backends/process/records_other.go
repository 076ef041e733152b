//go:build !linux

package process

import "os"

// record does not exist on this system: there is nothing here that names a
// process beyond the reuse of its pid.
type record struct {
	Instance, Service, Revision, Fingerprint string

	Network, Address string
	StopSignal       int
	Keep             bool
	Socket           string
	Output           []string
}

func (*record) create(string) error { return nil }

func (*record) complete(int, uint64) error { return nil }

func (r *record) remove(string) error {
	for _, path := range r.Output {
		_ = os.Remove(path)
	}
	return nil
}

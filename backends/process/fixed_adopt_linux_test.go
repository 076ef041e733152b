package process

import (
	"testing"
)

func TestARecordedInstanceIsTakenUpAtTheAddressOfItsProgramOnly(t *testing.T) {
	for recorded, f := range map[string]struct {
		address string // of the configuration
		taken   bool
	}{
		"[::1]:3000":       {"[::1]:3000", true},
		"127.0.0.1:3000":   {"127.0.0.1:3000", true},
		"127.0.0.1:3001":   {"", true},
		"[::1]:3001":       {"", false}, // Usher gives instances no port of IPv6
		"127.0.0.1:3002":   {"[::1]:3002", false},
		"[::1]:3003":       {"127.0.0.1:3003", false},
		"192.0.2.1:3000":   {"127.0.0.1:3000", false},
		"[::1]:0":          {"", false},
		"[2001:db8::1]:80": {"[::1]:80", false},
	} {
		b := &Backend{Command: "/bin/true", Address: f.address}
		provision(t, b)
		in := &instance{id: newID(), record: &record{Network: "tcp", Address: recorded}}
		err := in.findAddress(b.state.current())
		if (err == nil) != f.taken {
			t.Errorf("%s, configured %q: %v", recorded, f.address, err)
		}
		if _, address := in.where(); err == nil && address != recorded {
			t.Errorf("%s is reached at %s", recorded, address)
		}
	}
}

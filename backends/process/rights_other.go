//go:build unix && !linux

package process

import "os"

// maySwitch tells whether Caddy may start a process as another user.
func maySwitch() bool { return os.Geteuid() == 0 }

package process

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maySwitch tells whether Caddy may start a process as another user, and end
// it again: by its effective capabilities, since root in a container may lack
// them and a service user may have them.
func maySwitch() bool {
	const needed = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_KILL
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return os.Geteuid() == 0
	}
	return statusMask(string(status), "CapEff")&needed == needed
}

// statusMask returns a bit mask from the text of /proc/<pid>/status.
func statusMask(status, field string) uint64 {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				return 0
			}
			return mask
		}
	}
	return 0
}

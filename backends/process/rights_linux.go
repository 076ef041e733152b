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

// capabilities are those that rights name.
var capabilities = map[string]int{
	"CAP_CHOWN":        unix.CAP_CHOWN,
	"CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE,
	"CAP_SYS_PTRACE":   unix.CAP_SYS_PTRACE,
}

// hasRight tells whether Caddy has a capability. Where that cannot be seen, it
// is not said to be missing.
func hasRight(name string) bool {
	status, err := os.ReadFile("/proc/thread-self/status")
	return err != nil || statusMask(string(status), "CapEff")&(1<<capabilities[name]) != 0
}

// outlivesCaddy tells whether the kernel clears the parent-death signal of a
// program when it is executed, because the program gives rights.
func outlivesCaddy(program string) bool {
	info, err := os.Stat(program)
	if err != nil {
		return false
	}
	if info.Mode()&os.ModeSetuid != 0 || info.Mode()&os.ModeSetgid != 0 && info.Mode()&0o010 != 0 {
		return true
	}
	_, err = unix.Getxattr(program, "security.capability", nil)
	return err == nil
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

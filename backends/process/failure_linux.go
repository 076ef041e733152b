package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const rlimitProcesses = unix.RLIMIT_NPROC

// processGroupLimit names the limit on processes of Caddy's control group, if
// there is one and it is near.
func processGroupLimit() string {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		dir := filepath.Join("/sys/fs/cgroup", path)
		limit, err := os.ReadFile(filepath.Join(dir, "pids.max"))
		if err != nil || strings.TrimSpace(string(limit)) == "max" {
			continue
		}
		current, err := os.ReadFile(filepath.Join(dir, "pids.current"))
		if err != nil {
			continue
		}
		return fmt.Sprintf(", and the control group %s has %s of %s processes", path,
			strings.TrimSpace(string(current)), strings.TrimSpace(string(limit)))
	}
	return ""
}

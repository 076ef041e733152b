package process

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A zombie has no environment and may be in a session of its own. What it still
// shows are its resource limits. Every process inherits them from its parent,
// through setsid and a cleared environment, too. So the instances of a Caddy that
// gets orphans have one limit that no other child of Caddy has: the number of
// file locks, which Linux has not enforced since 2.4.25.

// rlimitLocks is RLIMIT_LOCKS, which is the same number on all architectures
// that Go knows.
const rlimitLocks = 10

// lineage is the limit of the instances of this Caddy.
var lineage = 1<<40 + rand.Uint64N(1<<60)

// setLineage marks an instance and all that it will start. The instance runs
// already, so what it starts in its very first moment can be without the mark.
// Without CAP_SYS_RESOURCE this fails for a process of another user.
func setLineage(pid int) error {
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, rlimitLocks, nil, &limit); err != nil {
		return os.NewSyscallError("prlimit", err)
	}
	if limit.Max < lineage {
		return fmt.Errorf("the hard limit of file locks is %d", limit.Max)
	}
	limit.Cur = lineage
	return os.NewSyscallError("prlimit", unix.Prlimit(pid, rlimitLocks, &limit, nil))
}

// hasLineage tells whether a process comes from an instance of this Caddy. It
// may have ended, if it is not reaped.
func hasLineage(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if values, ok := strings.CutPrefix(line, "Max file locks"); ok {
			fields := strings.Fields(values)
			return len(fields) > 0 && fields[0] == strconv.FormatUint(lineage, 10)
		}
	}
	return false
}

package process

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"
)

// clockTick is the unit of processor times in /proc: USER_HZ, which is 100 on
// every architecture that Go knows.
const clockTick = 10 * time.Millisecond

// TellsCPU says that instances can be asked how much they work.
func (b *Backend) TellsCPU() bool { return true }

// CPUTime returns how much time of a processor the process group of an instance
// has used, with the children that it has waited for.
func (r *runner) CPUTime(_ context.Context, instanceID string) (time.Duration, error) {
	in := r.find(instanceID)
	if in == nil || in.child == nil {
		return 0, errEnded
	}
	group := in.child.pid
	var ticks uint64
	for pid := range allPIDs() {
		s, err := readStat(pid)
		if err != nil || s.group != group {
			continue
		}
		n, err := usedTicks(pid)
		if err != nil {
			continue // it has ended
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// usedTicks reads how much a process has used, and those of its children that
// have ended.
func usedTicks(pid int) (all uint64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// utime, stime, cutime and cstime are fields 14 to 17; see procStat.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 15 {
		return 0, fmt.Errorf("/proc/%d/stat has an unknown form", pid)
	}
	for _, field := range fields[11:15] {
		n, err := strconv.ParseUint(string(field), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat has an unknown form: %w", pid, err)
		}
		all += n
	}
	return all, nil
}

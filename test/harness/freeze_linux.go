package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Freeze lets a process stand still: it keeps its connections, and answers
// nothing. When it returns, no thread of it runs any more; the signal alone
// leaves them a moment.
func Freeze(p *os.Process) error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	stopped := func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Pid))
		for _, path := range threads {
			stat, err := os.ReadFile(path)
			if err != nil {
				continue // the thread has ended
			}
			// The state follows the name, which is in brackets.
			if _, state, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(state, "T") {
				return false
			}
		}
		return len(threads) > 0
	}
	if !WaitFor(10*time.Second, stopped) {
		return fmt.Errorf("process %d does not stand still", p.Pid)
	}
	return nil
}

// Thaw lets a frozen process go on.
func Thaw(p *os.Process) error { return p.Signal(syscall.SIGCONT) }

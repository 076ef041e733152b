package process

import "sync"

// scanned is a process as a scan found it.
type scanned struct {
	pid      int
	stat     procStat
	instance string // USHER_INSTANCE of its environment
}

// scanner lists all processes of the machine. Instances that end at the same
// time share one scan, because a scan reads every process.
type scanner struct {
	mu   sync.Mutex
	next *scan // has not begun
	turn sync.Mutex
}

type scan struct {
	done      chan struct{}
	processes []scanned
}

// processScan is this Caddy's scanner.
var processScan scanner

// take returns the processes at some moment after the call.
func (c *scanner) take() []scanned {
	c.mu.Lock()
	n := c.next
	first := n == nil
	if first {
		n = &scan{done: make(chan struct{})}
		c.next = n
	}
	c.mu.Unlock()
	if !first {
		<-n.done
		return n.processes
	}
	c.turn.Lock()
	defer c.turn.Unlock()
	c.mu.Lock()
	c.next = nil // later calls need a scan that begins after them
	c.mu.Unlock()
	for pid := range allPIDs() {
		stat, err := readStat(pid)
		// Kernel threads are in no group.
		if err != nil || stat.dead() || stat.group == 0 {
			continue
		}
		n.processes = append(n.processes, scanned{pid, stat, variable(pid, varInstance)})
	}
	close(n.done)
	return n.processes
}

package process

import "sync"

// resident is a process as a census found it.
type resident struct {
	pid      int
	stat     procStat
	instance string // USHER_INSTANCE of its environment
}

// census looks at all processes of the machine. Instances that end together
// share one look: each would otherwise cost as much as there are processes.
type census struct {
	mu   sync.Mutex
	next *count // has not begun
	turn sync.Mutex
}

type count struct {
	done      chan struct{}
	residents []resident
}

// population is the census of this Caddy.
var population census

// take returns what there was at some moment after it was called.
func (c *census) take() []resident {
	c.mu.Lock()
	n := c.next
	first := n == nil
	if first {
		n = &count{done: make(chan struct{})}
		c.next = n
	}
	c.mu.Unlock()
	if !first {
		<-n.done
		return n.residents
	}
	c.turn.Lock()
	defer c.turn.Unlock()
	c.mu.Lock()
	c.next = nil // who comes now might miss what was looked at already
	c.mu.Unlock()
	for pid := range allPIDs() {
		stat, err := readStat(pid)
		// Kernel threads are in no group, and nobody started them.
		if err != nil || stat.dead() || stat.group == 0 {
			continue
		}
		n.residents = append(n.residents, resident{pid, stat, variable(pid, varInstance)})
	}
	close(n.done)
	return n.residents
}

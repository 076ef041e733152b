package process

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// orphanage reaps processes of instances whose parents have ended. Where Caddy
// is PID 1, as in a container, or a subreaper, they become children of Caddy,
// and would stay as zombies. Caddy and its other modules have children of their
// own, which are not touched: only what is known to be of an instance is reaped.
//
// A zombie has no environment any more. So it is known by its process group or
// session, by the limit that it has from its instance (see setLineage), or it was
// seen alive with its mark. Without the limit, one that left the session of its
// instance and lived for less than orphanPause can be missed.
//
// While an instance runs there is one goroutine, and only where Caddy gets
// orphans at all.
type orphanage struct {
	life  sync.Mutex // guards the start and the end of the goroutine
	users int
	stop  chan struct{}
	done  chan struct{}

	mu      sync.Mutex
	ids     map[string]bool // of the instances
	leaders map[int]bool    // main processes that are children of Caddy
	known   map[name]bool   // orphans that were seen with a mark
}

// orphans are those of this Caddy.
var orphans orphanage

const (
	// orphanPause is how often it is looked for new orphans.
	orphanPause = time.Second
	// orphanRest is the least time between two looks.
	orphanRest = 50 * time.Millisecond
)

// getsOrphans tells whether processes that lose their parent become children
// of Caddy.
func getsOrphans() bool {
	if os.Getpid() == 1 {
		return true
	}
	var subreaper int32
	err := unix.Prctl(unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&subreaper)), 0, 0, 0)
	return err == nil && subreaper != 0
}

// follow reaps what an instance leaves to Caddy until the returned function is
// called. That has to be before the main process is reaped: until then its pid
// names its group.
func (o *orphanage) follow(in *instance) (end func()) {
	if !getsOrphans() {
		return func() {}
	}
	leader := in.child.pid
	o.mu.Lock()
	if o.ids == nil {
		o.ids, o.leaders, o.known = make(map[string]bool), make(map[int]bool), make(map[name]bool)
	}
	o.ids[in.id] = true
	if in.child.adopted == nil {
		o.leaders[leader] = true
	}
	o.mu.Unlock()
	o.begin()
	return func() {
		o.sweep()
		o.mu.Lock()
		delete(o.ids, in.id)
		delete(o.leaders, leader)
		o.mu.Unlock()
		o.end()
	}
}

// begin starts the goroutine for the first user.
func (o *orphanage) begin() {
	o.life.Lock()
	defer o.life.Unlock()
	o.users++
	if o.users > 1 {
		return
	}
	stop, done := make(chan struct{}), make(chan struct{})
	o.stop, o.done = stop, done
	go func() {
		defer close(done)
		o.run(stop)
	}()
}

// end ends the goroutine with the last user, and waits for it.
func (o *orphanage) end() {
	o.life.Lock()
	defer o.life.Unlock()
	o.users--
	if o.users == 0 {
		close(o.stop)
		<-o.done
	}
}

func (o *orphanage) run(stop <-chan struct{}) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	tick := time.NewTicker(orphanPause)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ended:
		case <-tick.C:
		}
		o.sweep()
		// Many that end together share one look.
		select {
		case <-stop:
			return
		case <-time.After(orphanRest):
		}
	}
}

// sweep looks at all children of Caddy, and reaps those of instances that have
// ended.
func (o *orphanage) sweep() {
	o.mu.Lock()
	defer o.mu.Unlock()
	present := make(map[name]bool)
	for _, pid := range children() {
		stat, err := readStat(pid)
		if err != nil || o.leaders[pid] {
			continue // the watch over the instance reaps it
		}
		n := name{pid, stat.startTime}
		present[n] = true
		if !stat.dead() && !o.known[n] && o.ids[variable(pid, varInstance)] {
			o.known[n] = true
		}
		if stat.dead() && (o.known[n] || o.leaders[stat.group] || o.leaders[stat.session] || hasLineage(pid)) {
			reapOrphan(n)
		}
	}
	for n := range o.known {
		if !present[n] {
			delete(o.known, n)
		}
	}
}

// reapOrphan reaps a child that has ended. What it is, is looked at again after
// its pidfd was opened.
func reapOrphan(n name) {
	fd, err := unix.PidfdOpen(n.pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if stat, err := readStat(n.pid); err == nil && stat.startTime == n.startTime {
		reapThrough(fd)
	}
}

// reapThrough reaps the process of a pidfd if it is a child of Caddy and has
// ended.
func reapThrough(pidfd int) {
	for {
		if err := unix.Waitid(unix.P_PIDFD, pidfd, nil, unix.WEXITED|unix.WNOHANG, nil); err != unix.EINTR {
			return
		}
	}
}

// children returns the pids of Caddy's children. They belong to single threads.
func children() (pids []int) {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	for _, thread := range threads {
		text, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%s/children", thread.Name()))
		if err != nil {
			continue // the thread has ended
		}
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

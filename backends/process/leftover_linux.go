package process

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// name identifies a process. The pid alone can be reused.
type name struct {
	pid       int
	startTime uint64
}

// search says which processes belong to an instance.
type search struct {
	instance string

	// group is the process group and the session of the instance, or 0. Its id
	// is the pid of the main process. It is certain to be this group only while
	// the main process exists, which reserved tells.
	group    int
	reserved func() bool

	// except is the main process if it is our unreaped child: it has ended, and
	// every scan would find it.
	except int

	// signaled are the processes that were found and have had a signal. They
	// stay part of the instance when the group is gone.
	signaled map[name]bool
}

// belongs tells whether a process is one of the instance.
func (s *search) belongs(r scanned) bool {
	switch {
	case r.pid == s.except, r.stat.dead():
		return false
	case s.signaled[name{r.pid, r.stat.startTime}]:
		return true
	case s.group != 0 && (r.stat.group == s.group || r.stat.session == s.group) && s.reserved():
		return true
	}
	return r.instance == s.instance
}

// foundProcess is a process of the instance, held by its pidfd.
type foundProcess struct {
	name
	pidfd int
}

// find returns the processes of an instance. It checks each process again after
// opening its pidfd, to be sure that the pidfd is of that process.
func (s *search) find() []foundProcess {
	var found []foundProcess
	for _, r := range processScan.take() {
		if !s.belongs(r) {
			continue
		}
		fd, err := unix.PidfdOpen(r.pid, 0)
		if err != nil {
			continue
		}
		stat, err := readStat(r.pid)
		if err != nil || stat.startTime != r.stat.startTime || !s.belongs(scanned{r.pid, stat, variable(r.pid, varInstance)}) {
			unix.Close(fd)
			continue
		}
		found = append(found, foundProcess{name{r.pid, stat.startTime}, fd})
	}
	return found
}

// signal sends a signal to everything that belongs to the instance.
func (s *search) signal(sig syscall.Signal) {
	for _, q := range s.find() {
		s.noteSignaled(q)
		_ = unix.PidfdSendSignal(q.pidfd, sig, nil, 0)
		unix.Close(q.pidfd)
	}
}

func (s *search) noteSignaled(q foundProcess) {
	if s.signaled == nil {
		s.signaled = make(map[name]bool)
	}
	s.signaled[q.name] = true
}

// The limits of end, for processes that do not die, or that fork faster than
// a scan finds them.
const (
	killRounds = 10
	killWait   = time.Second
	lookAgain  = 50 * time.Millisecond
)

// end sends a signal to the processes of the instance and kills the remaining
// ones at the deadline. It returns true when none is left. It calls deadline
// again in each round, because the deadline can move closer. If asked is true,
// the members of the group have had the stop signal already.
func (s *search) end(sig syscall.Signal, asked bool, deadline func() time.Time) bool {
	orphansCome := getsOrphans()
	for kills := 0; kills < killRounds; {
		found := s.find()
		if len(found) == 0 {
			return true
		}
		killing := !time.Now().Before(deadline())
		for _, q := range found {
			switch {
			case killing:
				_ = unix.PidfdSendSignal(q.pidfd, unix.SIGKILL, nil, 0)
			case !s.signaled[q.name]:
				s.noteSignaled(q)
				if stat, err := readStat(q.pid); err == nil && asked && stat.group == s.group {
					continue
				}
				_ = unix.PidfdSendSignal(q.pidfd, sig, nil, 0)
			}
		}
		if killing {
			kills++
			until := time.Now().Add(killWait)
			awaitAll(found, func() time.Time { return until })
		} else {
			awaitAll(found, deadline)
		}
		for _, q := range found {
			if orphansCome {
				reapThrough(q.pidfd) // it may be a child of Caddy by now
			}
			unix.Close(q.pidfd)
		}
	}
	return false
}

// awaitAll returns when all have ended, or at the deadline.
func awaitAll(found []foundProcess, deadline func() time.Time) {
	polls := make([]unix.PollFd, 0, len(found))
	for _, q := range found {
		polls = append(polls, unix.PollFd{Fd: int32(q.pidfd), Events: unix.POLLIN})
	}
	for len(polls) > 0 {
		left := min(time.Until(deadline()), lookAgain)
		if left <= 0 {
			return
		}
		if _, err := unix.Poll(polls, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return
		}
		living := polls[:0]
		for _, p := range polls {
			if p.Revents == 0 {
				living = append(living, p)
			}
		}
		polls = living
	}
}

// endRest ends what is left of the instance after its main process has ended,
// which is not reaped yet. It returns false if something would not die.
func (c *child) endRest(instance string, sig stopSignal, asked bool, deadline func() time.Time) bool {
	if c.adopted != nil {
		// It is reaped, and the id of its group proves nothing any more: what is
		// left is known by its environment, or has been told.
		c.reap()
		return c.adopted.end(syscall.Signal(sig), false, deadline)
	}
	s := &search{
		instance: instance,
		group:    c.pid,
		reserved: func() bool { return true },
		except:   c.pid,
	}
	return s.end(syscall.Signal(sig), asked, deadline)
}

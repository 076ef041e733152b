package process

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// name is what a process is known by while its pid is not enough.
type name struct {
	pid       int
	startTime uint64
}

// search says which processes belong to an instance.
type search struct {
	instance string

	// group is the process group of the instance, or 0. Its id is the pid of
	// the main process and is only sure to be the same group's for as long as
	// that one is there; reserved tells.
	group    int
	reserved func() bool

	// except is the main process when it is an unreaped child of ours: it has
	// ended, and would be found for ever.
	except int

	// told are the processes that were found and have had a signal. They stay
	// part of the instance when the group is gone.
	told map[name]bool
}

// belongs tells whether a process is one of the instance.
func (s *search) belongs(r resident) bool {
	switch {
	case r.pid == s.except, r.stat.dead():
		return false
	case s.told[name{r.pid, r.stat.startTime}]:
		return true
	case s.group != 0 && r.stat.group == s.group && s.reserved():
		return true
	}
	return r.instance == s.instance
}

// quarry is a process that was found, held by its pidfd.
type quarry struct {
	name
	pidfd int
}

// find returns what there is of an instance. What the process is, is looked at
// again after its pidfd was opened: only then is it known that the pidfd is of
// the process that was looked at.
func (s *search) find() []quarry {
	var found []quarry
	for _, r := range population.take() {
		if !s.belongs(r) {
			continue
		}
		fd, err := unix.PidfdOpen(r.pid, 0)
		if err != nil {
			continue
		}
		stat, err := readStat(r.pid)
		if err != nil || stat.startTime != r.stat.startTime || !s.belongs(resident{r.pid, stat, variable(r.pid, varInstance)}) {
			unix.Close(fd)
			continue
		}
		found = append(found, quarry{name{r.pid, stat.startTime}, fd})
	}
	return found
}

// signal sends a signal to everything that belongs to the instance.
func (s *search) signal(sig syscall.Signal) {
	for _, q := range s.find() {
		s.tell(q)
		_ = unix.PidfdSendSignal(q.pidfd, sig, nil, 0)
		unix.Close(q.pidfd)
	}
}

func (s *search) tell(q quarry) {
	if s.told == nil {
		s.told = make(map[name]bool)
	}
	s.told[q.name] = true
}

// The bounds of a hunt that meets processes that do not die, or that fork
// faster than they are found.
const (
	killRounds = 10
	killWait   = time.Second
	lookAgain  = 50 * time.Millisecond
)

// end asks what belongs to the instance to end, kills what is still there at
// the deadline, and returns true when nothing is left. The deadline is asked
// for again and again, because it can come nearer. Members of the group for
// which asked is true have had the stop signal already.
func (s *search) end(sig syscall.Signal, asked bool, deadline func() time.Time) bool {
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
			case !s.told[q.name]:
				s.tell(q)
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
			unix.Close(q.pidfd)
		}
	}
	return false
}

// awaitAll returns when all have ended, or at the deadline.
func awaitAll(found []quarry, deadline func() time.Time) {
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

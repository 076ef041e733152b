package process

import (
	"os"
	"runtime"
	"sync"
)

// launch is everything that is needed to fork one process.
type launch struct {
	path    string
	argv    []string
	dir     string
	env     []string
	account *account
	files   []*os.File // becomes file descriptors 0, 1, 2, ...
	keep    bool       // the process outlives Caddy
}

// starter forks the processes of all services, on one goroutine that is locked
// to its OS thread: the parent-death signal of a child fires when the thread
// that forked it ends, and a child inherits the ambient capabilities and the
// signal mask of that thread.
//
// The goroutine begins with the first start, so that a configuration that is
// only loaded does not have one, and lasts for as long as the starter is
// held: by every Scaler that has started something, until it is closed, and
// by every instance, until it is reaped. So it never ends under a child.
type starter struct {
	mu      sync.Mutex
	holders int
	jobs    chan startJob
	ended   chan struct{}
}

type startJob struct {
	launch launch
	reply  chan<- startReply
}

type startReply struct {
	child *child
	err   error
}

// forks is the starter of this Caddy.
var forks starter

// hold makes sure that the goroutine runs.
func (s *starter) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holders++
	if s.holders == 1 {
		s.jobs, s.ended = make(chan startJob), make(chan struct{})
		go serveStarts(s.jobs, s.ended)
	}
}

// release gives back one hold, and with the last one waits for the goroutine
// to end.
func (s *starter) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holders--
	if s.holders == 0 {
		close(s.jobs)
		<-s.ended
	}
}

// start forks a process. The caller holds the starter.
func (s *starter) start(l launch) (*child, error) {
	s.mu.Lock()
	jobs := s.jobs
	s.mu.Unlock()
	reply := make(chan startReply, 1)
	jobs <- startJob{l, reply}
	r := <-reply
	return r.child, r.err
}

// serveStarts ends with its thread: it is not unlocked, because what was
// changed on the thread must not come to other goroutines.
func serveStarts(jobs <-chan startJob, ended chan<- struct{}) {
	defer close(ended)
	runtime.LockOSThread()
	prepareThread()
	for job := range jobs {
		defaultSignals()
		c, err := fork(job.launch)
		job.reply <- startReply{c, err}
	}
}

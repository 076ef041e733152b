package marathonsim

import (
	"time"
)

// leader is the node that leads now; nil while there is none.
func (s *Sim) leader() *node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leading
}

// elect makes the node the leader.
func (s *Sim) elect(nd *node) {
	s.mu.Lock()
	if s.closed || s.leading != nil {
		s.mu.Unlock()
		return
	}
	s.leading = nd
	s.mu.Unlock()
	s.engine.post(func() { s.engine.elected(nd.addr) })
}

// crashLeader is the end of a leader's process. After the election gap another
// node leads; the old one comes back as a standby.
func (s *Sim) crashLeader(nd *node) {
	s.mu.Lock()
	if s.closed || s.leading != nd {
		s.mu.Unlock()
		return
	}
	s.leading = nil
	s.mu.Unlock()
	s.engine.post(func() {
		s.engine.stepDown()
		s.engine.after(s.engine.between(s.cfg.ElectionGap), s.electAny)
		s.restartLater(nd, s.cfg.NodeRestart)
	})
	nd.crash()
}

// electAny elects one of the nodes that are up, by lot; when none is, the
// next that comes up is elected. It runs in the engine's goroutine.
func (s *Sim) electAny() {
	if s.leader() != nil {
		return
	}
	var up []*node
	for _, nd := range s.nodes {
		if nd.isUp() {
			up = append(up, nd)
		}
	}
	if len(up) == 0 {
		s.engine.after(250*time.Millisecond, s.electAny)
		return
	}
	s.elect(up[s.engine.rng.IntN(len(up))])
}

// restartLater brings a node back. Its address may be taken for a moment by
// what the kernel has not yet finished with.
func (s *Sim) restartLater(nd *node, after time.Duration) {
	s.engine.after(after, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed {
			return
		}
		if err := nd.start(); err != nil {
			s.engine.log("node", "", nd.addr, "%s", err)
			s.restartLater(nd, 100*time.Millisecond)
		}
	})
}

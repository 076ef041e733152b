package hub

import "sync"

// signal tells all listeners that something has changed.
type signal struct {
	mu    sync.Mutex
	ch    chan struct{} // nil while nothing listens
	ended bool
}

// Next returns a channel that is closed at the next change, or nil if there
// will be none.
func (s *signal) Next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

// tell never blocks, and costs nothing while nothing listens.
func (s *signal) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// end tells that nothing changes any more.
func (s *signal) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.tell()
}

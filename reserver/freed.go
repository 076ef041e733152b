package reserver

// SetFreed sets the function that is told of slots that requests give back. It
// is called after a request has left an instance, also one that is cordoned,
// ejected or removed,
//   - if the instance had more inside than slots, always,
//   - if WatchFreed is on, when no waiting request took the slot at once.
//
// It is called without the lock of the service held, in the goroutine of the
// request that left, and must not block. A call may come late: other requests
// may have taken the slot by then, or given back more. So the receiver reads what
// is inside, by Instance.Stats, when it handles the call. Late and doubled calls
// are harmless then. SetFreed is called once, before the first request.
func (s *Service) SetFreed(f func(*Instance)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freed = f
}

// WatchFreed says whether the function of SetFreed is to be told of every slot
// that was given back and stays free. It does not tell of those that are free
// already: after it has been switched on, the caller reads what is inside. A slot
// that is given back before that reading is seen by it, and one that is given
// back later is told.
func (s *Service) WatchFreed(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchFreed = on
}

// tellsFreed reports whether the function of SetFreed is to be called for i, which
// a request has left. Before that it had so many inside. Freed slots were handed
// out. The lock is held.
func (s *Service) tellsFreed(i *Instance, before int) bool {
	return s.freed != nil && (s.watchFreed && i.inUse < before || i.slots != Unlimited && before > i.slots)
}

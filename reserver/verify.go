package reserver

import "time"

// The address of an instance with a reusable address can go to something else
// before Usher learns of the instance's end. The sender of a request may find
// that a new connection may not lead to the instance, and suspects it. The
// instance then gets no request until the scaler has verified it. This is no
// ejection: it counts no failure, and the instance still counts as open.

func (i *Instance) prove() {
	i.suspected, i.verifyRequested = false, false
	i.verifiedAt.Store(int64(time.Since(i.service.made)))
}

// AddressReusable reports whether the address can be given to something else
// before it is known that the instance has ended, and is verified therefore.
func (i *Instance) AddressReusable() bool { return i.reusable.Load() }

// SetAddressReusable says whether the address is verified from now on. One that
// is not, because it is up to another process, is no longer suspected: it would
// be for ever.
func (i *Instance) SetAddressReusable(on bool) {
	s := i.service
	s.mu.Lock()
	defer s.unlock()
	if i.reusable.Load() == on {
		return
	}
	i.reusable.Store(on)
	i.trust()
}

// VerifiedAt is when the instance was last known to be at its address: when it
// was added, restored or verified.
func (i *Instance) VerifiedAt() time.Time {
	return i.service.made.Add(time.Duration(i.verifiedAt.Load()))
}

// RequestVerify asks for a verification of the instance, which goes on taking
// requests.
func (i *Instance) RequestVerify() {
	s := i.service
	s.mu.Lock()
	told := changes{verifyRequested: i.AddressReusable() && !i.verifyRequested && !i.removed}
	i.verifyRequested = i.verifyRequested || told.verifyRequested
	s.mu.Unlock()
	s.after(i, told)
}

// Verify ends a doubt: the instance is at its address still.
func (i *Instance) Verify() {
	s := i.service
	s.mu.Lock()
	defer s.unlock()
	i.trust()
}

// trust ends a doubt, if there is one. The lock is held.
func (i *Instance) trust() {
	if i.removed {
		return
	}
	s := i.service
	i.prove()
	if i.isOpen() {
		s.pool.freed(i)
	}
	s.serve(i)
}

// eject takes i out of use, and lets its sessions go on elsewhere. The caller
// hands out what is free. The lock is held.
func (s *Service) eject(i *Instance) {
	s.shut(i)
	i.ejected = true
	s.addDemand(s.unbind(i))
}

// Eject ejects the instance as if it had refused a connection.
func (i *Instance) Eject() {
	s := i.service
	s.mu.Lock()
	told := changes{ejected: !i.removed && i.judge(Refused)}
	if told.ejected {
		i.cause = Suspected
		s.eject(i)
		s.dispatch()
	}
	s.unlock()
	s.after(i, told)
}

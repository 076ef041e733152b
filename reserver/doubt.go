package reserver

import "time"

// An unbound instance can end and its address be given to something else
// before anybody says so. Whoever sends requests there may find out that a new
// connection need not lead to the instance, and doubts it: then it is given no
// request until the scaler has vouched for it. That is no ejection: nothing is
// held against the instance, and it counts as one that takes requests.

func (i *Instance) prove() {
	i.doubted, i.questioned = false, false
	i.proven.Store(int64(time.Since(i.service.made)))
}

// Proven is when it was known last that the instance is at its address: when
// it was added, restored or vouched for.
func (i *Instance) Proven() time.Time { return i.service.made.Add(time.Duration(i.proven.Load())) }

// Question asks for the instance to be vouched for, while it goes on taking
// requests.
func (i *Instance) Question() {
	s := i.service
	s.mu.Lock()
	told := news{questioned: i.Unbound && !i.questioned && !i.removed}
	i.questioned = i.questioned || told.questioned
	s.mu.Unlock()
	s.after(i, told)
}

// Vouch ends a doubt: the instance is at its address still.
func (i *Instance) Vouch() {
	s := i.service
	s.mu.Lock()
	defer s.mu.Unlock()
	if i.removed {
		return
	}
	i.prove()
	if i.isOpen() {
		s.pool.freed(i)
		s.dispatch()
	}
}

// Eject ejects the instance as if it had refused a connection.
func (i *Instance) Eject() {
	s := i.service
	s.mu.Lock()
	told := news{ejected: !i.removed && i.judge(Refused)}
	if told.ejected {
		s.shut(i)
		i.ejected = true
	}
	s.mu.Unlock()
	s.after(i, told)
}

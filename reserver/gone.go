package reserver

import "time"

// RemoveFor is Remove with the reason for which the instance is gone, for the
// requests that were inside.
func (i *Instance) RemoveFor(reason error) {
	i.service.mu.Lock()
	defer i.service.unlock()
	if !i.removed {
		i.reason = reason
	}
	i.remove()
}

// Gone returns a channel that is closed once the instance is removed.
func (i *Instance) Gone() <-chan struct{} {
	i.service.mu.Lock()
	defer i.service.mu.Unlock()
	if i.gone == nil {
		i.gone = make(chan struct{})
		if i.removed {
			close(i.gone)
		}
	}
	return i.gone
}

// Reason returns why the instance was removed; nil if nothing was said.
func (i *Instance) Reason() error {
	i.service.mu.Lock()
	defer i.service.mu.Unlock()
	return i.reason
}

// Age returns for how long the instance has been ready, or was when it went.
func (i *Instance) Age() time.Duration { return time.Since(i.service.made) - i.added }

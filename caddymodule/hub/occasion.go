package hub

import (
	"runtime"

	"github.com/caddyserver/caddy/v2"
)

// Occasion is why a configuration is provisioned. It decides what happens if
// this machine lacks something that a backend needs: a command, a directory, a
// user, a file.
type Occasion uint8

const (
	// Boot is the first configuration of this Caddy. The service that lacks
	// something is failing, and all others serve: a machine that has started
	// again must not be without all its sites because one of them is broken.
	Boot Occasion = iota
	// Reload replaces a configuration that is in force. It is refused: the one
	// in force is better, and the person who reloads sees the reason.
	Reload
	// Validation looks only. It refuses too, but what this user may not do or
	// see says nothing about the user that Caddy will run as.
	Validation
)

// Occasion finds out why a configuration is being provisioned.
func (h *Hub) Occasion() Occasion {
	if validates() {
		return Validation
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.generations) > 0 || caddy.ActiveContext().Context != nil {
		return Reload
	}
	return Boot
}

// validates tells whether caddy.Validate provisions the configuration. Caddy
// tells modules nothing about that, but it calls them on the same goroutine.
func validates() bool {
	callers := make([]uintptr, 64)
	for skip := 2; ; skip += len(callers) {
		n := runtime.Callers(skip, callers)
		frames := runtime.CallersFrames(callers[:n])
		for more := n > 0; more; {
			var frame runtime.Frame
			frame, more = frames.Next()
			if frame.Function == "github.com/caddyserver/caddy/v2.Validate" {
				return true
			}
		}
		if n < len(callers) {
			return false
		}
	}
}

// Runs tells whether the service is in force with the very backend of d.
func (h *Hub) Runs(name string, d *Definition) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.services[name]
	if s == nil || s.definition == nil || s.retired {
		return false
	}
	now := s.definition
	return now.BackendType() == d.BackendType() && now.Backend.Fingerprint() == d.Backend.Fingerprint()
}

// PageFile is a file that a service has for its waiting page.
type PageFile struct{ Service, File string }

// LacksPage tells whether the configuration in force could not use that file
// either. If it could, a reload that cannot is refused: people would see
// another page than before.
func (h *Hub) LacksPage(key PageFile) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.generations) == 0 {
		return false
	}
	_, ok := h.generations[len(h.generations)-1].Lacking[key]
	return ok
}

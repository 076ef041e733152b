package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/scaler"
)

// Suspension is what is stored of a service that an operator turned off. It
// survives reloads and restarts.
type Suspension struct {
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}

// suspensionsPrefix is where suspensions are kept in Caddy's storage.
const suspensionsPrefix = "usher/suspended"

func suspensionKey(name string) string { return path.Join(suspensionsPrefix, name) }

// readSuspensions reads from the storage which services of g that have never
// been in force are suspended. The hub's lock is not held.
func (h *Hub) readSuspensions(g *Generation) map[*Service]*Suspension {
	found := make(map[*Service]*Suspension)
	all := func(*Definition) bool { return true }
	err := h.readStored(g, suspensionsPrefix, all, func(s *Service, key string, b []byte, err error) {
		sus := new(Suspension)
		if err == nil {
			err = json.Unmarshal(b, sus)
		}
		if err != nil {
			g.Logger.Error("the suspension cannot be read: the service is suspended without the reason",
				zap.String("service", s.Name), zap.String("key", key), zap.Error(err))
		}
		found[s] = sus
	})
	if err != nil {
		g.Logger.Error("the storage does not tell which services are suspended: none is", zap.Error(err))
	}
	return found
}

// applySuspensions suspends the services that the storage says are suspended,
// unless an operator has suspended or resumed them since: that is newer than
// what was read. The lock is held.
func (h *Hub) applySuspensions(found map[*Service]*Suspension) {
	for s, sus := range found {
		if s.operated {
			continue
		}
		s.suspension = sus
		s.Loop.Suspend(sus.Reason)
		s.Log().Info("service is suspended", zap.String("reason", scaler.Readable(sus.Reason)), zap.Time("since", sus.Since))
	}
}

// current returns s, and what has taken its place since s was looked up: a
// reload that brings a removed service back makes a new one, which may have
// read the suspensions before this one was written. The lock is held.
func (h *Hub) current(s *Service) []*Service {
	if now := h.services[s.Name]; now != nil && now != s {
		return []*Service{s, now}
	}
	return []*Service{s}
}

// Suspend turns s off and remembers it. If it cannot be remembered nothing
// is done.
func (h *Hub) Suspend(ctx context.Context, s *Service, reason string) error {
	h.operating.Lock()
	defer h.operating.Unlock()
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	sus := &Suspension{Reason: scaler.Readable(reason), Since: time.Now()}
	if err := h.storeSuspension(ctx, s.Name, sus); err != nil {
		return fmt.Errorf("service %s is not suspended, because that could not be stored: %w", s.Name, err)
	}
	h.tellSuspended(ctx, s.Name, sus)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.current(s) {
		s.suspension, s.operated = sus, true
		s.Loop.Suspend(sus.Reason)
	}
	return nil
}

// tellSuspended tells the other Caddys of a cluster that a service was suspended
// here, or resumed, if sus is nil. Without a cluster a note of an earlier one is
// forgotten: it is older.
func (h *Hub) tellSuspended(ctx context.Context, name string, sus *Suspension) {
	if m := h.member.Load(); m != nil {
		m.tellSuspended(ctx, name, sus)
		return
	}
	if storage, err := h.storage(); err == nil {
		_ = storage.Delete(ctx, noteKey(noteSuspended+name)) // mostly there is none
	}
}

// resume ends a suspension.
func (h *Hub) resume(ctx context.Context, s *Service) error {
	h.operating.Lock()
	defer h.operating.Unlock()
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	if err := h.forgetSuspension(ctx, s.Name); err != nil {
		return fmt.Errorf("service %s stays suspended, because that could not be stored: %w", s.Name, err)
	}
	h.tellSuspended(ctx, s.Name, nil)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.current(s) {
		s.suspension, s.operated = nil, true
		s.Loop.Resume()
		h.resumeTasks(s.Name)
	}
	return nil
}

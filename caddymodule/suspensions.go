package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/scaler"
)

// suspension is what is stored of a service that an operator turned off. It
// survives reloads and restarts.
type suspension struct {
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}

// suspensionsPrefix is where suspensions are kept in Caddy's storage.
const suspensionsPrefix = "usher/suspended"

// storageTimeout bounds one use of the storage.
const storageTimeout = 5 * time.Second

func suspensionKey(name string) string { return path.Join(suspensionsPrefix, name) }

// readSuspensions reads, once for each service, whether it is suspended. The
// hub's lock is held.
func (h *hub) readSuspensions(g *generation) {
	fresh := make(map[string]*service)
	for name, s := range g.services {
		if !s.active {
			fresh[name] = s
		}
	}
	if len(fresh) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	keys, err := g.storage.List(ctx, suspensionsPrefix, false)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			h.logs.logger.Error("the storage does not tell which services are suspended: none is", zap.Error(err))
		}
		return
	}
	for _, key := range keys {
		s := fresh[path.Base(key)]
		if s == nil {
			continue
		}
		var sus suspension
		b, err := g.storage.Load(ctx, key)
		if err == nil {
			err = json.Unmarshal(b, &sus)
		}
		if err != nil {
			s.log().Error("the suspension cannot be read: the service is suspended without the reason", zap.String("key", key), zap.Error(err))
		}
		s.suspension = &sus
		s.loop.Suspend(sus.Reason)
		s.log().Info("service is suspended", zap.String("reason", scaler.Readable(sus.Reason)), zap.Time("since", sus.Since))
	}
}

// suspend turns s off and remembers it. If it cannot be remembered nothing
// is done.
func (h *hub) suspend(ctx context.Context, s *service, reason string) error {
	h.operating.Lock()
	defer h.operating.Unlock()
	storage, err := h.storage()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	sus := &suspension{Reason: scaler.Readable(reason), Since: time.Now()}
	b, err := json.Marshal(sus)
	if err != nil {
		return err
	}
	if err := storage.Store(ctx, suspensionKey(s.name), b); err != nil {
		return fmt.Errorf("service %s is not suspended, because that could not be stored: %w", s.name, err)
	}
	h.mu.Lock()
	s.suspension = sus
	h.mu.Unlock()
	s.loop.Suspend(sus.Reason)
	return nil
}

// resume ends a suspension.
func (h *hub) resume(ctx context.Context, s *service) error {
	h.operating.Lock()
	defer h.operating.Unlock()
	storage, err := h.storage()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	if err := storage.Delete(ctx, suspensionKey(s.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("service %s stays suspended, because that could not be stored: %w", s.name, err)
	}
	h.mu.Lock()
	s.suspension = nil
	h.mu.Unlock()
	s.loop.Resume()
	return nil
}

package hub

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
)

// spentPause is the time between two attempts to have a spent instance replaced.
const spentPause = time.Second

// replaceSpent has an instance replaced that has got all requests of its life
// from this Caddy: by the Caddy that leads, whichever that is. It goes on until one
// has taken note of it, because the slots of the instance are of no use here.
func (m *membership) replaceSpent(ctx context.Context, s *Service, id string) {
	for ctx.Err() == nil {
		err := m.hub.StopInstance(ctx, s, id)
		if err == nil || errors.Is(err, ErrNoInstance) {
			return
		}
		m.log().Debug("an instance that has got all its requests is not replaced yet", zap.String("service", s.Name), zap.String("instance", id), zap.Error(err))
		t := time.NewTimer(spentPause)
		select {
		case <-t.C:
		case <-m.left:
			t.Stop()
			return
		case <-ctx.Done():
			t.Stop()
		}
	}
}

package hub

import (
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/scaler/control"
)

// logEvent writes what happened to the service to Caddy's log. What becomes of
// single instances is logged by the control loop, which knows why.
func (s *Service) logEvent(event control.Event) {
	switch e := event.(type) {
	case control.Decision:
		s.Log().Info("decided", zap.Int("from", e.From), zap.Int("to", e.To), zap.String("reason", e.Reason),
			zap.Any("demand", e.Inputs["demand"]), zap.Any("waiting", e.Inputs["waiting"]))
	case control.StateChange:
		s.Log().Info("state changed", zap.String("from", string(e.From)), zap.String("to", string(e.To)))
	case control.StartFailure:
		s.logStartFailure(e)
	}
}

func (s *Service) logStartFailure(f control.StartFailure) {
	reason := zap.String("reason", string(f.Reason))
	if f.Together {
		s.Log().Warn("start failed, together with others", reason, zap.Error(f.Failure))
		return
	}
	message := "start failed"
	if f.Serving {
		message = "start failed: the earlier revision keeps serving"
	}
	s.Log().Warn(message, reason, zap.Bool("for_good", f.ForGood),
		zap.Int("in_a_row", f.InARow), zap.Int("start_attempts", f.Attempts),
		zap.Duration("next_try_in", f.Pause.Round(time.Millisecond)), zap.Error(f.Failure))
}

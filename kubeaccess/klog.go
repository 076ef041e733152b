package kubeaccess

import (
	"context"
	"log/slog"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap/exp/zapslog"
	"k8s.io/klog/v2"
)

// Some of client-go logs to klog's own logger, which belongs to the whole
// process and would write lines of a format of its own to stderr. It may only
// be set before anything logs.
func init() {
	klog.SetSlogLogger(slog.New(klogHandler{with: func(h slog.Handler) slog.Handler { return h }}))
}

// klogHandler writes what klog is told to Caddy's log, that of the
// configuration in force at the moment. The caller of
// the API reports failed calls, so an error is a warning here, and anything
// less a detail.
type klogHandler struct {
	with func(slog.Handler) slog.Handler // adds the attributes and groups
}

func (klogHandler) target() slog.Handler {
	return zapslog.NewHandler(caddy.Log().Core(), zapslog.WithName("klog"), zapslog.AddStacktraceAt(slog.LevelError+1))
}

func klogLevel(l slog.Level) slog.Level {
	if l >= slog.LevelError {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// Enabled implements slog.Handler.
func (h klogHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.target().Enabled(ctx, klogLevel(l))
}

// Handle implements slog.Handler.
func (h klogHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Level = klogLevel(r.Level)
	return h.with(h.target()).Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h klogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return klogHandler{with: func(t slog.Handler) slog.Handler { return h.with(t).WithAttrs(attrs) }}
}

// WithGroup implements slog.Handler.
func (h klogHandler) WithGroup(name string) slog.Handler {
	return klogHandler{with: func(t slog.Handler) slog.Handler { return h.with(t).WithGroup(name) }}
}

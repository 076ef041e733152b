package hub

import (
	"log/slog"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zapcore"
)

// logSwitch is a logger for what outlives configurations: it writes through
// the logging of the configuration in force, since that of an earlier one is
// closed with it.
type logSwitch struct {
	core   atomic.Pointer[zapcore.Core]
	logger *zap.Logger
}

func newLogSwitch() *logSwitch {
	s := new(logSwitch)
	nop := zapcore.NewNopCore()
	s.core.Store(&nop)
	s.logger = zap.New(&switchedCore{source: s}).Named("usher")
	return s
}

func (s *logSwitch) use(l *zap.Logger) {
	core := l.Core()
	s.core.Store(&core)
}

// switchedCore is a zapcore.Core that keeps its own fields and writes to the
// core of the moment.
type switchedCore struct {
	source  *logSwitch
	service string // a field that most of them have, and nothing else
	fields  []zapcore.Field
}

// forService returns a logger whose lines carry the name of a service.
func (s *logSwitch) forService(name string) *zap.Logger {
	return s.logger.WithOptions(zap.WrapCore(func(zapcore.Core) zapcore.Core {
		return &switchedCore{source: s, service: name}
	}))
}

func (c *switchedCore) now() zapcore.Core { return *c.source.core.Load() }

// Enabled implements zapcore.LevelEnabler.
func (c *switchedCore) Enabled(l zapcore.Level) bool { return c.now().Enabled(l) }

// With implements zapcore.Core.
func (c *switchedCore) With(fields []zapcore.Field) zapcore.Core {
	all := make([]zapcore.Field, 0, len(c.fields)+len(fields))
	return &switchedCore{source: c.source, service: c.service, fields: append(append(all, c.fields...), fields...)}
}

// Check implements zapcore.Core.
func (c *switchedCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	core := c.now()
	if !core.Enabled(e.Level) {
		return ce
	}
	core = c.fill(core)
	// The core itself is asked: it may be a tee whose parts have levels of
	// their own, or sample.
	return core.Check(e, ce)
}

// Write implements zapcore.Core.
func (c *switchedCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	return c.fill(c.now()).Write(e, fields)
}

// fill gives core the fields of c.
func (c *switchedCore) fill(core zapcore.Core) zapcore.Core {
	if c.service != "" {
		core = core.With([]zapcore.Field{zap.String("service", c.service)})
	}
	if len(c.fields) > 0 {
		core = core.With(c.fields)
	}
	return core
}

// Sync implements zapcore.Core.
func (c *switchedCore) Sync() error { return c.now().Sync() }

// slogTo returns a logger that writes what l would write, for what does not
// know zap. Like Caddy's own, it adds no stack traces.
func slogTo(l *zap.Logger) *slog.Logger {
	return slog.New(zapslog.NewHandler(l.Core(), zapslog.WithName(l.Name()), zapslog.AddStacktraceAt(slog.Level(127))))
}

package hub

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func jsonLogger(buf *bytes.Buffer, level zapcore.Level) *zap.Logger {
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(buf), level))
}

func TestLoggerWritesThroughTheConfigurationInForce(t *testing.T) {
	t.Parallel()
	s := newLogSwitch()
	log := s.logger.With(zap.String("service", "web")).With(zap.Int("n", 1))
	log.Info("before anything listens")
	var first, second bytes.Buffer
	s.use(jsonLogger(&first, zap.DebugLevel))
	log.Debug("one", zap.Bool("extra", true))
	s.use(jsonLogger(&second, zap.WarnLevel))
	log.Info("too quiet")
	log.Warn("two")
	if strings.Count(first.String(), "\n") != 1 || strings.Count(second.String(), "\n") != 1 {
		t.Fatalf("%s and %s", &first, &second)
	}
	var e map[string]any
	if err := json.Unmarshal(first.Bytes(), &e); err != nil {
		t.Fatal(err)
	}
	if e["msg"] != "one" || e["service"] != "web" || e["n"] != 1.0 || e["extra"] != true || e["logger"] != "usher" {
		t.Errorf("%v", e)
	}
	if log.Core().Enabled(zap.InfoLevel) {
		t.Error("levels are not those of the configuration in force")
	}
}

func TestEveryPartOfATeeHasItsOwnLevel(t *testing.T) {
	t.Parallel()
	var all, warnings bytes.Buffer
	s := newLogSwitch()
	s.use(zap.New(zapcore.NewTee(jsonLogger(&all, zap.DebugLevel).Core(), jsonLogger(&warnings, zap.WarnLevel).Core())))
	s.logger.Info("x")
	if all.Len() == 0 || warnings.Len() != 0 {
		t.Errorf("%q %q", &all, &warnings)
	}
}

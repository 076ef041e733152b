package caddymodule

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestSubscriberThatIsTooSlowIsCutOffAndNobodyElse(t *testing.T) {
	t.Parallel()
	b := newBus()
	slow, endSlow := b.subscribe()
	fast, endFast := b.subscribe()
	for range busBacklog + 1 {
		b.publish("x", 1)
		<-fast
	}
	n := 0
	for range slow {
		n++
	}
	if n != busBacklog {
		t.Errorf("%d events before the end", n)
	}
	b.publish("x", 2)
	if e := <-fast; string(e.data) != "2" {
		t.Errorf("%s", e.data)
	}
	endSlow() // once more is no harm
	endFast()
	endFast()
	if len(b.subscribers) != 0 {
		t.Error("subscribers stay")
	}
}

func TestNothingIsEncodedWhileNobodyListens(t *testing.T) {
	t.Parallel()
	newBus().publish("x", unencodable{t})
}

type unencodable struct{ t *testing.T }

func (u unencodable) MarshalJSON() ([]byte, error) {
	u.t.Error("encoded")
	return nil, nil
}

func TestBusThatEndsEndsItsSubscribers(t *testing.T) {
	t.Parallel()
	b := newBus()
	before, end := b.subscribe()
	b.close()
	after, _ := b.subscribe()
	for _, ch := range []<-chan event{before, after} {
		if _, ok := <-ch; ok {
			t.Error("an event out of nowhere")
		}
	}
	b.publish("x", 1)
	end()
	b.close()
}

func jsonLogger(buf *bytes.Buffer, level zapcore.Level) *zap.Logger {
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(buf), level))
}

func TestLoggerWritesThroughTheConfigurationInForce(t *testing.T) {
	t.Parallel()
	s := newLogSwitch()
	log := s.logger.With(zap.String("service", "web")).With(zap.Int("n", 1))
	log.Info("nobody listens yet")
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

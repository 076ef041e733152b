package control

import (
	"log/slog"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-usher/usher/reserver"
)

func TestTheLogSaysWhyAnInstanceIsEjected(t *testing.T) {
	for fate, want := range map[reserver.Outcome]string{
		reserver.Refused:   "a connection to it could not be made",
		reserver.Failed:    "three requests in a row got no answer",
		reserver.Suspected: "it is no longer at its address",
	} {
		bubble(t, func(t *testing.T) {
			b := newBench(t, defaults(), &platform{local: true, startTime: time.Second}, nil)
			core, logs := observer.New(zap.WarnLevel)
			b.env.Logger = func() *slog.Logger { return slog.New(zapslog.NewHandler(core)) }
			first := b.inside()
			i := first.Instance()
			first.Release(reserver.Neutral)
			switch fate {
			case reserver.Suspected:
				i.Eject()
			case reserver.Failed:
				for range 3 {
					b.inside().Release(fate)
				}
			default:
				b.inside().Release(fate)
			}
			waitIdle()
			entries := logs.FilterMessage("instance ejected").All()
			if len(entries) != 1 || entries[0].ContextMap()["reason"] != want {
				t.Errorf("%v: %+v, want %q", fate, entries, want)
			}
		})
	}
}

package control

import (
	"strings"
	"testing"

	"github.com/caddy-usher/usher/scaler"
)

func TestRefusalsAreReadable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, fail: &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "\x1b[2Jshort", Detail: "de\rtail"}}
		b := newBench(t, defaults(), p, nil)
		if err := b.answer(b.waits()); err == nil || scaler.Readable(err.Error()) != err.Error() || !strings.Contains(err.Error(), `\x1b[2Jshort`) {
			t.Errorf("told %q", err)
		}
		b.Suspend("by \x1b]0;me\x07")
		if _, err := b.request(); err == nil || err.Error() != `by \x1b]0;me\a` {
			t.Errorf("told %q", err)
		}
	})
}

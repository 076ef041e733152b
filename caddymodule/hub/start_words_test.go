package hub

import (
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

func TestWhatIsKnownOfAStartIsWholeForOneServiceAndCutForAll(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a line of output\n", 1000)
	st := control.StartStatus{Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Known: &scaler.Failure{Short: "not ready after 2s", Detail: long}}
	if got := summarizeStart(st, Cut); len(got.Known) > messageMax+len(" ...") || got.KnownInWords() != got.Known {
		t.Errorf("%d bytes for the list", len(got.Known))
	}
	if got := summarizeStart(st, func(m string) string { return m }); !strings.HasSuffix(got.Known, long) {
		t.Errorf("%d bytes of %d for one service", len(got.Known), len(long))
	}
}

func TestTheCommandsSayHowStartsGo(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, time.March, 4, 12, 30, 0, 0, time.UTC)
	since, next := now.Add(-12*time.Second), now.Add(4*time.Second)
	for want, s := range map[string]*StartSummary{
		"":                    nil,
		"in progress for 12s": {Attempts: 3, Since: &since},
		"in progress for 12s; 2 attempts failed, and after 3 the service is failing":                 {Failed: 2, Attempts: 3, Since: &since},
		"1 attempt failed, and after 3 the service is failing; the next one in 4.0s at the earliest": {Failed: 1, Attempts: 3, NextAt: &next},
		"3 attempts failed": {Failed: 3, Attempts: 3},
	} {
		if got := s.InWords(control.Waking, now); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	// One failure for good is enough.
	if got := (&StartSummary{Failed: 2, Attempts: 3}).InWords(control.Failing, now); got != "2 attempts failed" {
		t.Errorf("of a service that is failing already: %q", got)
	}
}

package command

import (
	"testing"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

func TestNumbersInTheCommandsReadAsWords(t *testing.T) {
	t.Parallel()
	none, forty := 0, 40
	for want, c := range map[string]hub.SlotCounts{
		"1, draining": {Total: &none, InUse: 1}, "0": {Total: &none}, "12 of 40": {Total: &forty, InUse: 12}, "7": {InUse: 7},
	} {
		if got := slotsInWords(c); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for want, s := range map[string]hub.ServiceSummary{
		"1 waiting for 2.6s":             {Waiting: 1, OldestWaitMS: 2600},
		"4 waiting, the oldest for 2.6s": {Waiting: 4, OldestWaitMS: 2600},
	} {
		if got := nowInWords(hub.ServiceDetails{ServiceSummary: s}); got != "0 requests inside and "+want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

package command

import (
	"testing"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler/control"
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

func TestExplainSaysHowLongAServiceStaysAwake(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]string{
		`{"idle_timeout":"5m0s","scale":{"policy":"queue"}}`:                          "5m without a request and it goes to 0",
		`{"idle_timeout":"5m0s","scale":{"policy":"adaptive"}}`:                       "without a request it goes to 0, when none is likely soon or after 20m",
		`{"idle_timeout":"5m0s","scale":{"policy":"adaptive","max_idle":"1h0m0s"}}`:   "without a request it goes to 0, when none is likely soon or after 1h",
		`{"idle_timeout":"off","scale":{"policy":"adaptive","max_idle":"1h0m0s"}}`:    "without demand it goes down, and one instance stays",
		`{"idle_timeout":"5m0s","scale":{"policy":"of-a-third-party","max_idle":60}}`: "5m without a request and it goes to 0",
	} {
		s := hub.ServiceDetails{ServiceSummary: hub.ServiceSummary{State: control.Awake, Target: 1}, Config: []byte(config)}
		if got := nextInWords(s); got != want {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
	}
}

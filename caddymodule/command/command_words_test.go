package command

import (
	"testing"
	"time"

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

func TestExplainSaysWhatComesNext(t *testing.T) {
	t.Parallel()
	queue, adaptive := `{"idle_timeout":"5m0s","scale":{"policy":"queue"}}`, `{"idle_timeout":"5m0s","scale":{"policy":"adaptive"}}`
	for name, x := range map[string]struct {
		config string
		set    func(*hub.ServiceDetails)
		want   string
	}{
		"requests are inside":      {queue, nil, "it goes to 0 at the earliest 5m after the last request"},
		"adaptive":                 {adaptive, nil, "after the last request it goes to 0, when none is likely soon, or after 20m"},
		"adaptive, with a limit":   {`{"idle_timeout":"5m0s","scale":{"policy":"adaptive","max_idle":"1h0m0s"}}`, nil, "after the last request it goes to 0, when none is likely soon, or after 1h"},
		"adaptive, with a minimum": {`{"idle_timeout":"5m0s","scale":{"policy":"adaptive","min_idle":"30m0s"}}`, nil, "after the last request it goes to 0, when none is likely soon, or after 30m"},
		"idle_timeout is off":      {`{"idle_timeout":"off","scale":{"policy":"adaptive"}}`, nil, "without demand it goes down, and one instance stays"},
		"a third party's policy":   {`{"idle_timeout":"5m0s","scale":{"policy":"own","max_idle":60}}`, nil, "it goes to 0 at the earliest 5m after the last request"},
		"the policy has said it":   {adaptive, func(s *hub.ServiceDetails) { s.Next = &hub.NextTarget{Target: 0, At: aDay.Add(12 * time.Second)} }, "it goes to 0 in 12s if no request comes"},
		"the schedule keeps it":    {queue, func(s *hub.ServiceDetails) { s.Schedule = &hub.ScheduleSummary{Min: 1} }, "more requests than its slots hold make it more"},
		"no more are allowed":      {queue, func(s *hub.ServiceDetails) { s.Schedule, s.Max = &hub.ScheduleSummary{Min: 1}, 1 }, "it has as many instances as it may have, and no fewer are allowed now"},
		"another one needs it":     {queue, func(s *hub.ServiceDetails) { s.KeptFor = "shop" }, "one instance stays awake for shop, even without a request"},
		"its need is suspended": {queue, func(s *hub.ServiceDetails) {
			s.State, s.BlockedBy = control.Failing, &hub.BlockedNeed{Service: "db", Suspended: true}
		}, "'caddy usher resume db'"},
		"its need does not start": {queue, func(s *hub.ServiceDetails) { s.State, s.BlockedBy = control.Waking, &hub.BlockedNeed{Service: "db"} }, "it starts once db does: see 'caddy usher explain db'"},
	} {
		s := hub.ServiceDetails{ServiceSummary: hub.ServiceSummary{State: control.Awake, Target: 1, Max: 2}, Config: []byte(x.config)}
		if x.set != nil {
			x.set(&s)
		}
		if got := nextInWords(s, aDay); got != x.want {
			t.Errorf("%s: %q, want %q", name, got, x.want)
		}
	}
}

func TestRequestsAndPagesThatWaitAreBothTold(t *testing.T) {
	t.Parallel()
	for want, s := range map[string]hub.ServiceSummary{
		"0":                     {},
		"0 + 1 page":            {Visitors: 1},
		"4 + 2 pages, for 2.6s": {Waiting: 4, Visitors: 2, OldestWaitMS: 2600},
	} {
		if got := waitingInWords(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got, want := nowInWords(hub.ServiceDetails{ServiceSummary: hub.ServiceSummary{Visitors: 1}}), "0 requests inside, 1 page waiting in a browser"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

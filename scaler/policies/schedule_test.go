package policies

import (
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/caddy-usher/usher/scaler"
)

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

var (
	everyDay = [7]bool{true, true, true, true, true, true, true}
	workdays = [7]bool{false, true, true, true, true, true, false}
)

// changes returns when the floor changes in so many days, as the policy says,
// and checks by looking at every minute that it says so rightly.
func changes(t *testing.T, p Schedule, from time.Time, days int) (all []string) {
	t.Helper()
	until := from.Add(time.Duration(days) * dayLong)
	for at := from; ; {
		next, floor := p.NextChange(at)
		if next.IsZero() || next.After(until) {
			break
		}
		for m := at.Truncate(time.Minute).Add(time.Minute); m.Before(next); m = m.Add(time.Minute) {
			if p.floor(m) != p.floor(at) {
				t.Fatalf("the floor changes at %v, and NextChange says %v", m, next)
			}
		}
		if got := p.floor(next); got != floor || floor == p.floor(next.Add(-time.Second)) {
			t.Fatalf("at %v the floor is %d, was %d, and NextChange says %d", next, got, p.floor(next.Add(-time.Second)), floor)
		}
		all = append(all, next.In(p.Windows[0].Zone).Format("Mon 15:04 -0700")+" "+string(rune('0'+floor)))
		at = next
	}
	return all
}

func TestTheScheduleFollowsTheClocksOfItsZone(t *testing.T) {
	berlin, utc := zone(t, "Europe/Berlin"), time.UTC
	lord := zone(t, "Australia/Lord_Howe") // its clocks change by half an hour
	h := func(hours float64) time.Duration { return time.Duration(hours * float64(time.Hour)) }
	for _, c := range []struct {
		name    string
		windows []Window
		from    time.Time
		days    int
		want    []string
	}{
		{
			"working days",
			[]Window{{workdays, h(8), h(18), utc, 2}},
			time.Date(2026, 3, 5, 12, 0, 0, 0, utc), 5, // a Thursday
			[]string{"Thu 18:00 +0000 0", "Fri 08:00 +0000 2", "Fri 18:00 +0000 0", "Mon 08:00 +0000 2", "Mon 18:00 +0000 0", "Tue 08:00 +0000 2"},
		},
		{
			"over midnight, on Fridays",
			[]Window{{[7]bool{5: true}, h(22), h(6), utc, 1}},
			time.Date(2026, 3, 5, 12, 0, 0, 0, utc), 4,
			[]string{"Fri 22:00 +0000 1", "Sat 06:00 +0000 0"},
		},
		{
			"several windows, the higher one holds",
			[]Window{{everyDay, h(8), h(18), utc, 1}, {everyDay, h(12), h(14), utc, 5}},
			time.Date(2026, 3, 5, 0, 0, 0, 0, utc), 1,
			[]string{"Thu 08:00 +0000 1", "Thu 12:00 +0000 5", "Thu 14:00 +0000 1", "Thu 18:00 +0000 0"},
		},
		{
			"the clocks go forward",
			[]Window{{everyDay, h(8), h(9), berlin, 1}},
			time.Date(2026, 3, 28, 12, 0, 0, 0, utc), 2,
			[]string{"Sun 08:00 +0200 1", "Sun 09:00 +0200 0", "Mon 08:00 +0200 1", "Mon 09:00 +0200 0"},
		},
		{
			"an hour that is left out",
			[]Window{{everyDay, h(2), h(3), berlin, 1}},
			time.Date(2026, 3, 28, 12, 0, 0, 0, utc), 2,
			[]string{"Mon 02:00 +0200 1", "Mon 03:00 +0200 0"},
		},
		{
			"it begins in an hour that is left out",
			[]Window{{everyDay, h(2.5), h(4), berlin, 1}},
			time.Date(2026, 3, 28, 12, 0, 0, 0, utc), 1,
			[]string{"Sun 03:00 +0200 1", "Sun 04:00 +0200 0"},
		},
		{
			"an hour that comes twice",
			[]Window{{everyDay, h(2), h(3), berlin, 1}},
			time.Date(2026, 10, 24, 12, 0, 0, 0, utc), 1,
			[]string{"Sun 02:00 +0200 1", "Sun 03:00 +0100 0"},
		},
		{
			"it ends in an hour that comes twice",
			[]Window{{everyDay, h(1), h(2.5), berlin, 1}},
			time.Date(2026, 10, 24, 12, 0, 0, 0, utc), 1,
			[]string{"Sun 01:00 +0200 1", "Sun 02:30 +0200 0", "Sun 02:00 +0100 1", "Sun 02:30 +0100 0"},
		},
		{
			"clocks that change by half an hour",
			[]Window{{everyDay, h(1.75), h(3), lord, 1}},
			time.Date(2026, 4, 4, 0, 0, 0, 0, utc), 1,
			[]string{"Sun 01:45 +1100 1", "Sun 01:30 +1030 0", "Sun 01:45 +1030 1", "Sun 03:00 +1030 0"},
		},
		{"always", []Window{{everyDay, 0, h(24), utc, 3}}, time.Date(2026, 3, 5, 0, 0, 0, 0, utc), 30, nil},
	} {
		got := changes(t, Schedule{Windows: c.windows}, c.from, c.days)
		if len(got) != len(c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
			continue
		}
		for k := range got {
			if got[k] != c.want[k] {
				t.Errorf("%s: %q, want %q", c.name, got, c.want)
				break
			}
		}
	}
}

func TestTheFloorRaisesTheMinimumOfAnyPolicy(t *testing.T) {
	for _, inner := range []scaler.Policy{Queue{}, Adaptive{}} {
		p := Schedule{Policy: inner, Windows: []Window{{workdays, 8 * time.Hour, 18 * time.Hour, time.UTC, 2}}}
		in := scaler.Inputs{Now: time.Date(2026, 3, 5, 7, 0, 0, 0, time.UTC), Max: 5, Concurrency: 1, IdleTimeout: time.Minute}
		a, m := p.Target(in, nil)
		if want := time.Date(2026, 3, 5, 8, 0, 0, 0, time.UTC); a.Target != 0 || !a.Recheck.Equal(want) || a.NextFloor != 2 {
			t.Errorf("%T, at seven: %+v", inner, a)
		}
		in.Now = a.Recheck
		a, m = p.Target(in, m)
		if a.Target != 2 || a.Reason != "the schedule keeps 2 until Thu 18:00 UTC" || !a.Recheck.Equal(in.Now.Add(10*time.Hour)) {
			t.Errorf("%T, at eight: %+v", inner, a)
		}
		in.Max, in.Min = 1, 0
		if a, _ := p.Target(in, m); a.Target != 1 || a.Floor != 1 {
			t.Errorf("%T, with a maximum of 1: %+v", inner, a)
		}
		in.Max, in.Demand, in.Waiting, in.Peak, in.Arrivals, in.Running, in.Ready = 9, 4, 4, 4, 4, 2, 2
		in.ServiceTime, in.StartTime = time.Minute, time.Second
		if a, _ := p.Target(in, m); a.Target < 4 {
			t.Errorf("%T, with more demand than the floor: %+v", inner, a)
		}
	}
}

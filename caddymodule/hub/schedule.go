package hub

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-usher/usher/caddymodule/zones"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/policies"
)

// ScheduleWindow keeps a floor at certain hours.
type ScheduleWindow struct {
	// The days on which it begins: `mon` to `sun`, with `-` for a span and `,`
	// between several, or `daily`.
	Days string `json:"days"`

	// The time of the day at which it begins and ends, as `08:00` and `18:30`.
	// The end may be `24:00`. An end that is not later than the beginning is on
	// the next day.
	From string `json:"from"`
	To   string `json:"to"`

	// The time zone whose clocks count, such as `Europe/Berlin` or `UTC`.
	// Default: that of this machine.
	Zone string `json:"zone,omitempty"`

	// The least number of instances at these hours. The maximum of the service
	// still holds.
	Min int `json:"min"`
}

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// window returns w in the form that the policy reads.
func (w ScheduleWindow) window() (p policies.Window, err error) {
	if p.Days, err = parseDays(w.Days); err != nil {
		return p, err
	}
	if p.From, err = parseClock(w.From); err != nil {
		return p, err
	}
	if p.To, err = parseClock(w.To); err != nil {
		return p, err
	}
	switch {
	case p.From == 24*time.Hour:
		return p, fmt.Errorf("a window cannot begin at 24:00: use 00:00 of the next day")
	case p.From == p.To:
		return p, fmt.Errorf("the window from %s to %s is empty: a whole day is 00:00-24:00", w.From, w.To)
	case w.Min < 1 || w.Min > scaler.MaxInstances:
		return p, fmt.Errorf("min must be between 1 and %d, not %d", scaler.MaxInstances, w.Min)
	}
	p.Min = w.Min
	zone := w.Zone
	if zone == "" {
		zone = "Local"
	}
	if p.Zone, err = zones.Load(zone); err != nil {
		return p, fmt.Errorf("the time zone '%s' is unknown: use a name such as Europe/Berlin or UTC", w.Zone)
	}
	return p, nil
}

// parseDays reads days such as mon-fri,sun.
func parseDays(s string) (days [7]bool, err error) {
	if s == "daily" {
		return [7]bool{true, true, true, true, true, true, true}, nil
	}
	for part := range strings.SplitSeq(strings.ToLower(s), ",") {
		first, last, span := strings.Cut(part, "-")
		if !span {
			last = first
		}
		a, b := dayOf(first), dayOf(last)
		if a < 0 || b < 0 {
			return days, fmt.Errorf("'%s' is not a day or a range of days: use names such as mon-fri or sat,sun, or daily", s)
		}
		for k := a; ; k = (k + 1) % 7 {
			days[k] = true
			if k == b {
				break
			}
		}
	}
	return days, nil
}

func dayOf(name string) int {
	for k, n := range dayNames {
		if n == name {
			return k
		}
	}
	return -1
}

// parseClock reads a time of the day such as 08:30.
func parseClock(s string) (time.Duration, error) {
	hours, minutes, ok := strings.Cut(s, ":")
	h, err1 := strconv.ParseUint(hours, 10, 8)
	m, err2 := strconv.ParseUint(minutes, 10, 8)
	if !ok || err1 != nil || err2 != nil || len(minutes) != 2 || m > 59 || h > 24 || h == 24 && m > 0 {
		return 0, fmt.Errorf("'%s' is not a time of the day, such as 08:00 or 18:30", s)
	}
	return time.Duration(h)*time.Hour + time.Duration(m)*time.Minute, nil
}

// schedule returns the policy with the floors of the service around it, or the
// policy as it is.
func (s ServiceConfig) schedule(policy scaler.Policy) (scaler.Policy, error) {
	if len(s.At) == 0 {
		return policy, nil
	}
	p := policies.Schedule{Policy: policy}
	for k, w := range s.At {
		parsed, err := w.window()
		if err != nil {
			return nil, fmt.Errorf("at %s: %w", w.words(), err)
		}
		if parsed.Min > s.Instances.Max {
			return nil, fmt.Errorf("at %s: min %d is greater than the maximum of instances, %d", w.words(), w.Min, s.Instances.Max)
		}
		for j, o := range p.Windows {
			if o.Days == parsed.Days && o.From == parsed.From && o.To == parsed.To && o.Zone.String() == parsed.Zone.String() && o.Min != parsed.Min {
				return nil, fmt.Errorf("at %s: min %d contradicts min %d for the same hours", w.words(), s.At[k].Min, s.At[j].Min)
			}
		}
		p.Windows = append(p.Windows, parsed)
	}
	return p, nil
}

func (w ScheduleWindow) words() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s-%s %s", w.Days, w.From, w.To, w.Zone))
}

// CheckWindow returns an error if w is no window.
func CheckWindow(w ScheduleWindow) error {
	_, err := w.window()
	return err
}

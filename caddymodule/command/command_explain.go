package command

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler/control"
)

// explainedBefore is how many decisions before the last one are shown.
const explainedBefore = 8

func (c *console) explain(names []string) error {
	var s hub.ServiceDetails
	if _, err := c.ask(http.MethodGet, servicePath(names[0]), nil, &s); err != nil {
		return err
	}
	var decisions []control.Decision
	raw, err := c.ask(http.MethodGet, servicePath(names[0], "decisions"), nil, &decisions)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(raw)
	}
	if err := c.print("%s is %s. It wants %s and has %s.\n\n",
		s.Name, harmless(stateInWords(s)), hub.Several(s.Target, "instance"), instancesInWords(s.Instances)); err != nil {
		return err
	}
	why := "no request has come since Caddy started"
	if s.Suspension != nil {
		why = "suspended"
	}
	rows := [][]string{{"Why " + strconv.Itoa(s.Target) + ":", why}}
	if n := len(decisions); n > 0 {
		last := decisions[n-1]
		rows = [][]string{
			{fmt.Sprintf("Why %d:", last.To), last.Reason},
			{"Decided:", fmt.Sprintf("%s ago, from %d to %d", hub.Short(c.now().Sub(last.Time)), last.From, last.To)},
			{"At that time:", hub.Circumstances(last)},
		}
		decisions = decisions[:n-1]
	}
	if s.State == control.Failing && s.Target == 0 && trouble(s) != "" {
		rows[0][1], s.Why = "it cannot be started (see Trouble)", ""
	}
	if s.Why != "" && s.Why != rows[0][1] {
		rows = append(rows, []string{"It stays so:", s.Why})
	}
	if s.Schedule != nil {
		rows = append(rows, []string{"Schedule:", c.scheduleInWords(*s.Schedule)})
	}
	rows = append(rows, []string{"Now:", nowInWords(s)})
	rows = append(rows, reasonsToStay(s)...)
	if start := s.Start.InWords(s.State, c.now()); start != "" {
		rows = append(rows, []string{"Start:", start})
	}
	if words := trouble(s); words != "" {
		rows = append(rows, onRows("Trouble:", words)...)
	}
	if known := s.Start.KnownInWords(); known != "" {
		rows = append(rows, onRows("This start:", known)...)
	}
	if next := nextInWords(s, c.now()); next != "" {
		rows = append(rows, []string{"Next:", next})
	}
	if err := c.table("", rows); err != nil || len(decisions) == 0 {
		return err
	}
	rows = nil
	for k := len(decisions) - 1; k >= max(0, len(decisions)-explainedBefore); k-- {
		d := decisions[k]
		rows = append(rows, []string{c.clock(d.Time), fmt.Sprintf("%d to %d", d.From, d.To), d.Reason, "(" + hub.Circumstances(d) + ")"})
	}
	if err := c.print("\nBefore that:\n"); err != nil {
		return err
	}
	return c.table("  ", rows)
}

// clock is the time of day, with the date if it is another day's.
func (c *console) clock(t time.Time) string {
	now := c.now()
	t = t.In(now.Location())
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateTime)
}

// scheduleInWords is the floor of now and the next one.
func (c *console) scheduleInWords(s hub.ScheduleSummary) string {
	words := "no minimum now"
	if s.Min > 0 {
		words = "at least " + hub.Several(s.Min, "instance")
	}
	if s.Next.IsZero() {
		return words
	}
	return fmt.Sprintf("%s; from %s on %d", words, s.Next.In(c.now().Location()).Format("Mon 2006-01-02 15:04 MST"), s.NextMin)
}

// nowInWords is the demand of this moment, and what there is for it.
func nowInWords(s hub.ServiceDetails) string {
	words := fmt.Sprintf("%s inside", hub.Several(s.Slots.InUse, "request"))
	if s.Waiting > 0 {
		words += " and " + waitersInWords(s.ServiceSummary) + boundInWords(s.ServiceSummary)
	}
	if s.Visitors > 0 {
		words += ", " + hub.Several(s.Visitors, "page") + " waiting in a browser"
	}
	if s.Tasks > 0 {
		words += ", " + hub.Several(s.Tasks, "task") + " waiting for a slot"
	}
	if s.Slots.Total != nil {
		words += ", " + hub.Several(*s.Slots.Total, "slot")
	}
	if missing := s.Target - s.Instances.Ready; missing > 0 {
		words += fmt.Sprintf(", %d of %d not ready yet", missing, s.Target)
	}
	return words
}

// trouble is what keeps a service from starting or from being used; empty if
// nothing does.
func trouble(s hub.ServiceDetails) string {
	switch {
	case s.BlockedBy != nil:
		return s.BlockedBy.Trouble
	case s.LastError != nil:
		return *s.LastError
	}
	return ""
}

// nextInWords says what would change the target, as far as that is known.
func nextInWords(s hub.ServiceDetails, now time.Time) string {
	switch {
	case s.State == control.Suspended:
		return "nothing, until it is resumed"
	case s.BlockedBy != nil && s.BlockedBy.Suspended:
		return fmt.Sprintf("'caddy usher resume %s'", s.BlockedBy.Service)
	case s.BlockedBy != nil:
		return fmt.Sprintf("it starts once %s does: see 'caddy usher explain %s'", s.BlockedBy.Service, s.BlockedBy.Service)
	case s.State == control.Failing:
		return "a start is tried after a pause if a request came; 'caddy usher wake' tries at once"
	case s.State == control.Asleep:
		return "the next request wakes it"
	case s.State == control.Waking:
		return "it is awake as soon as an instance is ready"
	}
	floor := s.Min
	if s.Schedule != nil {
		floor = max(floor, s.Schedule.Min)
	}
	idle, err := hub.IdleOf(s.Config)
	switch {
	case s.Next != nil:
		return fmt.Sprintf("it goes to %d in %s if no request comes", s.Next.Target, hub.Short(max(0, s.Next.At.Sub(now))))
	case s.KeptFor != "":
		return fmt.Sprintf("one instance stays awake for %s, even without a request", s.KeptFor)
	case s.Target <= floor && s.Target >= s.Max:
		return "it has as many instances as it may have, and no fewer are allowed now"
	case s.Target <= floor:
		return "more requests than its slots hold make it more"
	case err != nil:
		return ""
	case idle.Longest <= 0:
		return "without demand it goes down, and one instance stays"
	case idle.Learned:
		return fmt.Sprintf("after the last request it goes to %d, when none is likely soon, or after %s", floor, hub.Short(idle.Longest))
	}
	return fmt.Sprintf("it goes to %d at the earliest %s after the last request", floor, hub.Short(idle.Longest))
}

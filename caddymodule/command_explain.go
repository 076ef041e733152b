package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// explainedBefore is how many decisions before the last one are shown.
const explainedBefore = 8

func (c *console) explain(names []string) error {
	var s serviceDetails
	if _, err := c.ask(http.MethodGet, servicePath(names[0]), nil, &s); err != nil {
		return err
	}
	var decisions []scaler.Decision
	raw, err := c.ask(http.MethodGet, servicePath(names[0], "decisions"), nil, &decisions)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(raw)
	}
	if err := c.print("%s is %s. It wants %s and has %s.\n\n",
		s.Name, harmless(s.stateInWords()), several(s.Target, "instance"), s.Instances.inWords()); err != nil {
		return err
	}
	why := "nobody has asked for it since Caddy started"
	if s.Suspension != nil {
		why = "suspended"
	}
	rows := [][]string{{"Why " + strconv.Itoa(s.Target) + ":", why}}
	if n := len(decisions); n > 0 {
		last := decisions[n-1]
		rows = [][]string{
			{fmt.Sprintf("Why %d:", last.To), last.Reason},
			{"Decided:", fmt.Sprintf("%s ago, from %d to %d", short(c.now().Sub(last.Time)), last.From, last.To)},
			{"Then:", circumstances(last)},
		}
		decisions = decisions[:n-1]
	}
	rows = append(rows, []string{"Now:", s.nowInWords()})
	if s.LastError != nil {
		rows = append(rows, []string{"Trouble:", *s.LastError})
	}
	if next := s.nextInWords(); next != "" {
		rows = append(rows, []string{"Next:", next})
	}
	if err := c.table("", rows); err != nil || len(decisions) == 0 {
		return err
	}
	rows = nil
	for k := len(decisions) - 1; k >= max(0, len(decisions)-explainedBefore); k-- {
		d := decisions[k]
		rows = append(rows, []string{c.clock(d.Time), fmt.Sprintf("%d to %d", d.From, d.To), d.Reason, "(" + circumstances(d) + ")"})
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

// nowInWords is the demand of this moment, and what there is for it.
func (s serviceDetails) nowInWords() string {
	words := fmt.Sprintf("%s inside", several(s.Slots.InUse, "request"))
	if s.Waiting > 0 {
		words += fmt.Sprintf(" and %s waiting", s.waitingInWords())
	}
	if s.Visitors > 0 {
		words += fmt.Sprintf(", %d waiting in a browser", s.Visitors)
	}
	if s.Slots.Total != nil {
		words += ", " + several(*s.Slots.Total, "slot")
	}
	if missing := s.Target - s.Instances.Ready; missing > 0 {
		words += fmt.Sprintf(", %d of %d not ready yet", missing, s.Target)
	}
	return words
}

// nextInWords says what would change the target, as far as the state alone
// tells.
func (s serviceDetails) nextInWords() string {
	var config struct {
		IdleTimeout IdleTimeout `json:"idle_timeout"`
	}
	if json.Unmarshal(s.Config, &config) != nil {
		return ""
	}
	switch s.State {
	case scaler.Suspended:
		return "nothing, until it is resumed"
	case scaler.Failing:
		return "a start is tried after a pause if a request came; 'caddy usher wake' tries at once"
	case scaler.Asleep:
		return "the next request wakes it"
	case scaler.Waking:
		return "it is awake as soon as an instance is ready"
	}
	switch {
	case s.Target <= s.Min:
		return "more requests than its slots hold make it more"
	case config.IdleTimeout <= 0:
		return "without demand it goes down, and one instance stays"
	}
	return fmt.Sprintf("%s without a request and it goes to %d", short(time.Duration(config.IdleTimeout)), s.Min)
}

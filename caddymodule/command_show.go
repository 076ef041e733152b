package caddymodule

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// table prints rows in aligned columns.
func (c *console) table(indent string, rows [][]string) error {
	var aligned bytes.Buffer
	w := tabwriter.NewWriter(&aligned, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for k, cell := range row {
			cells[k] = harmless(cell)
		}
		_, _ = fmt.Fprintln(w, indent+strings.Join(cells, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(aligned.String()) {
		if err := c.print("%s\n", strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

func (c *console) list([]string) error {
	var list []serviceSummary
	raw, err := c.ask(http.MethodGet, "services", nil, &list)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(raw)
	}
	if len(list) == 0 {
		_, err := fmt.Fprintln(c.err, "There are no services.")
		return err
	}
	rows := [][]string{{"NAME", "STATE", "READY", "TARGET", "LIMITS", "IN USE", "WAITING", "COLD START", "BACKEND", "LAST ERROR"}}
	for _, s := range list {
		row := []string{
			s.Name, string(s.State), strconv.Itoa(s.Instances.Ready), strconv.Itoa(s.Target), fmt.Sprintf("%d..%d", s.Min, s.Max),
			s.Slots.inWords(), s.waitingInWords(), s.coldStartInWords(), s.Backend, "",
		}
		if s.LastError != nil {
			row[len(row)-1] = brief(*s.LastError)
		}
		rows = append(rows, row)
	}
	return c.table("", rows)
}

// inWords is `12 of 40`, or `12` where there is no limit.
func (s slotCounts) inWords() string {
	if s.Total == nil {
		return strconv.Itoa(s.InUse)
	}
	return fmt.Sprintf("%d of %d", s.InUse, *s.Total)
}

func (s serviceSummary) waitingInWords() string {
	if s.Waiting == 0 {
		return "0"
	}
	return fmt.Sprintf("%d, for %s", s.Waiting, short(time.Duration(s.OldestWaitMS)*time.Millisecond))
}

func (s serviceSummary) coldStartInWords() string {
	if s.ColdStarts == 0 {
		return "-"
	}
	return short(time.Duration(s.LastColdStartMS) * time.Millisecond)
}

// short is a duration with two digits that matter.
func short(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return strings.TrimSuffix(fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60), "00s")
	case d < 48*time.Hour:
		return strings.TrimSuffix(fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60), "00m")
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func (c *console) show(names []string) error {
	var s serviceDetails
	raw, err := c.ask(http.MethodGet, servicePath(names[0]), nil, &s)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(raw)
	}
	rows := [][]string{
		{"Service:", s.Name},
		{"Backend:", s.Backend},
		{"State:", s.stateInWords()},
		{"Target:", fmt.Sprintf("%d, between %d and %d", s.Target, s.Min, s.Max)},
		{"Instances:", s.Instances.inWords()},
		{"In use:", s.Slots.inWords()},
		{"Waiting:", s.waitingInWords()},
	}
	if s.ColdStarts > 0 {
		rows = append(rows, []string{"Cold starts:", fmt.Sprintf("%d, the last took %s", s.ColdStarts, s.coldStartInWords())})
	}
	if s.LastError != nil {
		rows = append(rows, []string{"Last error:", *s.LastError})
	}
	if err := c.table("", rows); err != nil {
		return err
	}
	if len(s.InstanceList) > 0 {
		rows := [][]string{{"INSTANCE", "STATE", "IN USE", "AGE", "REVISION", "ADDRESS"}}
		for _, i := range s.InstanceList {
			rows = append(rows, []string{
				i.ID, string(i.State), slotCounts{i.Slots, i.InUse}.inWords(), short(c.now().Sub(i.Since)), i.Revision, i.Address,
			})
		}
		if err := c.print("\n"); err != nil {
			return err
		}
		if err := c.table("", rows); err != nil {
			return err
		}
	}
	config, err := json.MarshalIndent(s.Config, "", "  ")
	if err != nil {
		return fmt.Errorf("the configuration of %s: %w", s.Name, err)
	}
	return c.print("\nConfiguration:\n%s\n", harmlessJSON(string(config)))
}

// stateInWords is the state, and of a suspended service the operator's words.
func (s serviceDetails) stateInWords() string {
	if s.Suspension == nil {
		return string(s.State)
	}
	return fmt.Sprintf("%s (%s)", s.State, s.Suspension.Reason)
}

// inWords names what there is, and says `none` if there is nothing.
func (n instanceCounts) inWords() string {
	var parts []string
	for _, p := range []struct {
		count int
		state string
	}{{n.Ready, "ready"}, {n.Starting, "starting"}, {n.Ejected, "ejected"}, {n.Draining, "draining"}} {
		if p.count > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.count, p.state))
		}
	}
	if parts == nil {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// briefMost is how much of a message stands in the table of all services. The
// whole of it, which may be lines of a program's output, is shown of one.
const briefMost = 80

// brief returns the beginning of a message: its first line, cut.
func brief(message string) string {
	line, _, more := strings.Cut(message, "\n")
	if runes := []rune(line); len(runes) > briefMost {
		line, more = string(runes[:briefMost]), true
	}
	if more {
		line += " ..."
	}
	return line
}

package command

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddy-usher/usher/caddymodule/hub"
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
	var list []hub.ServiceSummary
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
			slotsInWords(s.Slots), waitingInWords(s), coldStartInWords(s), s.Backend, "",
		}
		if s.LastError != nil {
			row[len(row)-1] = brief(*s.LastError)
		} else if s.Start != nil && s.Start.Problem != "" {
			row[len(row)-1] = brief(s.Start.Problem)
		}
		rows = append(rows, row)
	}
	return c.table("", rows)
}

// inWords is `12 of 40`, or `12` where there is no limit, or no slot: what is
// inside then is on instances that take no more.
func slotsInWords(s hub.SlotCounts) string {
	switch {
	case s.Total == nil, *s.Total == 0 && s.InUse == 0:
		return strconv.Itoa(s.InUse)
	case *s.Total == 0:
		return fmt.Sprintf("%d, draining", s.InUse)
	}
	return fmt.Sprintf("%d of %d", s.InUse, *s.Total)
}

// waitingInWords is `4 + 1 page + 3 tasks, for 12s`: the requests in the queue, the
// waiting pages in browsers, the stored requests, and how long the oldest request waits.
func waitingInWords(s hub.ServiceSummary) string {
	pages := ""
	if s.Visitors > 0 {
		pages = " + " + hub.Several(s.Visitors, "page")
	}
	if s.Tasks > 0 {
		pages += " + " + hub.Several(s.Tasks, "task")
	}
	if s.Waiting == 0 {
		return "0" + pages
	}
	return fmt.Sprintf("%d%s, for %s", s.Waiting, pages, hub.Short(time.Duration(s.OldestWaitMS)*time.Millisecond))
}

// boundInWords says how many of those that wait another instance would not help.
func boundInWords(s hub.ServiceSummary) string {
	if s.WaitingBound == 0 {
		return ""
	}
	return fmt.Sprintf("; %d of them for the instance of their session", s.WaitingBound)
}

// sessionInWords says for how long an instance is kept for its sessions.
func sessionInWords(i hub.InstanceDetails, now time.Time) string {
	if left := i.SessionUntil.Sub(now); left > 0 {
		return "for " + hub.Short(left)
	}
	return "-"
}

// waitersInWords is the same within a sentence.
func waitersInWords(s hub.ServiceSummary) string {
	since := hub.Short(time.Duration(s.OldestWaitMS) * time.Millisecond)
	if s.Waiting == 1 {
		return "1 waiting for " + since
	}
	return fmt.Sprintf("%d waiting, the oldest for %s", s.Waiting, since)
}

func coldStartInWords(s hub.ServiceSummary) string {
	if s.ColdStarts == 0 {
		return "-"
	}
	return hub.Short(time.Duration(s.LastColdStartMS) * time.Millisecond)
}

func (c *console) show(names []string) error {
	var s hub.ServiceDetails
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
		{"State:", stateInWords(s)},
		{"Target:", fmt.Sprintf("%d, between %d and %d", s.Target, s.Min, s.Max)},
		{"Instances:", instancesInWords(s.Instances)},
		{"In use:", slotsInWords(s.Slots)},
		{"Waiting:", waitingInWords(s.ServiceSummary) + boundInWords(s.ServiceSummary)},
	}
	rows = append(rows, reasonsToStay(s)...)
	if s.SessionKeys != nil {
		rows = append(rows, []string{"Sessions:", hub.Several(*s.SessionKeys, "key") + " remembered"})
	}
	if s.ColdStarts > 0 {
		rows = append(rows, []string{"Cold starts:", fmt.Sprintf("%d, the last took %s", s.ColdStarts, coldStartInWords(s.ServiceSummary))})
	}
	if start := s.Start.InWords(s.State, c.now()); start != "" {
		rows = append(rows, []string{"Start:", start})
	}
	if s.LastError != nil {
		rows = append(rows, onRows("Last error:", *s.LastError)...)
	}
	if known := s.Start.KnownInWords(); known != "" {
		rows = append(rows, onRows("This start:", known)...)
	}
	if err := c.table("", rows); err != nil {
		return err
	}
	if len(s.InstanceList) > 0 {
		rows := c.instanceRows(s.InstanceList)
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

// reasonsToStay are those beside requests for which instances are kept.
func reasonsToStay(s hub.ServiceDetails) (rows [][]string) {
	if s.NeededBy != "" {
		rows = append(rows, []string{"Needed by:", s.NeededBy})
	}
	for _, i := range s.InstanceList {
		if i.Busy != "" {
			rows = append(rows, []string{"Busy:", i.ID + ": " + harmless(i.Busy)})
		}
	}
	return rows
}

// instanceRows is the table of the instances. It tells of sessions where there
// are any.
func (c *console) instanceRows(list []hub.InstanceDetails) [][]string {
	head := []string{"INSTANCE", "STATE", "IN USE", "AGE", "REVISION", "ADDRESS"}
	sessions := slices.ContainsFunc(list, func(i hub.InstanceDetails) bool { return !i.SessionUntil.IsZero() })
	if sessions {
		head = slices.Insert(head, 4, "SESSIONS")
	}
	rows := [][]string{head}
	for _, i := range list {
		row := []string{
			i.ID, string(i.State), slotsInWords(hub.SlotCounts{Total: i.Slots, InUse: i.InUse}), hub.Short(c.now().Sub(i.Since)), i.Revision, i.Address,
		}
		if sessions {
			row = slices.Insert(row, 4, sessionInWords(i, c.now()))
		}
		rows = append(rows, row)
	}
	return rows
}

// stateInWords is the state, and of a suspended service the operator's words.
func stateInWords(s hub.ServiceDetails) string {
	if s.Suspension == nil {
		return string(s.State)
	}
	return fmt.Sprintf("%s (%s)", s.State, s.Suspension.Reason)
}

// inWords names what there is, and says `none` if there is nothing.
func instancesInWords(n hub.InstanceCounts) string {
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

// onRows puts a message on as many rows as it has lines: lines of output are
// read as lines.
func onRows(label, message string) [][]string {
	var rows [][]string
	for line := range strings.SplitSeq(strings.TrimRight(message, "\n"), "\n") {
		rows = append(rows, []string{label, line})
		label = ""
	}
	return rows
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

package command

import (
	"bytes"
	"cmp"
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
	unused, err := c.unused()
	if err != nil {
		return err
	}
	if len(list) == 0 && unused == nil {
		_, err := fmt.Fprintln(c.err, "There are no services.")
		return err
	}
	made := slices.ContainsFunc(list, func(s hub.ServiceSummary) bool { return s.Origin != "" })
	head := []string{"NAME", "STATE", "READY", "TARGET", "LIMITS", "IN USE", "WAITING", "COLD START", "BACKEND"}
	if made {
		head = append(head, "ORIGIN", "OWNER", "REVISION")
	}
	rows := [][]string{append(head, "LAST ERROR")}
	for _, s := range list {
		row := []string{
			s.Name, string(s.State), strconv.Itoa(s.Instances.Ready), strconv.Itoa(s.Target), fmt.Sprintf("%d..%d", s.Min, s.Max),
			slotsInWords(s.Slots), waitingInWords(s), coldStartInWords(s), s.Backend,
		}
		if made {
			row = append(row, originInWords(s.Origin), s.Owner, numberInWords(s.Revision))
		}
		rows = append(rows, append(row, brief(troubleOf(s))))
	}
	if len(list) > 0 {
		if err := c.table("", rows); err != nil {
			return err
		}
	}
	return c.listUnused(unused)
}

// unused returns rows about the services that do not run as their definitions say;
// nil if there are none.
func (c *console) unused() ([][]string, error) {
	var r hub.RegistryView
	if _, err := c.ask(http.MethodGet, "registry", nil, &r); isRefused(err) {
		return nil, nil // the configuration has no registry
	} else if err != nil {
		return nil, err
	}
	var rows [][]string
	for _, v := range r.Unused {
		reason := v.Trouble
		if v.Shadowed {
			reason = shadowedInWords
		}
		rows = append(rows, []string{v.Name, originInWords(v.Origin), v.Owner, strconv.Itoa(v.Revision), brief(reason)})
	}
	for _, f := range r.Discover {
		if f.Trouble != "" {
			rows = append(rows, []string{f.Platform, hub.OriginDiscovered, "", "", brief("the platform cannot be asked: " + f.Trouble)})
		}
		for _, o := range f.Rejected {
			rows = append(rows, []string{cmp.Or(o.Name, "-"), hub.OriginDiscovered, "", "", brief(f.Platform + " " + o.Object + ": " + o.Reason)})
		}
	}
	for _, o := range r.Unreadable {
		rows = append(rows, []string{cmp.Or(o.Name, o.Object), originInWords(hub.OriginRunTime), "", "", brief("what is stored of it cannot be read: " + o.Reason)})
	}
	return rows, nil
}

func (c *console) listUnused(rows [][]string) error {
	if rows == nil {
		return nil
	}
	if err := c.print("\n"); err != nil {
		return err
	}
	return c.table("", append([][]string{{"NOT IN FORCE", "ORIGIN", "OWNER", "REVISION", "REASON"}}, rows...))
}

const shadowedInWords = "the configuration has a service of that name"

// originInWords says where a service comes from.
func originInWords(origin string) string {
	switch origin {
	case "":
		return "configuration"
	case hub.OriginRunTime:
		return "run time"
	}
	return origin
}

// numberInWords is the number of a revision, if there is one.
func numberInWords(revision int) string {
	if revision == 0 {
		return ""
	}
	return strconv.Itoa(revision)
}

// troubleOf is what is wrong with a service, the weightiest first.
func troubleOf(s hub.ServiceSummary) string {
	switch {
	case s.Trouble != "":
		return "its newest definition cannot be used: " + s.Trouble
	case s.LastError != nil:
		return *s.LastError
	case s.FellBack != nil:
		return fmt.Sprintf("revision %d could not be started: %s", s.FellBack.Revision, s.FellBack.Reason)
	case s.Start != nil:
		return s.Start.Problem
	}
	return ""
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
	k, err := c.know(names[0])
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(k.raw)
	}
	if k.Config == nil {
		return c.table("", append([][]string{{"Service:", k.Name}, {"State:", "does not run"}}, c.madeRows(k.Made)...))
	}
	s := k.ServiceDetails
	rows := [][]string{{"Service:", s.Name}, {"Backend:", s.Backend}}
	rows = append(rows, c.madeRows(s.Made)...)
	rows = append(rows, [][]string{
		{"State:", stateInWords(s)},
		{"Target:", fmt.Sprintf("%d, between %d and %d", s.Target, s.Min, s.Max)},
		{"Instances:", instancesInWords(s.Instances)},
		{"In use:", slotsInWords(s.Slots)},
		{"Waiting:", waitingInWords(s.ServiceSummary) + boundInWords(s.ServiceSummary)},
	}...)
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

// madeRows say where a service comes from that is not of the configuration, and
// whether it runs as it was defined last.
func (c *console) madeRows(v *hub.MadeView) (rows [][]string) {
	switch {
	case v == nil:
		return nil
	case v.Shadowed:
		return [][]string{{"Origin:", "configuration"}, {"Not in force:", fmt.Sprintf("revision %d of a service of that name that was made at run time", v.Revision)}}
	}
	origin := originInWords(v.Origin)
	if v.Source != "" {
		origin += ": " + v.Source
	}
	revision := strconv.Itoa(v.Revision)
	if !v.At.IsZero() {
		revision += fmt.Sprintf(", %s ago", hub.Short(c.now().Sub(v.At)))
	}
	if v.By != "" {
		revision += ", by " + v.By
	}
	rows = [][]string{{"Origin:", origin}, {"Owner:", v.Owner}, {"Revision:", revision}, {"Definition:", definitionInWords(v.Definition)}}
	if v.Owner == "" {
		rows = slices.Delete(rows, 1, 2)
	}
	switch {
	case !v.Deleted.IsZero():
		rows = append(rows, []string{"Deleted:", hub.Short(c.now().Sub(v.Deleted)) + " ago; 'caddy usher rollback " + v.Name + "' brings it back"})
	case v.Replacing:
		rows = append(rows, []string{"Replacing:", "instances of before serve until those of this revision are ready"})
	}
	if v.FellBack != nil {
		rows = append(rows, onRows("Fell back:", fmt.Sprintf("revision %d is in force, because %d could not be started: %s", v.InForce, v.FellBack.Revision, v.FellBack.Reason))...)
	}
	if v.Trouble != "" {
		rows = append(rows, onRows("Trouble:", "its definition cannot be used: "+v.Trouble)...)
	}
	return rows
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

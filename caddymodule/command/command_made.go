package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

// madeOptions are the flags of commands that change services made at run time.
type madeOptions struct {
	file       string
	createOnly bool
	ifMatch    string
	owner      string
	wait       time.Duration
}

// waitForChange is how long it is waited for a change to be in force. It is longer
// than many a program takes to start, and shorter than people wait without a word.
const waitForChange = time.Minute

// addMade adds the commands about services that are made while Caddy runs.
func (cs commands) addMade(cmd *cobra.Command) {
	add := func(use, short string, args cobra.PositionalArgs, run func(*console, madeOptions, []string) error) (*cobra.Command, *madeOptions) {
		o := new(madeOptions)
		sub := &cobra.Command{Use: use, Short: short, Args: args, ValidArgsFunction: cs.complete, RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cs.console(cmd)
			if err == nil {
				err = run(c, *o, args)
			}
			return exit(cmd, err)
		}}
		cmd.AddCommand(sub)
		return sub, o
	}
	waits := func(sub *cobra.Command, o *madeOptions) {
		sub.Flags().DurationVarP(&o.wait, "wait", "w", waitForChange, "For how long at most to wait until the change is in force; 0: not at all")
	}
	apply, o := add("apply -f <file> [<service>]", "Makes and changes services at run time, as a file says", cobra.MaximumNArgs(1), (*console).apply)
	waits(apply, o)
	apply.Flags().StringVarP(&o.file, "file", "f", "", "File with the definitions, as JSON or in the form of a Caddyfile; - for the standard input")
	apply.Flags().BoolVarP(&o.createOnly, "create-only", "", false, "Change no service that there is")
	apply.Flags().StringVarP(&o.ifMatch, "if-match", "", "", "Change the service only if it has this ETag")
	apply.Flags().StringVarP(&o.owner, "owner", "", "", "Whose services these are. Default: as it was")
	add("get <service>", "Prints the definition of a service that was made at run time", cobra.ExactArgs(1), (*console).get)
	waits(add("edit <service>", "Changes the definition of a service in your editor ($VISUAL, $EDITOR)", cobra.ExactArgs(1), (*console).edit))
	add("history <service>", "Lists the revisions of a service that was made at run time", cobra.ExactArgs(1), (*console).history)
	waits(add("rollback <service> [<revision>]", "Makes an earlier revision the newest one, or brings a deleted service back", cobra.RangeArgs(1, 2), (*console).rollback))
	add("delete <service>...", "Deletes services that were made at run time", cobra.MinimumNArgs(1), (*console).deleteMade)
}

// known is what the admin API says of a service. It has no Made if the service was
// not made at run time, and nothing but Made if it does not run.
type known struct {
	hub.ServiceDetails
	raw json.RawMessage
}

// know asks for a service.
func (c *console) know(name string) (*known, error) {
	var k known
	var err error
	if k.raw, err = c.ask(http.MethodGet, servicePath(name), nil, &k.ServiceDetails); err != nil {
		return nil, err
	}
	if k.Made != nil {
		return &k, nil
	}
	var v hub.MadeView
	if json.Unmarshal(k.raw, &v) == nil && len(v.Definition) > 0 {
		k.ServiceDetails = hub.ServiceDetails{Made: &v}
		k.Name = v.Name
	}
	return &k, nil
}

// knowMade asks for a service that was made at run time.
func (c *console) knowMade(name string) (*known, error) {
	k, err := c.know(name)
	if err == nil && k.Made == nil {
		return nil, &refusedCall{http.StatusNotFound, fmt.Sprintf("the service %s is in the configuration, not made at run time: see 'caddy usher show %s'", name, name)}
	}
	return k, err
}

func (c *console) get(_ madeOptions, args []string) error {
	k, err := c.knowMade(args[0])
	if err != nil {
		return err
	}
	if c.json {
		raw, err := json.Marshal(k.Made)
		if err != nil {
			return err
		}
		return c.printJSON(raw)
	}
	if !k.Made.Deleted.IsZero() {
		_, _ = fmt.Fprintf(c.err, "%s is deleted. This is what it was.\n", k.Name)
	}
	return c.printJSON(k.Made.Definition)
}

func (c *console) history(_ madeOptions, args []string) error {
	name := args[0]
	var list []hub.RevisionView
	raw, err := c.ask(http.MethodGet, servicePath(name, "revisions"), nil, &list)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(raw)
	}
	k, err := c.knowMade(name)
	if err != nil {
		return err
	}
	rows := [][]string{{"REVISION", "AGE", "BY", "STATE", "DEFINITION"}}
	for _, r := range list {
		rows = append(rows, []string{
			strconv.Itoa(r.Number), hub.Short(c.now().Sub(r.At)), r.By, revisionInWords(k.Made, r.Number), definitionInWords(r.Definition),
		})
	}
	return c.table("", rows)
}

// revisionInWords says what became of a revision.
func revisionInWords(v *hub.MadeView, number int) string {
	inForce := v.Revision
	if v.FellBack != nil {
		inForce = v.InForce
	}
	switch {
	case !v.Deleted.IsZero() && number == v.Revision:
		return "deleted"
	case v.FellBack != nil && number == v.FellBack.Revision:
		return "failed: " + brief(v.FellBack.Reason)
	case number == inForce && v.Deleted.IsZero():
		return "in force"
	}
	return "-"
}

// definitionInWords is a definition on one line, as it would stand in a Caddyfile.
func definitionInWords(raw json.RawMessage) string {
	var d struct {
		Template string            `json:"template"`
		Params   map[string]string `json:"params"`
		Hosts    []string          `json:"hosts"`
		Fallback string            `json:"fallback"`
		Service  struct {
			Backend struct {
				Type string `json:"type"`
			} `json:"backend"`
		} `json:"service"`
	}
	if json.Unmarshal(raw, &d) != nil {
		return string(raw)
	}
	words := []string{"backend " + d.Service.Backend.Type}
	if d.Template != "" {
		words = []string{"template " + d.Template}
	}
	for _, name := range slices.Sorted(maps.Keys(d.Params)) {
		words = append(words, name+"="+d.Params[name])
	}
	if len(d.Hosts) > 0 {
		words = append(words, "hosts "+strings.Join(d.Hosts, " "))
	}
	if d.Fallback != "" {
		words = append(words, "fallback "+d.Fallback)
	}
	return strings.Join(words, ", ")
}

func (c *console) rollback(o madeOptions, args []string) error {
	name := args[0]
	var body struct {
		Revision int `json:"revision,omitempty"`
	}
	if len(args) > 1 {
		var err error
		if body.Revision, err = strconv.Atoi(args[1]); err != nil || body.Revision < 1 {
			return fmt.Errorf("'%s' is no number of a revision: see 'caddy usher history %s'", args[1], name)
		}
	}
	k, err := c.knowMade(name)
	if err != nil {
		return err
	}
	did := "as in the revision before"
	if body.Revision > 0 {
		did = fmt.Sprintf("as in revision %d", body.Revision)
	}
	if !k.Made.Deleted.IsZero() {
		did = "brought back"
	}
	return c.change(name, o.wait, k, &change{method: http.MethodPost, path: servicePath(name, "rollback"), conditions: matching(k), body: body, did: did})
}

// matching is the condition that a service is as it is known.
func matching(k *known) http.Header {
	if k.Made == nil || k.Made.ETag == "" || !k.Made.Deleted.IsZero() {
		return nil
	}
	return http.Header{"If-Match": {k.Made.ETag}}
}

func (c *console) deleteMade(_ madeOptions, names []string) error {
	return c.each(names, func(name string) error {
		k, err := c.knowMade(name)
		if err != nil {
			return err
		}
		resp, err := c.callIf(http.MethodDelete, servicePath(name), matching(k), nil)
		if err != nil {
			return err
		}
		raw, err := c.decode(resp, nil)
		switch {
		case err != nil:
			return err
		case c.json && len(raw) > 0:
			return c.printJSON(raw)
		case c.json:
			return nil
		}
		return c.print("%s is deleted. For a day, 'caddy usher rollback %s' brings it back.\n", name, name)
	})
}

// change is a change of a service that is made at run time.
type change struct {
	method, path string
	conditions   http.Header
	body         any
	did          string // what it does to a service that there is; empty: changes it
}

// appliedView is what became of a service.
type appliedView struct {
	Name    string        `json:"name"`
	Did     string        `json:"did"`      // created, changed, unchanged, ...
	InForce bool          `json:"in_force"` // as it stands in Made
	Says    string        `json:"says"`     // how it is, or why it is not in force
	Made    *hub.MadeView `json:"made"`
}

// change makes a change of a service that was as known; before is nil if there was
// none. It waits until it is known what becomes of it, and says so.
func (c *console) change(name string, wait time.Duration, before *known, ch *change) error {
	var v hub.MadeView
	resp, err := c.callIf(ch.method, ch.path, ch.conditions, ch.body)
	if err != nil {
		return err
	}
	if _, err := c.decode(resp, &v); err != nil {
		return err
	}
	did := ch.did
	switch {
	case before == nil || before.Made == nil || ch.did == "" && !before.Made.Deleted.IsZero():
		did = "created"
	case before.Made.ETag == v.ETag && before.Made.Deleted.IsZero() && before.Made.FellBack != nil:
		did = "tried again"
	case before.Made.ETag == v.ETag && before.Made.Deleted.IsZero():
		did = "unchanged"
	case did == "":
		did = "changed"
	}
	k, out, err := c.settle(name, v.Revision, wait)
	if err != nil {
		return err
	}
	words := fmt.Sprintf("%s is %s: revision %d. %s", name, did, v.Revision, out.words)
	if c.json {
		raw, err := json.Marshal(appliedView{Name: name, Did: did, InForce: out.inForce, Says: out.words, Made: k.Made})
		if err == nil {
			err = c.printJSON(raw)
		}
		if err != nil {
			return err
		}
	} else if out.inForce {
		return c.print("%s\n", harmless(words))
	}
	if !out.inForce {
		return &notInForce{words}
	}
	return nil
}

// notInForce is the error of a change that was stored and is not in force.
type notInForce struct{ message string }

func (e *notInForce) Error() string   { return e.message }
func (e *notInForce) exitStatus() int { return exitNotInForce }

// result is what has become of a change.
type result struct {
	final   bool // it will not become another one by itself soon
	inForce bool
	words   string // a sentence
}

// settlePause is the time between two looks at what becomes of a change.
const settlePause = 200 * time.Millisecond

// settle waits until it is known what becomes of a revision, at most that long.
func (c *console) settle(name string, revision int, wait time.Duration) (*known, result, error) {
	for end := time.Now().Add(wait); ; time.Sleep(settlePause) {
		k, err := c.know(name)
		if refused, ok := errors.AsType[*refusedCall](err); ok && refused.status == http.StatusNotFound {
			return &known{}, result{true, false, "It was deleted meanwhile."}, nil
		}
		if err != nil {
			return nil, result{}, err
		}
		out := resultOf(k, revision)
		if out.final || wait == 0 {
			return k, out, nil
		}
		if !time.Now().Before(end) {
			out.words += fmt.Sprintf(" That is so after %s.", hub.Short(wait))
			return k, out, nil
		}
	}
}

// resultOf says what has become of a revision.
func resultOf(k *known, revision int) result {
	m := k.Made
	if m == nil {
		return result{true, false, "The configuration has a service of that name, which is in force."}
	}
	switch {
	case !m.Deleted.IsZero():
		return result{true, false, "It was deleted meanwhile."}
	case m.Revision > revision:
		return result{true, false, fmt.Sprintf("It was changed meanwhile: its revision is %d.", m.Revision)}
	case m.Shadowed:
		return result{true, false, "The configuration has a service of that name, which is in force."}
	case m.Trouble != "":
		return result{true, false, "Its definition cannot be used, and what it had before stays: " + m.Trouble}
	case m.FellBack != nil:
		return result{true, false, fmt.Sprintf("It could not be started, so revision %d is in force again: %s", m.InForce, m.FellBack.Reason)}
	case m.Replacing:
		return result{false, false, "Its instances are not ready yet, and those of before serve on." + reasonOf(k)}
	}
	switch m.State {
	case "waking":
		return result{false, false, "Its first instance is not ready yet." + reasonOf(k)}
	case "failing":
		return result{true, false, "It cannot be started." + reasonOf(k)}
	case "suspended":
		return result{true, true, "It is suspended: 'caddy usher resume " + k.Name + "' turns it on."}
	case "asleep":
		if k.LastError != nil {
			// No request waits, so it is not tried again by itself.
			return result{true, false, "It is asleep, and its last start failed. The next request starts it again." + reasonOf(k)}
		}
		return result{true, true, "It is asleep: the next request starts it."}
	}
	return result{true, true, fmt.Sprintf("It is in force: %s.", instancesInWords(k.Instances))}
}

// reasonOf says why no instance is ready yet, where that is known.
func reasonOf(k *known) string {
	switch {
	case k.LastError != nil:
		return " " + *k.LastError
	case k.Start != nil && k.Start.Problem != "":
		return " " + k.Start.Problem
	case k.Start != nil && k.Start.Waits != "":
		return " The next start " + k.Start.Waits + "."
	}
	return ""
}

// ownerQuery is the part of a path that says whose a service is.
func ownerQuery(owner string) string {
	if owner == "" {
		return ""
	}
	return "?owner=" + url.QueryEscape(owner)
}

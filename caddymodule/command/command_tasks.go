package command

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

// taskOptions say which tasks a command is about.
type taskOptions struct {
	service, state string
	limit          int
}

// tasksShown is how many tasks `tasks list` prints.
const tasksShown = 100

// addTasks adds the commands about stored requests.
func (cs commands) addTasks(cmd *cobra.Command) {
	tasks := &cobra.Command{Use: "tasks", Short: "Shows and operates stored requests", Args: cobra.NoArgs}
	cmd.AddCommand(tasks)
	add := func(use, short string, args cobra.PositionalArgs, run func(*console, taskOptions, []string) error) *cobra.Command {
		var o taskOptions
		sub := &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cs.console(cmd)
			if err == nil {
				err = run(c, o, args)
			}
			return exit(cmd, err)
		}}
		flags := sub.Flags()
		if use != "show <task>" {
			flags.StringVarP(&o.service, "service", "s", "", "Only the tasks of this service")
			flags.StringVarP(&o.state, "state", "", "", "Only the tasks in this state: pending, running, done, failed, dead or cancelled")
		}
		if use == "list" {
			flags.IntVarP(&o.limit, "lines", "n", tasksShown, "How many tasks are printed, at most 1000")
		}
		tasks.AddCommand(sub)
		return sub
	}
	add("list", "Lists tasks, and how many there are", cobra.NoArgs, (*console).listTasks)
	add("show <task>", "Shows a task", cobra.ExactArgs(1), (*console).showTask)
	for _, verb := range []struct{ name, short string }{
		{"cancel", "Cancels tasks, by their ids, or all of a service or in a state"},
		{"retry", "Lets tasks that failed, are dead or were cancelled be tried again"},
		{"purge", "Removes tasks that have ended, with their results"},
	} {
		add(verb.name+" [<task>...]", verb.short, cobra.ArbitraryArgs, func(c *console, o taskOptions, args []string) error {
			return c.operateTasks(verb.name, o, args)
		})
	}
}

// tasksPath is the path of a page of tasks in the admin API.
func tasksPath(o taskOptions, after string, limit int) string {
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	for name, v := range map[string]string{"service": o.service, "state": o.state, "after": after} {
		if v != "" {
			q.Set(name, v)
		}
	}
	return "tasks?" + q.Encode()
}

func (c *console) listTasks(o taskOptions, _ []string) error {
	var list hub.TaskList
	raw, err := c.ask(http.MethodGet, tasksPath(o, "", o.limit), nil, &list)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(raw)
	}
	rows := [][]string{{"SERVICE", "PENDING", "RUNNING", "DONE", "FAILED", "DEAD", "CANCELLED", "OLDEST"}}
	for _, q := range list.Queues {
		if o.service != "" && q.Service != o.service {
			continue
		}
		row := []string{q.Service}
		for _, n := range []int{q.Pending, q.Running, q.Done, q.Failed, q.Dead, q.Cancelled} {
			row = append(row, strconv.Itoa(n))
		}
		rows = append(rows, append(row, hub.Short(time.Duration(q.OldestMS)*time.Millisecond)))
	}
	if err := c.table("", rows); err != nil || len(list.Tasks) == 0 {
		return err
	}
	rows = [][]string{{"TASK", "SERVICE", "STATE", "ATTEMPTS", "AGE", "REQUEST", "REASON"}}
	for _, t := range list.Tasks {
		rows = append(rows, []string{
			t.ID, t.Service, t.State, strconv.Itoa(t.Attempts), hub.Short(c.now().Sub(t.Accepted)), t.Method + " " + t.URI, t.Reason,
		})
	}
	if err := c.print("\n"); err != nil {
		return err
	}
	if err := c.table("", rows); err != nil || list.Next == "" {
		return err
	}
	return c.print("\nThere are more: see --service, --state and --lines.\n")
}

func (c *console) showTask(_ taskOptions, args []string) error {
	var t hub.TaskSummary
	raw, err := c.ask(http.MethodGet, "tasks/"+url.PathEscape(args[0]), nil, &t)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(raw)
	}
	rows := [][]string{
		{"TASK", t.ID},
		{"SERVICE", t.Service},
		{"STATE", t.State},
		{"REASON", t.Reason},
		{"REQUEST", fmt.Sprintf("%s %s, %d bytes", t.Method, t.URI, t.BodySize)},
		{"CLIENT", t.Client},
		{"GROUP", t.Group},
		{"ATTEMPTS", strconv.Itoa(t.Attempts)},
	}
	if t.Progress != nil {
		rows = append(rows, []string{"PROGRESS", strconv.Itoa(*t.Progress) + "%"})
	}
	if t.Status != 0 {
		rows = append(rows, []string{"ANSWER", fmt.Sprintf("status %d, %d bytes", t.Status, t.Size)})
	}
	for _, at := range []struct {
		name string
		time *time.Time
	}{{"ACCEPTED", &t.Accepted}, {"DUE", t.Due}, {"STARTED", t.Started}, {"EXPIRES", t.Expires}, {"ENDED", t.Ended}} {
		if at.time != nil {
			rows = append(rows, []string{at.name, at.time.In(c.now().Location()).Format(time.RFC3339)})
		}
	}
	var filled [][]string
	for _, row := range rows {
		if row[1] != "" {
			filled = append(filled, row)
		}
	}
	return c.table("", filled)
}

// operateTasks does something to the tasks with these ids, or to all that the options
// name.
func (c *console) operateTasks(verb string, o taskOptions, ids []string) error {
	all := o.service != "" || o.state != ""
	if all == (len(ids) > 0) {
		return errors.New("give the ids of tasks, or --service or --state for all of those")
	}
	if all {
		var err error
		if ids, err = c.tasksToOperate(verb, o); err != nil {
			return err
		}
	}
	done := 0
	var first error
	for _, id := range ids {
		switch err := c.operateTask(verb, id); {
		case err == nil:
			done++
		case all && isRefused(err):
			// It is in another state by now.
		case first == nil:
			first = err
		default:
			_, _ = fmt.Fprintln(c.err, "Error:", harmless(err.Error()))
		}
	}
	if first != nil || c.json {
		return first
	}
	words := map[string]string{"cancel": "cancelled, or will be when it has ended", "retry": "tried again", "purge": "removed"}
	return c.print("%s: %s\n", hub.Several(done, "task"), words[verb])
}

func isRefused(err error) bool {
	_, ok := errors.AsType[*refusedCall](err)
	return ok
}

// tasksToOperate returns the ids of the tasks to which that can be done.
func (c *console) tasksToOperate(verb string, o taskOptions) (ids []string, err error) {
	possible := map[string][]string{
		"cancel": {"pending", "running"}, "retry": {"failed", "dead", "cancelled"}, "purge": {"done", "failed", "dead", "cancelled"},
	}[verb]
	for _, state := range possible {
		if o.state != "" && o.state != state {
			continue
		}
		page := o
		page.state = state
		for after := ""; ; {
			var list hub.TaskList
			if _, err := c.ask(http.MethodGet, tasksPath(page, after, 1000), nil, &list); err != nil {
				return nil, err
			}
			for _, t := range list.Tasks {
				ids = append(ids, t.ID)
			}
			if after = list.Next; after == "" {
				break
			}
		}
	}
	return ids, nil
}

func (c *console) operateTask(verb, id string) error {
	method, path := http.MethodPost, "tasks/"+url.PathEscape(id)+"/"+verb
	if verb == "purge" {
		method, path = http.MethodDelete, "tasks/"+url.PathEscape(id)
	}
	raw, err := c.ask(method, path, nil, nil)
	if err == nil && c.json {
		err = c.printJSON(raw)
	}
	return err
}

package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "usher",
		Usage: "<command>",
		Short: "Shows and operates the services of a running Usher",
		Long: `
Shows what Usher runs, and why, and operates it, through the admin API of a
running Caddy.

The admin API is found as by Caddy's own commands: --address, else what
--config says, else the default address.

With --json the answers of the admin API are printed as they are: an object or
array per command, one object per line and event from 'watch', and for each
line of output from 'logs --follow'.

Exit status: 0 when it is done; 1 when the command is wrong, or Caddy does not
answer; 4 when there is no such service, split, task or cluster; 5 when Usher
refuses, such as to wake a suspended service, or to put one to sleep that an
awake one needs; 6 when a changed service was stored and is not in force,
because it cannot be started.`,
		CobraFunc: commands{time.Now}.add,
	})
}

// The exit statuses beyond Caddy's own.
const (
	exitNoService  = 4
	exitRefused    = 5
	exitNotInForce = 6
)

// commands are what `caddy usher` can do.
type commands struct {
	now func() time.Time // in the time zone in which times are shown
}

func (cs commands) add(cmd *cobra.Command) {
	flags := cmd.PersistentFlags()
	flags.StringP("address", "", "", "Address of the admin API")
	flags.StringP("config", "c", "", "Configuration file, of which the address of the admin API is read")
	flags.StringP("adapter", "a", "", "Name of the config adapter for the configuration file")
	flags.BoolP("json", "", false, "Print JSON")

	// Of a command that is not the first, cobra would take any word for a
	// wish to read the help.
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return exit(cmd, fmt.Errorf("unknown command %q: see 'caddy usher --help'", args[0]))
		}
		return cmd.Help()
	}
	add := func(use, short string, args cobra.PositionalArgs, run func(*console, []string) error) *cobra.Command {
		sub := &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cs.console(cmd)
			if err == nil {
				err = run(c, args)
			}
			return exit(cmd, err)
		}}
		cmd.AddCommand(sub)
		return sub
	}
	ofService := func(c *cobra.Command) *cobra.Command {
		c.ValidArgsFunction = cs.complete
		return c
	}
	add("list", "Lists all services", cobra.NoArgs, (*console).list)
	ofService(add("show <service>", "Shows a service, with its instances and its configuration", cobra.ExactArgs(1), (*console).show))
	ofService(add("explain <service>", "Says why a service has as many instances as it has", cobra.ExactArgs(1), (*console).explain))
	ofService(add("watch [<service>...]", "Prints every change of state, target and instances as it happens", cobra.ArbitraryArgs, (*console).watch))
	logs := ofService(add("logs <service>", "Prints the latest lines that a service's instances wrote", cobra.ExactArgs(1), (*console).logs)).Flags()
	logs.BoolP("follow", "f", false, "Go on with the lines to come, across reloads")
	logs.IntP("lines", "n", logsShown, "How many lines are printed at first")
	logs.StringP("instance", "i", "", "The id of an instance, to leave out all others")
	cluster := add("cluster", "Shows the Caddys that share instances with this one", cobra.NoArgs, (*console).cluster)
	cluster.AddCommand(&cobra.Command{
		Use: "forget <member>", Short: "Says that a Caddy has ended for sure, so that the others use its slots at once", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cs.console(cmd)
			if err == nil {
				err = c.forget(args)
			}
			return exit(cmd, err)
		},
	})
	cs.addTasks(cmd)
	cs.addSplit(cmd)
	cs.addMade(cmd)
	operate := func(verb, short string, done outcome) *cobra.Command {
		return ofService(add(verb+" <service>...", short, cobra.MinimumNArgs(1), func(c *console, names []string) error {
			return c.operate(names, verb, done, nil)
		}))
	}
	operate("wake", "Starts an instance, as a request would", always("wakes up"))
	operate("sleep", "Drains and stops all instances, until the next request", sleepInWords)
	operate("resume", "Turns a suspended service on again", always("is resumed"))
	operate("restart", "Replaces all instances, while they serve", always("is restarted"))
	ofService(add("suspend <service>...", "Turns a service off, across reloads and restarts", cobra.MinimumNArgs(1), func(c *console, names []string) error {
		return c.operate(names, "suspend", always("is suspended"), map[string]string{"reason": c.reason})
	})).Flags().StringP("reason", "r", "", "What clients are told")
}

// console is what a command works with: where it asks, and where it writes.
type console struct {
	in       io.Reader
	out, err io.Writer
	address  string
	json     bool
	reason   string
	log      logOptions
	now      func() time.Time
}

func (cs commands) console(cmd *cobra.Command) (*console, error) {
	flags := caddycmd.Flags{FlagSet: cmd.Flags()}
	address, err := caddycmd.DetermineAdminAPIAddress(flags.String("address"), nil, flags.String("config"), flags.String("adapter"))
	if err != nil {
		return nil, fmt.Errorf("the address of the admin API is not known: %w", err)
	}
	c := &console{in: cmd.InOrStdin(), out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), address: address, json: flags.Bool("json"), now: cs.now}
	if f := cmd.Flags().Lookup("reason"); f != nil {
		c.reason = f.Value.String()
	}
	if cmd.Flags().Lookup("follow") != nil {
		c.log = logOptions{flags.Bool("follow"), flags.Int("lines"), flags.String("instance")}
	}
	return c, nil
}

// exit says what went wrong, and makes it the exit status.
func exit(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	cmd.SilenceErrors = true
	_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "Error:", harmless(err.Error()))
	status, ok := errors.AsType[statusError](err)
	if !ok {
		return err
	}
	return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return status.exitStatus(), nil })(cmd, nil)
}

// statusError is an error with an exit status of its own.
type statusError interface {
	error
	exitStatus() int
}

// refusedCall is the admin API's answer to what it does not do.
type refusedCall struct {
	status  int
	message string
}

func (e *refusedCall) Error() string { return e.message }

func (e *refusedCall) exitStatus() int {
	if e.status == http.StatusNotFound {
		return exitNoService
	}
	return exitRefused
}

// refusal finds the status and the message in Caddy's error, which has them
// in its text only.
func refusal(err error) error {
	_, rest, ok := strings.Cut(err.Error(), "HTTP ")
	code, body, ok2 := strings.Cut(rest, ": ")
	status, err2 := strconv.Atoi(code)
	if !ok || !ok2 || err2 != nil {
		return nil
	}
	var answer struct {
		Error string `json:"error"`
	}
	if json.Unmarshal([]byte(body), &answer) != nil || answer.Error == "" {
		answer.Error = strings.TrimSpace(body)
	}
	return &refusedCall{status, answer.Error}
}

// call asks the admin API for what is below /usher/. The caller closes the
// body of the answer.
func (c *console) call(method, path string, body any) (*http.Response, error) {
	return c.callIf(method, path, nil, body)
}

// callIf is call, with headers that say on which condition.
func (c *console) callIf(method, path string, conditions http.Header, body any) (*http.Response, error) {
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		rd = bytes.NewReader(b)
	}
	resp, err := caddycmd.AdminAPIRequest(c.address, method, "/usher/"+path, conditions, rd)
	if err == nil {
		return resp, nil
	}
	if refused := refusal(err); refused != nil {
		return nil, refused
	}
	return nil, fmt.Errorf("the admin API at %s does not answer (%w): if Caddy runs, name the address with --address", c.address, err)
}

// ask decodes an answer into v, and returns it as it came, too.
func (c *console) ask(method, path string, body, v any) (json.RawMessage, error) {
	resp, err := c.call(method, path, body)
	if err != nil {
		return nil, err
	}
	return c.decode(resp, v)
}

// decode reads an answer to its end, and decodes it into v.
func (c *console) decode(resp *http.Response, v any) (json.RawMessage, error) {
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("reading the answer of the admin API: %w", err)
	}
	if v != nil {
		if err := json.Unmarshal(raw, v); err != nil {
			return nil, fmt.Errorf("the answer of the admin API at %s is not Usher's: %w", c.address, err)
		}
	}
	return raw, nil
}

// servicePath is the path of a service in the admin API.
func servicePath(name string, more ...string) string {
	return strings.Join(append([]string{"services", url.PathEscape(name)}, more...), "/")
}

// An outcome is what is true of a service once an operation is done, as a
// sentence of which its name is the subject.
type outcome func(hub.ServiceSummary) string

func always(words string) outcome {
	return func(hub.ServiceSummary) string { return words + "." }
}

// sleepInWords says whether a service stays asleep.
func sleepInWords(s hub.ServiceSummary) string {
	waiting := s.Waiting + s.Visitors + s.Tasks
	if waiting == 0 {
		return "goes to sleep."
	}
	are := "are"
	if waiting == 1 {
		are = "is"
	}
	return fmt.Sprintf("wakes again at once: %s %s waiting. Use 'caddy usher suspend %s' to stop it anyway.",
		hub.Several(waiting, "request"), are, s.Name)
}

// operate does something to each of the services. What fails for one is not
// held against the others; the first failure is the command's.
func (c *console) operate(names []string, verb string, done outcome, body any) error {
	return c.each(names, func(name string) error {
		var s hub.ServiceSummary
		raw, err := c.ask(http.MethodPost, servicePath(name, verb), body, &s)
		switch {
		case err == nil && c.json:
			err = c.printJSON(raw)
		case err == nil:
			err = c.print("%s %s\n", s.Name, harmless(done(s)))
		}
		return err
	})
}

// each does something with each of the services. It returns the first failure, and
// prints the others.
func (c *console) each(names []string, do func(name string) error) error {
	var first error
	for _, name := range names {
		switch err := do(name); {
		case err == nil:
		case first == nil:
			first = err
		default:
			_, _ = fmt.Fprintln(c.err, "Error:", harmless(err.Error()))
		}
	}
	return first
}

func (cs commands) complete(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := cs.console(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var list []hub.ServiceSummary
	if _, err := c.ask(http.MethodGet, "services", nil, &list); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, s := range list {
		names = append(names, s.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (c *console) print(format string, args ...any) error {
	_, err := fmt.Fprintf(c.out, format, args...)
	return err
}

// printJSON prints what the admin API said, indented.
func (c *console) printJSON(raw json.RawMessage) error {
	var out bytes.Buffer
	if err := json.Indent(&out, bytes.TrimSpace(raw), "", "  "); err != nil {
		return fmt.Errorf("the answer of the admin API at %s is not Usher's: %w", c.address, err)
	}
	return c.print("%s\n", harmlessJSON(out.String()))
}

// harmless makes text that comes from a platform or a program fit for a
// terminal: what is not to be seen, escape sequences above all, is spelled out.
func harmless(s string) string {
	return replaceUnseen(s, func(r rune) string {
		quoted := strconv.QuoteRuneToASCII(r)
		return quoted[1 : len(quoted)-1]
	})
}

// harmlessJSON does the same with JSON, and leaves it the same JSON: beyond
// ASCII it has nothing but the insides of strings.
func harmlessJSON(s string) string {
	return replaceUnseen(s, func(r rune) string {
		switch {
		case r < 0x7f:
			return string(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			return fmt.Sprintf(`\u%04x\u%04x`, high, low)
		}
		return fmt.Sprintf(`\u%04x`, r)
	})
}

func replaceUnseen(s string, spell func(rune) string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(spell(r))
		}
	}
	return b.String()
}

package harness

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// A Config says what is particular to a test; Caddyfile adds the rest.
type Config struct {
	Global string // more global options
	Usher  string // what stands in the global option usher, beside ports
	Site   string // the site on Caddy.Addr
	Sites  string // whole further site blocks
	Raw    string // the whole Caddyfile or JSON document, instead of all above

	// Ports are the ports for processes. Default: PortRange.
	Ports string

	// NoUsher leaves out the global option usher.
	NoUsher bool

	// Grace is grace_period: how long an exit waits for requests. Default 3s,
	// so that a failed test ends; "0" waits for ever.
	Grace string

	// Debug sets the log level to DEBUG.
	Debug bool
}

// Caddyfile returns the configuration that Start and Reload use.
func (c *Caddy) Caddyfile(cfg Config) string {
	if cfg.Raw != "" {
		return cfg.Raw
	}
	level, grace := "INFO", "3s"
	if cfg.Debug {
		level = "DEBUG"
	}
	if cfg.Grace != "" {
		grace = cfg.Grace
	}
	var b strings.Builder
	fmt.Fprintf(&b, "{\n\tadmin %s\n\tdefault_bind 127.0.0.1\n\tauto_https disable_redirects\n\tskip_install_trust\n\tgrace_period %s\n", c.AdminAddr, grace)
	fmt.Fprintf(&b, "\thttp_port %d\n\thttps_port %d\n", c.block.base+portHTTP, c.block.base+portTLS)
	fmt.Fprintf(&b, "\tlog default {\n\t\toutput stderr\n\t\tformat json\n\t\tlevel %s\n\t}\n", level)
	if cfg.Global != "" {
		fmt.Fprintf(&b, "%s\n", indent(cfg.Global))
	}
	if !cfg.NoUsher {
		fmt.Fprintf(&b, "\tusher {\n\t\tports %s\n%s\n\t}\n", cmp.Or(cfg.Ports, c.PortRange()), indent(indent(cfg.Usher)))
	}
	fmt.Fprintf(&b, "}\n")
	if cfg.Site != "" {
		fmt.Fprintf(&b, "http://:%d {\n%s\n}\n", c.block.base+portHTTP, indent(cfg.Site))
	}
	b.WriteString(cfg.Sites)
	b.WriteString("\n")
	return b.String()
}

// PortRange returns the ports for processes as the option ports wants them.
func (c *Caddy) PortRange() string {
	return fmt.Sprintf("%d-%d", c.block.base+portProcess, c.block.base+blockSize-1)
}

// Backend returns the option backend of a service whose instances are the
// test app with these arguments. A line of options of the backend may be
// given by BackendWith.
func (c *Caddy) Backend(args ...string) string {
	return c.BackendWith("", args...)
}

// BackendWith is Backend with further options of the backend.
func (c *Caddy) BackendWith(options string, args ...string) string {
	return c.Command(options, append([]string{c.bin.App}, args...)...)
}

// Command returns the option backend for any command. The processes carry
// the mark of this test, and the app among them keeps the journal.
func (c *Caddy) Command(options string, command ...string) string {
	quoted := make([]string, len(command))
	for i, arg := range command {
		quoted[i] = `"` + strings.ReplaceAll(arg, `"`, `\"`) + `"`
	}
	return fmt.Sprintf("backend process %s {\n\tenv %s %s\n\tenv APP_JOURNAL %s\n%s\n}",
		strings.Join(quoted, " "), markVariable, c.mark, c.journalPath(), indent(options))
}

// Usher returns the directive usher for a service of that name.
func Usher(name string, options ...string) string {
	return fmt.Sprintf("usher %s {\n%s\n}", name, indent(strings.Join(options, "\n")))
}

// indent indents every line that is not empty.
func indent(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if line != "" {
			lines[i] = "\t" + line
		}
	}
	return strings.Join(lines, "\n")
}

// Slow stretches a time for the race detector.
func Slow(d time.Duration) time.Duration {
	if Race {
		return 4 * d
	}
	return d
}

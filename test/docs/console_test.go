package docs

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// Debian's programs go before others of the same name: recipes use modules of
// Debian's Python.
func TestMain(m *testing.M) {
	_ = os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:"+os.Getenv("PATH"))
	harness.Main(m)
}

// Commands are run with a real Caddy, and print what the page says.
func TestCommands(t *testing.T) {
	t.Parallel()
	all, count := blocks(t), 0
	for _, b := range all {
		if b.lang != "console" || b.has("shown") || b.value("not-here") != "" {
			continue
		}
		count++
		t.Run(strings.ReplaceAll(b.String(), "/", "-"), func(t *testing.T) {
			t.Parallel()
			wantPrograms(t, b)
			config := ""
			if b.has("example") {
				config = read(t, "Caddyfile.example")
			} else {
				for _, c := range all {
					if c.page == b.page && c.section == b.section && c.line < b.line && c.lang == "caddyfile" && !c.has("directive") {
						config = c.text
					}
				}
			}
			if config == "" {
				t.Fatalf("%s: there is no Caddyfile above it in its section", b)
			}
			runConsole(t, b, config, all)
		})
	}
	if count < 10 {
		t.Errorf("only %d blocks of commands", count)
	}
}

// wantPrograms skips the test where a program is missing. With
// USHER_TEST_RECIPES=required it fails instead.
func wantPrograms(t *testing.T, b block) {
	t.Helper()
	needs := []string{"sh", "curl", "grep", "head"}
	if v := b.value("needs"); v != "" {
		needs = append(needs, strings.Split(v, ",")...)
	}
	missing := t.Skipf
	if os.Getenv("USHER_TEST_RECIPES") == "required" {
		missing = t.Fatalf
	}
	for _, need := range needs {
		program, module, _ := strings.Cut(need, ":")
		if _, err := exec.LookPath(program); err != nil {
			missing("%s: there is no %s here", b, program)
		}
		if module != "" && exec.Command(program, "-c", "import "+module).Run() != nil {
			missing("%s: %s has no module %s here", b, program, module)
		}
	}
}

// runConsole runs the commands of b beside a Caddy with that configuration.
func runConsole(t *testing.T, b block, config string, all []block) {
	c := harness.New(t)
	writeFiles(t, c.Dir, b, all)
	if err := os.Symlink(harness.Build(t).Caddy, filepath.Join(c.Dir, "caddy")); err != nil {
		t.Fatal(err)
	}
	here := func(text string) string { return portsOf(t, c).Replace(below(c.Dir, text)) }
	c.Start(harness.Config{Raw: contained(t, c, here(config))})
	for _, s := range steps(b.text) {
		want := strings.TrimSpace(here(s.output))
		got := run(t, c, here(s.command))
		if !matches(want, got) {
			t.Errorf("%s: $ %s\nprints\n%s\nand not\n%s", b, s.command, got, want)
		}
	}
}

// portsOf replaces the ports of the pages by those that this Caddy may use.
func portsOf(t *testing.T, c *harness.Caddy) *strings.Replacer {
	t.Helper()
	var pairs []string
	for from, addr := range map[string]string{"8080": c.Addr, "8081": c.SpareAddr, "9000": c.TLSAddr, "2019": c.AdminAddr} {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		for _, before := range []string{":", "127.0.0.1 "} {
			pairs = append(pairs, before+from, before+port)
		}
	}
	return strings.NewReplacer(pairs...)
}

// contained makes of a Caddyfile a configuration that listens on loopback
// alone, and takes ports of this test for its processes.
func contained(t *testing.T, c *harness.Caddy, text string) string {
	t.Helper()
	doc, err := adapt(text)
	if err != nil {
		t.Fatal(err)
	}
	var cfg map[string]any
	if err := json.Unmarshal(doc, &cfg); err != nil {
		t.Fatal(err)
	}
	cfg["admin"] = map[string]any{"listen": c.AdminAddr}
	apps := cfg["apps"].(map[string]any)
	usher, _ := apps["usher"].(map[string]any)
	if usher == nil {
		usher = make(map[string]any)
		apps["usher"] = usher
	}
	usher["ports"] = c.PortRange()
	http := apps["http"].(map[string]any)
	http["grace_period"] = "3s"
	for _, s := range http["servers"].(map[string]any) {
		listen := s.(map[string]any)["listen"].([]any)
		for k := range listen {
			if port, ok := strings.CutPrefix(listen[k].(string), ":"); ok {
				listen[k] = "127.0.0.1:" + port
			}
		}
	}
	if doc, err = json.Marshal(cfg); err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

// A step is one command and what it prints.
type step struct{ command, output string }

// steps parts a block: a command begins with `$ `.
func steps(text string) []step {
	var all []step
	for line := range strings.Lines(text) {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			all = append(all, step{command: strings.TrimSpace(command)})
		} else if len(all) > 0 {
			all[len(all)-1].output += line
		}
	}
	return all
}

// run runs a command in the directory of c and returns what it prints.
func run(t *testing.T, c *harness.Caddy, command string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", command)
	cmd.Dir = c.Dir
	cmd.Env = append(os.Environ(), "CADDY_ADMIN="+c.AdminAddr, "HOME="+c.Dir, "XDG_DATA_HOME="+c.Path("data"), "XDG_CONFIG_HOME="+c.Path("config"))
	// What goes on in the background ends with the command.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	timer := time.AfterFunc(harness.Slow(time.Minute), func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		t.Fatalf("%s: %v", command, err)
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	return strings.TrimSpace(strings.ReplaceAll(string(out), "\r", ""))
}

var spaces = regexp.MustCompile(`[ \t]+`)

// matches compares what a page says with what is printed.
func matches(want, got string) bool {
	var pattern strings.Builder
	for line := range strings.SplitSeq(want, "\n") {
		if strings.TrimSpace(line) == "..." {
			pattern.WriteString(`(?:.*\n)*?`)
			continue
		}
		parts := strings.Split(spaces.ReplaceAllString(strings.TrimSpace(line), " "), "...")
		for k := range parts {
			parts[k] = regexp.QuoteMeta(parts[k])
		}
		pattern.WriteString(strings.Join(parts, ".*") + `\n`)
	}
	lines := strings.Split(got, "\n")
	for k := range lines {
		lines[k] = spaces.ReplaceAllString(strings.TrimSpace(lines[k]), " ")
	}
	return regexp.MustCompile("^" + pattern.String() + "$").MatchString(strings.Join(lines, "\n") + "\n")
}

func TestMatches(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		want, got string
		ok        bool
	}{
		{"a  b", "a b", true},
		{"a ... c", "a b c", true},
		{"a\n...\nd", "a\nb\nc\nd", true},
		{"a\n...", "a", true},
		{"a\n...", "a\nb", true},
		{"a", "a\nb", false},
		{"a ... c", "a\nc", false},
		{"a.c", "abc", false},
		{"", "x", false},
	} {
		if matches(tt.want, tt.got) != tt.ok {
			t.Errorf("%q and %q: want %v", tt.want, tt.got, tt.ok)
		}
	}
}

// Command bench measures the budgets of Usher, side by side with what they
// are measured against, in one run on one machine:
//
//	go run ./test/bench                 everything, about 40 minutes
//	go run ./test/bench -short          a short form of it
//	go run ./test/bench -run 'warm|held'
//	go run ./test/bench -o docs/performance.md
//
// It builds what it needs: a Caddy with Usher, which without Usher in its
// configuration is what Usher is compared with, and the server behind both.
// HAProxy, wrk, etcd, PostgreSQL and systemd-socket-activate take part where they
// are installed.
//
// All sides are measured in turn, round after round, and compared within
// each round, so that what else the machine does falls on all alike. How far
// a figure may be off by chance is measured too: by the spread of the rounds,
// and by comparing stock Caddy with itself. A budget counts as missed when it
// is missed by more than that, twice in a row: what else a machine does can
// last longer than all rounds of a part. Then the command fails.
//
// Everything listens on loopback, and ends with the command.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// bench is one run.
type bench struct {
	ctx      context.Context
	short    bool
	cores    int
	dir      string // everything that is written is in here
	binaries binaries
	nextPort int
	running  []*process

	part string
	// idleNoise is how far two stock Caddys were apart in the figure that is
	// being compared.
	idleNoise float64
	rows      []row

	begun     time.Time
	loadAfter string
	loadFirst string
}

// binaries are the programs that take part; "" is one that is not installed.
type binaries struct {
	caddy, app, origin              string
	wrk, haproxy, socketStart, etcd string

	postgres string // the server; initdb lies beside it
}

var parts = []struct {
	name, title string
	run         func(*bench) error
}{
	{"warm", "1. Warm: requests to instances that are ready", (*bench).warm},
	{"reserve", "2. Reserving: the work of Usher itself", (*bench).reserve},
	{"cold", "3. Cold start of a local process", (*bench).cold},
	{"held", "4. Held requests", (*bench).held},
	{"asleep", "5. Services that sleep", (*bench).asleep},
	{"binary", "6. The binary", (*bench).binary},
	{"cluster", "7. Several Caddys", (*bench).together},
	{"stored", "8. Stored requests", (*bench).stored},
	{"made", "9. Services made while Caddy runs", (*bench).made},
}

func init() {
	// The kernel ends the children with the thread that has started them: all
	// are started from here, and this thread lives as long as the command.
	runtime.LockOSThread()
}

func main() {
	run := flag.String("run", "", "the parts to run, as a regular `expression`: warm, reserve, cold, held, asleep, binary, cluster, stored, made")
	short := flag.Bool("short", false, "a short form: fewer and shorter rounds")
	output := flag.String("o", "", "write the table as Markdown to this `file`, between its marks if it has them")
	flag.Parse()
	chosen, err := regexp.Compile(*run)
	if err != nil || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	b := &bench{ctx: ctx, short: *short, cores: runtime.NumCPU(), begun: time.Now(), loadFirst: loadAverage()}
	ok := b.all(chosen)
	stop()
	if *output != "" {
		if err := b.write(*output); err != nil {
			fmt.Fprintln(os.Stderr, err)
			ok = false
		}
	}
	if !ok {
		os.Exit(1)
	}
}

// all runs the parts and reports whether no budget was missed.
func (b *bench) all(chosen *regexp.Regexp) (ok bool) {
	var err error
	if b.dir, err = os.MkdirTemp("", "usher-bench-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return false
	}
	defer os.RemoveAll(b.dir)
	if err := b.build(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return false
	}
	ok = true
	for _, p := range parts {
		if !chosen.MatchString(p.name) {
			continue
		}
		before := len(b.rows)
		err := b.take(p.title, p.run)
		if err == nil && slices.ContainsFunc(b.rows[before:], func(r row) bool { return r.verdict == missed }) {
			b.say("a budget is missed: the same once more")
			b.rows = b.rows[:before]
			err = b.take(p.title, p.run)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", p.name, err)
			ok = false
		}
		if b.ctx.Err() != nil {
			break
		}
	}
	b.loadAfter = loadAverage()
	fmt.Print("\n", b.setting(), b.text())
	for _, r := range b.rows {
		if r.verdict == missed {
			fmt.Printf("\n%s: %s: %s is missed\n", r.part, r.what, r.budget)
			ok = false
		}
	}
	return ok
}

// shortNoise is how far a ratio of the short form may be off at least: it has
// few rounds, and is there to find what became slower, not to prove a budget.
const shortNoise = 0.05

// take runs a part.
func (b *bench) take(title string, run func(*bench) error) error {
	b.part, b.idleNoise = title, 0
	if b.short {
		b.idleNoise = shortNoise
	}
	b.say("%s", title)
	defer b.clear()
	if err := run(b); err != nil {
		return err
	}
	return b.ctx.Err()
}

// clear ends everything that runs, the latest first: others may need the earlier
// ones to end well.
func (b *bench) clear() {
	for _, p := range slices.Backward(b.running) {
		p.stop()
	}
	b.running = nil
}

// rounds are how often everything is measured.
func (b *bench) rounds(long, short int) int {
	if b.short {
		return short
	}
	return long
}

// span is how long one measurement takes.
func (b *bench) span(long, short time.Duration) time.Duration {
	if b.short {
		return short
	}
	return long
}

// say tells how far the run has come.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(b.begun).Seconds(), fmt.Sprintf(format, args...))
}

// build makes the programs, and looks for those of others.
func (b *bench) build() error {
	const module = "github.com/caddy-usher/usher/test/"
	for _, p := range []struct {
		path *string
		pkg  string
	}{
		{&b.binaries.caddy, "bench/caddy"},
		{&b.binaries.app, "app"},
		{&b.binaries.origin, "bench/origin"},
	} {
		*p.path = filepath.Join(b.dir, filepath.Base(p.pkg))
		if err := b.goTool("build", "-ldflags=-s -w", "-o", *p.path, module+p.pkg); err != nil {
			return err
		}
	}
	b.binaries.wrk, _ = exec.LookPath("wrk")
	b.binaries.socketStart, _ = exec.LookPath("systemd-socket-activate")
	b.binaries.etcd, _ = exec.LookPath("etcd")
	b.binaries.postgres = findPostgres()
	if b.binaries.haproxy, _ = exec.LookPath("haproxy"); b.binaries.haproxy == "" {
		b.binaries.haproxy, _ = exec.LookPath("/usr/sbin/haproxy")
	}
	return nil
}

// goTool runs the go command.
func (b *bench) goTool(args ...string) error {
	b.say("go %s", strings.Join(args, " "))
	cmd := exec.CommandContext(b.ctx, "go", args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// setting is what a reader has to know of the run.
func (b *bench) setting() string {
	command := "go run ./test/bench"
	if len(os.Args) > 1 {
		command += " " + strings.Join(os.Args[1:], " ")
	}
	var taking []string
	for _, path := range []string{b.binaries.wrk, b.binaries.haproxy, b.binaries.socketStart, b.binaries.etcd, b.binaries.postgres} {
		if path != "" {
			taking = append(taking, filepath.Base(path))
		}
	}
	return fmt.Sprintf("`%s`, %s, in %s. %s, %d cores, Linux %s, %s. Taking part: %s. Load average before: %s; after, with its own: %s.\n",
		command, b.begun.UTC().Format("2006-01-02 15:04 UTC"), time.Since(b.begun).Round(time.Second),
		processor(), b.cores, firstLine("/proc/sys/kernel/osrelease"), runtime.Version(),
		strings.Join(append(taking, "Caddy"), ", "), b.loadFirst, b.loadAfter)
}

func firstLine(file string) string {
	data, _ := os.ReadFile(file)
	line, _, _ := strings.Cut(string(data), "\n")
	return line
}

func loadAverage() string {
	fields := strings.Fields(firstLine("/proc/loadavg"))
	return strings.Join(fields[:min(len(fields), 3)], " ")
}

func processor() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

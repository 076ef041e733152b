package main

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// reserve runs the benchmarks of single steps, which are Go benchmarks beside
// what they measure, round by round.
func (b *bench) reserve() error {
	handlers, err := b.measureHandlers()
	if err != nil {
		return err
	}
	if err := b.reserver(handlers); err != nil {
		return err
	}
	return b.handlers(handlers)
}

// referenceHandlers is what stock Caddy's handlers take for a request to one
// instance, in nanoseconds, on the machine for which the budgets in nanoseconds
// were set (an AMD EPYC of 2024). None of Usher's code runs in them.
const referenceHandlers = 19e3

// slowness is how many times longer than there the same work takes here: 1 on a
// machine that is as fast or faster.
func slowness(handlers gauge) (float64, error) {
	stock, err := handlers.of("Handlers/least_conn/1", "cpu-ns/op")
	if err != nil {
		return 0, err
	}
	return max(stock.median()/referenceHandlers, 1), nil
}

// A gauge collects the figures of Go benchmarks: by the name of the
// benchmark, then by the unit.
type gauge map[string]map[string]series

// gobench builds the benchmarks of a package and runs them in rounds. The
// rounds are runs of their own, so that all benchmarks take turns; in each,
// every benchmark runs count times.
func (b *bench) gobench(pkg, pattern string, rounds, count int, time string, env ...string) (gauge, error) {
	binary := filepath.Join(b.dir, filepath.Base(pkg)+".test")
	if err := b.goTool("test", "-c", "-o", binary, "github.com/caddy-usher/usher/"+pkg); err != nil {
		return nil, err
	}
	g := make(gauge)
	for range rounds {
		cmd := exec.CommandContext(b.ctx, binary, "-test.run=^$", "-test.bench="+pattern, "-test.benchtime="+time, "-test.count="+strconv.Itoa(count))
		cmd.Dir, cmd.Env = b.dir, append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", pkg, err, out)
		}
		g.read(out)
	}
	return g, nil
}

func (g gauge) read(out []byte) {
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(fields[0], "Benchmark")
		if i := strings.LastIndexByte(name, '-'); i > 0 && strings.Trim(name[i+1:], "0123456789") == "" {
			name = name[:i] // the number of cores
		}
		if g[name] == nil {
			g[name] = make(map[string]series)
		}
		for i := 2; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				g[name][fields[i+1]] = append(g[name][fields[i+1]], v)
			}
		}
	}
}

// of returns the figures of one benchmark, which must have run.
func (g gauge) of(name, unit string) (series, error) {
	if s := g[name][unit]; len(s) > 0 {
		return s, nil
	}
	return nil, fmt.Errorf("no benchmark %s with %s among %v", name, unit, len(maps.Collect(maps.All(g))))
}

func (b *bench) reserver(handlers gauge) error {
	slow, err := slowness(handlers)
	if err != nil {
		return err
	}
	nanoseconds := func(bound float64) *budget {
		words := fmt.Sprintf("≤ %.0f ns", bound)
		if slow > 1 {
			words += fmt.Sprintf(" × %.2f", slow)
		}
		return atMost("P3", bound*slow, words)
	}
	// So short that the system hardly ever takes the core away in the midst of
	// one, however busy the machine is.
	g, err := b.gobench("reserver", "^Benchmark(ReserveRelease|ReserveReleaseContended|HandOver|Cancel)$", b.rounds(7, 3), 20, "2ms")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		what, name string
		limit      *budget
	}{
		{"reserve and release, 1 instance", "ReserveRelease/least_loaded/1", nanoseconds(100)},
		{"reserve and release, 100 instances", "ReserveRelease/least_loaded/100", nanoseconds(100)},
		{"reserve and release, 1000 instances", "ReserveRelease/least_loaded/1000", nanoseconds(150)},
		{"the same, contended on all cores, 100 instances", "ReserveReleaseContended/100", nanoseconds(400)},
		{"hand-over to the next of a queue of 10 000", "HandOver/10000", nil},
		{"leaving and joining a queue of 10 000", "Cancel/10000", nil},
	} {
		ns, err := g.of(f.name, "ns/op")
		if err != nil {
			return err
		}
		allocs, err := g.of(f.name, "allocs/op")
		if err != nil {
			return err
		}
		// What else the machine does can only add to it: the fastest is the
		// nearest to the truth. Not so with two that contend: the fastest would
		// be the one in which they did not.
		figure := ns.quantile(0)
		if strings.Contains(f.name, "Contended") {
			figure = ns.median()
		}
		r := row{
			part: b.part, what: f.what, usher: nano(figure), other: fmt.Sprintf("%.0f allocations", allocs.median()),
			noise: ns.noise(),
		}
		if f.limit != nil {
			r.budget = f.limit.name + ": " + f.limit.words
			r.verdict = f.limit.judge(figure, r.noise)
		}
		b.add(r)
		if f.limit != nil && allocs.median() > 0 {
			b.figure(f.what+": allocations", pieces, allocs, "", atMost("P3", 0, "0"))
		}
	}
	return nil
}

// measureHandlers runs the benchmarks of all handlers.
func (b *bench) measureHandlers() (gauge, error) {
	pattern := "Handlers"
	if b.short {
		pattern = "Handlers/(usher|least_conn)/(1|1000)$"
	}
	// One core: what the collector does beside is work too, and is counted.
	return b.gobench("test/bench/handlers", pattern, b.rounds(9, 5), 1, b.span(500e6, 300e6).String(), "GOMAXPROCS=1")
}

func (b *bench) handlers(g gauge) error {
	sizes, policies := []int{1, 100, 1000}, []string{"least_conn", "random"}
	if b.short {
		sizes, policies = []int{1, 1000}, policies[:1]
	}
	for _, n := range sizes {
		for _, policy := range policies {
			for _, f := range []struct {
				what, unit string
				write      unit
			}{{"CPU in the handlers", "cpu-ns/op", micro}, {"allocations in the handlers", "allocs/op", pieces}} {
				ours, err := g.of(fmt.Sprintf("Handlers/usher/%d", n), f.unit)
				if err != nil {
					return err
				}
				theirs, err := g.of(fmt.Sprintf("Handlers/%s/%d", policy, n), f.unit)
				if err != nil {
					return err
				}
				var limit *budget
				if n == 1000 && policy == "least_conn" && f.unit == "cpu-ns/op" {
					limit = atMost("P2", 0.7, "≤ 0.7 of stock")
				}
				instances := "1 instance"
				if n > 1 {
					instances = fmt.Sprintf("%d instances", n)
				}
				if limit != nil || policy == "least_conn" || f.unit == "cpu-ns/op" {
					b.compare(f.what+", "+instances, f.write, ours, theirs, policy, limit)
				}
			}
		}
	}
	return nil
}

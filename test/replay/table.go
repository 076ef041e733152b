package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
	"time"
)

// ratios are geometric means of what a policy needs, as parts of what the
// baseline needs.
type ratios struct{ instances, wait, p99, cold, starts, peak float64 }

// noWait is added to waits that are compared: nothing and nearly nothing are
// the same to clients.
const noWait = 0.001

// against compares the results of the same runs.
func against(these, base []Result) ratios {
	var r ratios
	for k := range these {
		a, b := these[k], base[k]
		r.instances += math.Log(max(a.Instances.Seconds(), 1) / max(b.Instances.Seconds(), 1))
		r.wait += math.Log((a.Waits.mean() + noWait) / (b.Waits.mean() + noWait))
		r.p99 += math.Log((a.Waits.quantile(0.99).Seconds() + noWait) / (b.Waits.quantile(0.99).Seconds() + noWait))
		r.cold += math.Log((float64(a.Cold) + 0.5) / (float64(b.Cold) + 0.5))
		r.starts += math.Log((float64(a.Starts) + 0.5) / (float64(b.Starts) + 0.5))
		r.peak += math.Log(float64(max(a.Peak, 1)) / float64(max(b.Peak, 1)))
	}
	for _, v := range []*float64{&r.instances, &r.wait, &r.p99, &r.cold, &r.starts, &r.peak} {
		*v = math.Exp(*v / float64(max(len(these), 1)))
	}
	return r
}

// row writes cells of a Markdown table.
func row(out io.Writer, cells ...string) { fmt.Fprintf(out, "| %s |\n", strings.Join(cells, " | ")) }

func rule(out io.Writer, n int) { fmt.Fprintf(out, "|%s\n", strings.Repeat("---|", n)) }

// relative prints what each policy needs against the baseline, by family:
// instance-seconds / mean wait.
func (g *grid) relative(out io.Writer, real bool) {
	families := g.families(real)
	if len(families) == 0 {
		return
	}
	kind := map[bool]string{true: "real traces", false: "synthetic"}[real]
	head := append(append([]string{kind}, families...), "**all**", "p99", "cold", "starts", "peak")
	row(out, head...)
	rule(out, len(head))
	for _, c := range g.who {
		cells := []string{c.name}
		for _, f := range families {
			r := against(g.results(c.name, ofFamily(f)), g.results(baseline, ofFamily(f)))
			cells = append(cells, fmt.Sprintf("%.2f/%.2f", r.instances, r.wait))
		}
		r := against(g.results(c.name, ofKind(real)), g.results(baseline, ofKind(real)))
		row(out, append(cells, fmt.Sprintf("**%.2f/%.2f**", r.instances, r.wait), number(r.p99), number(r.cold), number(r.starts), number(r.peak))...)
	}
	fmt.Fprintln(out)
}

func number(f float64) string { return fmt.Sprintf("%.2f", f) }

// totals prints the sums over all runs.
func (g *grid) totals(out io.Writer) {
	row(out, "totals", "instance-seconds (M)", "waits (M s)", "cold %", "starts (k)")
	rule(out, 5)
	for _, c := range g.who {
		r := together(g.results(c.name, nil))
		row(out, c.name, fmt.Sprintf("%.1f", r.Instances.Seconds()/1e6), fmt.Sprintf("%.2f", r.Waits.sum.Seconds()/1e6),
			fmt.Sprintf("%.1f", 100*r.cold()), fmt.Sprintf("%.1f", float64(r.Starts)/1e3))
	}
	fmt.Fprintln(out)
}

// details prints everything that is measured, for each family and start time.
// A star marks the policies of the Pareto front.
func (g *grid) details(out io.Writer) {
	for _, real := range []bool{true, false} {
		for _, family := range g.families(real) {
			for _, start := range g.starts {
				g.detail(out, family, start)
			}
		}
	}
}

func (g *grid) detail(out io.Writer, family string, start time.Duration) {
	wanted := func(c *cell) bool { return c.trace.Family == family && c.start == start }
	front := g.front(wanted)
	fmt.Fprintf(out, "%s, starts of %v\n", family, start)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "policy\tfront\tcold %\tp50\tp95\tp99\tlongest\tsum of waits\tinstance-s\tidle\tstarts/h\tturns/h\t")
	for _, c := range g.who {
		r := together(g.results(c.name, wanted))
		star := ""
		if front[c.name] {
			star = "*"
		}
		fmt.Fprintf(w, "%s\t%s\t%.2f\t%s\t%s\t%s\t%s\t%.0f\t%.0f\t%.0f\t%.2f\t%.2f\t\n", c.name, star, 100*r.cold(),
			wait(r.Waits.quantile(0.5)), wait(r.Waits.quantile(0.95)), wait(r.Waits.quantile(0.99)), wait(r.Waits.longest),
			r.Waits.sum.Seconds(), r.Instances.Seconds(), r.Idle.Seconds(),
			float64(r.Starts)/r.Length.Hours(), float64(r.Turns)/r.Length.Hours())
	}
	w.Flush()
	fmt.Fprintln(out)
}

// wait writes a wait with two digits or so.
func wait(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		d = d.Round(time.Second)
	case d >= time.Second:
		d = d.Round(100 * time.Millisecond)
	default:
		d = d.Round(time.Millisecond)
	}
	return d.String()
}

// front returns the policies of which no other is better in both, instance-time
// and waits. The oracle does not compete.
func (g *grid) front(wanted func(*cell) bool) map[string]bool {
	sums := make(map[string]Result)
	for _, c := range g.who {
		if c.policy != nil {
			sums[c.name] = together(g.results(c.name, wanted))
		}
	}
	front := make(map[string]bool)
	for name, r := range sums {
		front[name] = true
		for _, o := range sums {
			if o.Instances <= r.Instances && o.Waits.sum <= r.Waits.sum && (o.Instances < r.Instances || o.Waits.sum < r.Waits.sum) {
				front[name] = false
			}
		}
	}
	return front
}

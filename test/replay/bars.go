package main

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// A bar is something that a policy has to reach.
type bar struct {
	what        string
	value, most float64
}

func (b bar) holds() bool { return b.value <= b.most }

// worth is what an instance-second is worth against a second of waiting: a
// whole cold start is worth five minutes of an instance.
const worth = 5 * time.Minute

// price is what a run costs, waits included, in instance-seconds.
func (c *cell) price() float64 {
	return c.Instances.Seconds() + worth.Seconds()/c.start.Seconds()*c.Waits.sum.Seconds()
}

// bars measures a policy. A bar for which there are no runs is left out.
func (g *grid) bars(policy string) (all []bar) {
	sum := together(g.results(policy, nil))
	part := func(what string, other string, instances, waits float64) {
		base := together(g.results(other, nil))
		if base.Waits.count == 0 {
			return
		}
		all = append(
			all,
			bar{what + ": instance-seconds", sum.Instances.Seconds() / base.Instances.Seconds(), instances},
			bar{what + ": waits", sum.Waits.sum.Seconds() / base.Waits.sum.Seconds(), waits},
		)
	}
	part("in all, against "+baseline, baseline, 0.70, 0.75)
	part("in all, against kpa", "kpa", 0.95, 0.55)
	if cold, ok := g.coldAtEqualCost(policy, "azure"); ok {
		all = append(all, bar{"azure: cold requests against " + baseline + " at equal cost", cold, 0.5})
	}
	if cron := together(g.results(policy, ofFamily("cron"))); cron.Waits.count > 0 {
		base := together(g.results(baseline, ofFamily("cron")))
		all = append(
			all,
			bar{"cron: part of cold requests", cron.cold(), 0.02},
			bar{"cron: instance-seconds against " + baseline, cron.Instances.Seconds() / base.Instances.Seconds(), 0.20},
		)
	}
	return append(append(all, g.flashBars(policy)...), g.worst(policy))
}

// coldAtEqualCost compares the cold requests of a family where a policy costs
// as much as the baseline: between two of its idle timeouts, in proportion.
func (g *grid) coldAtEqualCost(policy, family string) (float64, bool) {
	base := together(g.results(baseline, ofFamily(family)))
	type point struct{ cost, cold float64 }
	var points []point
	for _, c := range g.who {
		if r := together(g.results(c.name, ofFamily(family))); kind(c.name) == kind(policy) && r.Waits.count > 0 {
			points = append(points, point{r.Instances.Seconds(), float64(r.Cold)})
		}
	}
	if base.Waits.count == 0 || len(points) == 0 {
		return 0, false
	}
	slices.SortFunc(points, func(a, b point) int { return int(a.cost - b.cost) })
	want := base.Instances.Seconds()
	at := points[0].cold
	for k, p := range points {
		switch {
		case p.cost <= want:
			at = p.cold // it costs less, and that is enough
		case k > 0 && points[k-1].cost <= want:
			low := points[k-1]
			at = low.cold + (p.cold-low.cold)*(want-low.cost)/(p.cost-low.cost)
		}
	}
	return at / float64(base.Cold), true
}

// kind is the name of a policy without its options.
func kind(name string) string {
	for k, r := range name {
		if r == ' ' {
			return name[:k]
		}
	}
	return name
}

// flashBars are about flash crowds where a start takes half a minute.
func (g *grid) flashBars(policy string) (all []bar) {
	wanted := func(c *cell) bool { return c.trace.Family == "flash" && c.start == 30*time.Second }
	these, best, base := g.results(policy, wanted), g.results("oracle", wanted), g.results(baseline, wanted)
	if len(these) == 0 || len(best) == 0 {
		return nil
	}
	peak, turns := bar{"flash, starts of 30s: peak against the oracle's", 0, 3}, bar{"flash, starts of 30s: changes of direction above one instance against " + baseline, 0, 1}
	for k := range these {
		peak.value = max(peak.value, float64(these[k].Peak)/float64(best[k].Peak))
		turns.value = max(turns.value, float64(these[k].CrowdTurns)/float64(max(base[k].CrowdTurns, 1)))
	}
	return []bar{peak, turns}
}

// worst is the run in which a policy does worst against the baseline.
func (g *grid) worst(policy string) bar {
	worst := bar{"the worst single run: price against " + baseline, 0, 2}
	var base *cell
	prices := make(map[string]float64)
	for k := range g.cells {
		if base = &g.cells[k]; base.policy == baseline {
			prices[base.trace.Name+base.start.String()] = base.price()
		}
	}
	for k := range g.cells {
		c := &g.cells[k]
		if c.policy != policy {
			continue
		}
		if r := c.price() / prices[c.trace.Name+c.start.String()]; r > worst.value {
			worst.value = r
			worst.what = fmt.Sprintf("the worst single run (%s, starts of %v): price against %s", c.trace.Name, c.start, baseline)
		}
	}
	return worst
}

// printBars prints the bars, and says whether all hold.
func printBars(out io.Writer, all []bar) bool {
	ok := true
	row(out, "bar", "is", "at most", "")
	rule(out, 4)
	for _, b := range all {
		held := "holds"
		if !b.holds() {
			held, ok = "**does not hold**", false
		}
		row(out, b.what, fmt.Sprintf("%.3f", b.value), fmt.Sprintf("%.2f", b.most), held)
	}
	fmt.Fprintln(out)
	return ok
}

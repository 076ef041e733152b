package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// The measures of the picture, in pixels.
const (
	plotWidth, plotHeight = 300.0, 260.0
	plotLeft, plotTop     = 64.0, 40.0
	plotGap               = 40.0
	plotFloor             = 0.001 // seconds: a shorter mean wait is drawn as this
)

// dot is a policy in a plot: what it costs, and how long requests wait.
type dot struct {
	name       string
	cost, wait float64
	front      bool
}

// dots returns the policies of a family.
func (g *grid) dots(family string) (all []dot) {
	wanted := func(c *cell) bool { return c.trace.Family == family && c.start == picturedStart }
	front := g.front(wanted)
	for _, c := range g.who {
		r := together(g.results(c.name, wanted))
		all = append(all, dot{c.name, r.Instances.Seconds(), max(r.Waits.mean(), plotFloor), front[c.name]})
	}
	slices.SortFunc(all, func(a, b dot) int {
		if a.cost < b.cost {
			return -1
		}
		return 1
	})
	return all
}

// scale maps logarithms to pixels.
type scale struct{ low, high, from, to float64 }

func newScale(values []float64, from, to float64) scale {
	return scale{math.Log(slices.Min(values) * 0.8), math.Log(slices.Max(values) * 1.25), from, to}
}

func (s scale) at(v float64) float64 {
	return s.from + (math.Log(v)-s.low)/(s.high-s.low)*(s.to-s.from)
}

// picture draws cost against waits for some families, with the Pareto fronts.
func (g *grid) picture(out io.Writer, families []string) {
	width := plotLeft + float64(len(families))*(plotWidth+plotGap+plotLeft)
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="11" role="img">`+"\n", width, plotTop+plotHeight+50)
	fmt.Fprintln(out, `<title>Cost against waits, by policy; the lines join the policies that none beats in both</title>`)
	fmt.Fprintln(out, `<rect width="100%" height="100%" fill="#fff"/>`)
	for k, family := range families {
		g.plot(out, family, plotLeft+float64(k)*(plotWidth+plotGap+plotLeft))
	}
	fmt.Fprintln(out, `</svg>`)
}

func (g *grid) plot(out io.Writer, family string, left float64) {
	dots := g.dots(family)
	var costs, waits []float64
	for _, d := range dots {
		costs, waits = append(costs, d.cost), append(waits, d.wait)
	}
	x, y := newScale(costs, left, left+plotWidth), newScale(waits, plotTop+plotHeight, plotTop)
	fmt.Fprintf(out, `<text x="%.0f" y="22" font-size="14" font-weight="bold">%s</text>`+"\n", left, family)
	fmt.Fprintf(out, `<rect x="%.0f" y="%.0f" width="%.0f" height="%.0f" fill="none" stroke="#999"/>`+"\n", left, plotTop, plotWidth, plotHeight)
	for _, decade := range decades(costs) {
		fmt.Fprintf(out, `<text x="%.1f" y="%.0f" text-anchor="middle" fill="#555">%g</text>`+"\n", x.at(decade), plotTop+plotHeight+16, decade)
	}
	for _, decade := range decades(waits) {
		fmt.Fprintf(out, `<text x="%.0f" y="%.1f" text-anchor="end" fill="#555">%g s</text>`+"\n", left-6, y.at(decade)+4, decade)
	}
	fmt.Fprintf(out, `<text x="%.0f" y="%.0f" text-anchor="middle" fill="#555">instance-seconds</text>`+"\n", left+plotWidth/2, plotTop+plotHeight+36)
	var line strings.Builder
	for _, d := range dots {
		if d.front {
			fmt.Fprintf(&line, "%.1f,%.1f ", x.at(d.cost), y.at(d.wait))
		}
	}
	fmt.Fprintf(out, `<polyline points="%s" fill="none" stroke="#2a7" stroke-width="1.5"/>`+"\n", line.String())
	for _, d := range dots {
		colour := "#888"
		switch {
		case kind(d.name) == "adaptive":
			colour = "#2a7"
		case kind(d.name) == "queue":
			colour = "#26c"
		case d.name == "oracle":
			colour = "#000"
		}
		anchor, shift := "start", 6.0
		if x.at(d.cost) > left+plotWidth*0.7 {
			anchor, shift = "end", -6
		}
		fmt.Fprintf(out, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/><text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">%s</text>`+"\n",
			x.at(d.cost), y.at(d.wait), colour, x.at(d.cost)+shift, y.at(d.wait)-5, anchor, colour, d.name)
	}
}

// decades are the powers of ten within values.
func decades(values []float64) (all []float64) {
	for e := math.Ceil(math.Log10(slices.Min(values) * 0.8)); e <= math.Floor(math.Log10(slices.Max(values)*1.25)); e++ {
		all = append(all, math.Pow(10, e))
	}
	return all
}

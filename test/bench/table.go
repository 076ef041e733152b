package main

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strings"
	"text/tabwriter"
	"unicode/utf8"
)

// A row is one line of the table.
type row struct {
	part    string
	what    string
	usher   string
	other   string // with what it is
	ratio   float64
	noise   float64 // of the ratio or, without one, of the figure
	budget  string
	verdict verdict
}

type verdict uint8

const (
	unjudged verdict = iota
	met
	within // beyond the budget, by less than the noise
	missed
)

func (v verdict) String() string {
	return [...]string{"", "met", "within the noise", "MISSED"}[v]
}

// A budget is a bound of the contract.
type budget struct {
	name  string
	bound float64
	least bool   // the figure is to be this much at least, not at most
	words string // how it is written
}

func atMost(name string, bound float64, words string) *budget {
	return &budget{name: name, bound: bound, words: words}
}

func atLeast(name string, bound float64, words string) *budget {
	return &budget{name: name, bound: bound, least: true, words: words}
}

// judge compares a figure, which may be off by the noise, with the budget.
func (b *budget) judge(figure, noise float64) verdict {
	off := figure - b.bound
	if b.least {
		off = -off
	}
	switch {
	case math.IsNaN(off):
		return missed
	case off <= 0:
		return met
	case off <= math.Abs(figure)*noise:
		return within
	}
	return missed
}

// A unit writes a figure.
type unit func(float64) string

func format(verb string, per float64) unit {
	return func(v float64) string { return fmt.Sprintf(verb, v/per) }
}

var (
	perSecond   = format("%.0f/s", 1)
	micro       = format("%.0f µs", 1e3) // from nanoseconds
	milli       = format("%.1f ms", 1e6)
	nano        = format("%.0f ns", 1)
	kibi        = format("%.1f KiB", 1<<10)
	megabytes   = format("%.2f MB", 1e6)
	mebi        = format("%.2f MiB", 1<<20)
	percent     = format("%.2f %%", 0.01)
	pieces      = format("%.0f", 1)
	tenths      = format("%.1f", 1)
	hundredths  = format("%.2f", 1)
	wallSeconds = format("%.1f s", 1)
)

// compare adds a row for a figure of both sides, judged by the ratio.
func (b *bench) compare(what string, u unit, ours, theirs series, name string, limit *budget) {
	ratios := ours.over(theirs)
	r := row{
		part: b.part, what: what, usher: u(ours.median()), other: u(theirs.median()) + " " + name,
		ratio: ratios.median(), noise: max(ratios.noise(), b.idleNoise),
	}
	if limit != nil {
		r.budget = limit.name + ": " + limit.words
		r.verdict = limit.judge(r.ratio, r.noise)
	}
	b.add(r)
}

// figure adds a row for a figure that is judged by itself. other may say what
// it can be seen against.
func (b *bench) figure(what string, u unit, ours series, other string, limit *budget) {
	r := row{part: b.part, what: what, usher: u(ours.median()), other: other, noise: ours.noise()}
	if limit != nil {
		r.budget = limit.name + ": " + limit.words
		r.verdict = limit.judge(ours.median(), r.noise)
	}
	b.add(r)
}

func (b *bench) add(r row) {
	b.rows = append(b.rows, r)
	b.say("%s: %s, %s; ratio %s; %s %s", r.what, r.usher, r.other, r.ratioText(), r.budget, r.verdict)
}

func (r row) ratioText() string {
	if r.ratio == 0 || math.IsNaN(r.ratio) || math.IsInf(r.ratio, 0) {
		return ""
	}
	return fmt.Sprintf("%.3f", r.ratio)
}

func (r row) noiseText() string {
	if r.noise == 0 {
		return ""
	}
	return fmt.Sprintf("± %.1f %%", 100*r.noise)
}

func (r row) cells() []string {
	return []string{r.what, r.usher, r.other, r.ratioText(), r.noiseText(), r.budget, r.verdict.String()}
}

var columns = []string{"what", "Usher", "the other", "ratio", "noise", "budget", ""}

// text is the table for a terminal.
func (b *bench) text() string {
	var out strings.Builder
	part := ""
	var w *tabwriter.Writer
	flush := func() {
		if w != nil {
			w.Flush()
		}
	}
	for _, r := range b.rows {
		if r.part != part {
			flush()
			part = r.part
			fmt.Fprintf(&out, "\n%s\n%s\n", part, strings.Repeat("-", utf8.RuneCountInString(part)))
			w = tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, strings.Join(columns, "\t"))
		}
		fmt.Fprintln(w, strings.Join(r.cells(), "\t"))
	}
	flush()
	return out.String()
}

// markdown is the table for a page.
func (b *bench) markdown() string {
	var out strings.Builder
	out.WriteString(b.setting())
	part := ""
	for _, r := range b.rows {
		if r.part != part {
			part = r.part
			fmt.Fprintf(&out, "\n### %s\n\n| %s |\n|%s\n", part, strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
		}
		fmt.Fprintf(&out, "| %s |\n", strings.Join(r.cells(), " | "))
	}
	return out.String()
}

// The generated part of a page stands between these.
const (
	beginMark = "<!-- measured: begin -->\n"
	endMark   = "<!-- measured: end -->"
)

// write puts the table into a file: between the marks if it has them.
func (b *bench) write(file string) error {
	table := []byte(b.markdown())
	page, err := os.ReadFile(file)
	if err == nil {
		before, rest, begun := bytes.Cut(page, []byte(beginMark))
		_, after, ended := bytes.Cut(rest, []byte(endMark))
		if !begun || !ended {
			return fmt.Errorf("%s is no page of the benchmark: it has no lines %q and %q", file, strings.TrimSpace(beginMark), endMark)
		}
		table = bytes.Join([][]byte{before, []byte(beginMark), []byte("\n"), table, []byte("\n" + endMark), after}, nil)
	}
	return os.WriteFile(file, table, 0o644)
}

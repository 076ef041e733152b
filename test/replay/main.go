package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler/policies"
)

// pictured are the families of the picture, and picturedStart is the start time
// that it is of.
var pictured = []string{"azure", "cron", "flash"}

const picturedStart = 5 * time.Second

// options are those of the command line.
type options struct {
	seed     uint64
	half     string
	families string
	policies string
	starts   string
	details  bool
	picture  string
	short    bool
}

func main() {
	testing.Init()
	var o options
	flag.Uint64Var(&o.seed, "seed", 1, "what traces, service times and start times are drawn from")
	flag.StringVar(&o.half, "half", "test", "which half of the traces: tune, test or all")
	flag.StringVar(&o.families, "families", "", "only these families, separated by commas")
	flag.StringVar(&o.policies, "policies", "", "only policies whose names begin with one of these; the baseline is always there")
	flag.StringVar(&o.starts, "starts", "100ms,1s,5s,30s,60s", "mean start times")
	flag.BoolVar(&o.details, "details", false, "print every family, start time and policy by itself")
	flag.StringVar(&o.picture, "picture", "", "write a picture of the Pareto fronts of three families, with starts of 5s, to this SVG file")
	flag.BoolVar(&o.short, "short", false, "a part of the traces and policies, for checks: it fails if the default policy misses a bar")
	flag.Parse()
	if o.short {
		o.half, o.families, o.policies, o.starts = "test", "azure,cron,flash,on/off,social,poisson", "oracle,kpa,"+policies.DefaultName, "1s,30s"
	}

	// Time in a bubble passes in tests only.
	err := error(nil)
	testing.Main(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{{
		Name: "Replay",
		F: func(t *testing.T) {
			if err = o.run(t, os.Stdout); err != nil {
				fmt.Fprintln(os.Stderr, "replay:", err)
			}
			if err != nil || t.Failed() {
				os.Exit(1)
			}
			os.Exit(0)
		},
	}}, nil, nil)
}

func (o options) run(t *testing.T, out io.Writer) error {
	g, err := o.grid()
	if err != nil {
		return err
	}
	if o.picture != "" && !slices.Contains(g.starts, picturedStart) {
		return fmt.Errorf("the picture is of starts of %v: -starts has to contain that", picturedStart)
	}
	began := time.Now()
	g.run(t, o.seed)
	fmt.Fprintf(out, "%d traces, starts of %s, seed %d: %d runs in %v\n\n", len(g.traces), o.starts, o.seed, len(g.cells), time.Since(began).Round(time.Second))
	if o.details {
		g.details(out)
	}
	fmt.Fprintf(out, "Against %q, geometric means: instance-seconds / mean wait.\n\n", baseline)
	g.relative(out, true)
	g.relative(out, false)
	g.totals(out)
	if o.picture != "" {
		f, err := os.Create(o.picture)
		if err != nil {
			return err
		}
		g.picture(f, pictured)
		if err := f.Close(); err != nil {
			return err
		}
	}
	return o.judge(g, out)
}

// judge holds Usher's default against the bars.
func (o options) judge(g *grid, out io.Writer) error {
	k := slices.IndexFunc(g.who, contender.usual)
	switch {
	case k < 0 && o.short:
		return errors.New("the policies that were replayed have none that is Usher's default")
	case k < 0:
		return nil // other policies were asked for
	}
	if c := g.who[k]; !printBars(out, g.bars(c.name)) {
		return fmt.Errorf("the policy %s, Usher's default, misses a bar", c.name)
	}
	return nil
}

// grid lays out the runs that the options ask for.
func (o options) grid() (*grid, error) {
	real, err := recorded(o.seed)
	if err != nil {
		return nil, err
	}
	g := &grid{}
	for k, t := range append(real, synthetic(o.seed)...) {
		// Neighbours are alike, so every other one is a fair half.
		half := map[bool]string{true: "tune", false: "test"}[k%2 == 0]
		if (o.half == "all" || o.half == half) && (o.families == "" || slices.Contains(strings.Split(o.families, ","), t.Family)) {
			g.traces = append(g.traces, t)
		}
	}
	if len(g.traces) == 0 {
		return nil, fmt.Errorf("no trace is of the families %q and the half %q", o.families, o.half)
	}
	for s := range strings.SplitSeq(o.starts, ",") {
		d, err := time.ParseDuration(s)
		if err != nil || d <= 0 || d > time.Hour {
			return nil, fmt.Errorf("'%s' is not a start time, such as 500ms or 30s", s)
		}
		g.starts = append(g.starts, d)
	}
	for _, c := range contenders() {
		wanted := o.policies == "" || c.name == baseline
		for p := range strings.SplitSeq(o.policies, ",") {
			wanted = wanted || p != "" && strings.HasPrefix(c.name, p)
		}
		if wanted {
			g.who = append(g.who, c)
		}
	}
	return g, nil
}

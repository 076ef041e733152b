// Package sleep measures what services cost while they sleep: the memory,
// goroutines and timers of a Caddy with many services of Usher, all asleep,
// above those of a Caddy with the same routes and plain reverse_proxy, and
// how long the two take to load and to reload their configurations.
//
// It runs real Caddys, one after the other, and asks them through their admin
// API only. It promises nothing about a Caddy that does anything. With a
// program for the services, it also measures them when all of them have been
// asked for and sleep again.
package sleep

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Budget is how much memory a thousand services may cost while they sleep.
const Budget = 3 << 20

// Config says what is measured.
type Config struct {
	// Caddy is the binary with Usher in it. It also serves the plain routes,
	// so that what is compared is the services, not the binaries.
	Caddy string

	// Services is how many services there are, each with a route for a host of
	// its own. Default: 1000.
	Services int

	// Reloads is how often the configuration is loaded anew, to see that
	// memory does not grow with it. Default: 20.
	Reloads int

	// App is a program that answers requests at the port in its environment.
	// With it, every service is asked for after the reloads and sleeps again,
	// and then Caddy is started anew.
	App string

	// Attribute has every allocation recorded, to tell where the memory is.
	// Loading is so slow then that its times mean nothing, and nothing is
	// reloaded.
	Attribute bool
}

// Result is what came out.
type Result struct {
	Services int
	Usher    Figures // the services
	Plain    Figures // the same routes with reverse_proxy

	// Parts tells where the memory is of which Usher has more, or less, than
	// the plain routes, the greatest first. Only with Config.Attribute.
	Parts []Part
}

// Figures are those of one Caddy.
type Figures struct {
	Load   time.Duration // from the start of the process until it serves
	Reload time.Duration // the median of all reloads of an equal configuration

	Loaded    State // after the load
	Reloaded  State // after the last reload
	Asked     State // after a few requests to each service; only with Config.App
	Restarted State // after a restart then: of what was asked, the policies know
}

// State is what a Caddy holds at one moment, after a collection.
type State struct {
	Heap       int64 // bytes of live objects
	Goroutines int
	Timers     int // that are held by something; only with Config.Attribute
}

// Part is a difference in memory with one cause.
type Part struct {
	Name  string
	Bytes int64
}

// Memory is what the services cost, right after the load and after the
// reloads, in bytes.
func (r Result) Memory() (loaded, reloaded int64) {
	return r.Usher.Loaded.Heap - r.Plain.Loaded.Heap, r.Usher.Reloaded.Heap - r.Plain.Reloaded.Heap
}

// KnownMemory is what the services cost that were asked for before Caddy was
// started, in bytes: their policies remember it.
func (r Result) KnownMemory() int64 { return r.Usher.Restarted.Heap - r.Plain.Loaded.Heap }

// AskedMemory is what the services cost that were asked for since Caddy was
// started, in bytes: metrics, decisions and the like are kept, too.
func (r Result) AskedMemory() int64 { return r.Usher.Asked.Heap - r.Plain.Reloaded.Heap }

// Goroutines is how many goroutines more there are with the services.
func (r Result) Goroutines() int { return r.Usher.Loaded.Goroutines - r.Plain.Loaded.Goroutines }

// Timers is how many timers more there are with the services.
func (r Result) Timers() int { return r.Usher.Loaded.Timers - r.Plain.Loaded.Timers }

// Measure runs both Caddys. It takes a minute.
func Measure(ctx context.Context, cfg Config) (Result, error) {
	cfg.Services, cfg.Reloads = cmp.Or(cfg.Services, 1000), cmp.Or(cfg.Reloads, 20)
	services := cfg
	cfg.App = ""
	plain, plainHeap, err := measureOne(ctx, cfg, plainSite)
	if err != nil {
		return Result{}, fmt.Errorf("the plain routes: %w", err)
	}
	usher, usherHeap, err := measureOne(ctx, services, usherSite)
	if err != nil {
		return Result{}, fmt.Errorf("the services: %w", err)
	}
	res := Result{Services: cfg.Services, Usher: usher, Plain: plain}
	if cfg.Attribute {
		res.Parts = difference(usherHeap, plainHeap)
	}
	return res, nil
}

// plainSite and usherSite are the n-th site of either kind.
func plainSite(n int) string {
	return fmt.Sprintf("\treverse_proxy 127.0.0.1:%d\n", 21000+n)
}

func usherSite(n int) string {
	return fmt.Sprintf("\tusher s%d {\n\t\tbackend process ./%s\n\t}\n", n, program)
}

// caddyfile has so many sites.
func caddyfile(n int, site func(n int) string) string {
	var b strings.Builder
	b.WriteString("{\n\tadmin unix/admin.sock\n\tauto_https off\n\tlog {\n\t\tlevel INFO\n\t}\n}\n")
	for i := range n {
		fmt.Fprintf(&b, "http://s%d.test {\n\tbind unix/site.sock\n%s}\n", i, site(i))
	}
	return b.String()
}

// measureOne runs one Caddy. The profile is that after the load.
func measureOne(ctx context.Context, cfg Config, site func(n int) string) (f Figures, loaded profile, err error) {
	c, err := start(ctx, cfg, caddyfile(cfg.Services, site))
	if err != nil {
		return f, nil, err
	}
	defer func() {
		if stopErr := c.stop(); err == nil {
			err = stopErr
		}
	}()
	f.Load = c.took
	atLeast := fewLooks
	if cfg.Attribute {
		// A look takes long then.
		atLeast = 1
	}
	if f.Loaded, err = c.state(ctx, atLeast); err != nil {
		return f, nil, err
	}
	if cfg.Attribute {
		loaded, err = c.profile(ctx)
		f.Loaded.Timers = loaded.timers()
		return f, loaded, err
	}
	var times []time.Duration
	for range cfg.Reloads {
		took, err := c.reload(ctx)
		if err != nil {
			return f, nil, err
		}
		times = append(times, took)
	}
	slices.Sort(times)
	f.Reload = times[len(times)/2]
	if f.Reloaded, err = c.state(ctx, atLeast); err != nil || cfg.App == "" {
		return f, loaded, err
	}
	if err := c.askAll(ctx, cfg.Services); err != nil {
		return f, nil, err
	}
	if f.Asked, err = c.state(ctx, atLeast); err != nil {
		return f, nil, err
	}
	if err := c.restart(ctx, cfg); err != nil {
		return f, nil, err
	}
	f.Restarted, err = c.state(ctx, atLeast)
	return f, loaded, err
}

// String writes the result as a table.
func (r Result) String() string {
	var b strings.Builder
	loaded, reloaded := r.Memory()
	line := func(what, usher, plain, more string) {
		fmt.Fprintf(&b, "%-28s %12s %12s %12s\n", what, usher, plain, more)
	}
	line(fmt.Sprintf("%d routes", r.Services), "services", "plain", "difference")
	line("heap after the load", megabytes(r.Usher.Loaded.Heap), megabytes(r.Plain.Loaded.Heap), megabytes(loaded))
	count := func(what string, usher, plain int) {
		line(what, strconv.Itoa(usher), strconv.Itoa(plain), strconv.Itoa(usher-plain))
	}
	count("goroutines", r.Usher.Loaded.Goroutines, r.Plain.Loaded.Goroutines)
	if r.Parts != nil {
		count("timers", r.Usher.Loaded.Timers, r.Plain.Loaded.Timers)
	} else {
		line("heap after the reloads", megabytes(r.Usher.Reloaded.Heap), megabytes(r.Plain.Reloaded.Heap), megabytes(reloaded))
		if r.Usher.Asked.Heap > 0 {
			line("heap when all were asked for", megabytes(r.Usher.Asked.Heap), "", megabytes(r.AskedMemory()))
			line("and after a restart", megabytes(r.Usher.Restarted.Heap), "", megabytes(r.KnownMemory()))
			line("goroutines then", strconv.Itoa(r.Usher.Restarted.Goroutines), "", "")
		}
		count("goroutines after the reloads", r.Usher.Reloaded.Goroutines, r.Plain.Reloaded.Goroutines)
		took := func(what string, usher, plain time.Duration) {
			line(what, usher.Round(time.Millisecond).String(), plain.Round(time.Millisecond).String(), (usher - plain).Round(time.Millisecond).String())
		}
		took("load", r.Usher.Load, r.Plain.Load)
		took("reload", r.Usher.Reload, r.Plain.Reload)
	}
	for _, p := range r.Parts {
		fmt.Fprintf(&b, "%12d  %s\n", p.Bytes, p.Name)
	}
	return b.String()
}

func megabytes(n int64) string { return fmt.Sprintf("%.2f MB", float64(n)/(1<<20)) }

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	stockCommand = "github.com/caddy-usher/usher/test/bench/stock"
	usherCommand = "github.com/caddy-usher/usher/test/caddy"
)

// binary builds Caddy with Usher and without, as xcaddy does.
func (b *bench) binary() error {
	stock, usher := filepath.Join(b.dir, "stock"), filepath.Join(b.dir, "with-usher")
	cache := ""
	if !b.short {
		// From nothing: first all of Caddy, then what Usher adds to it.
		cache = filepath.Join(b.dir, "cache")
		first, err := b.buildStripped(stock, stockCommand, cache)
		if err != nil {
			return err
		}
		more, err := b.buildStripped(usher, usherCommand, cache)
		if err != nil {
			return err
		}
		b.figure("building from nothing", wallSeconds, series{(first + more).Seconds()}, wallSeconds(first.Seconds())+" stock", nil)
	}
	var theirs, ours series
	for range b.rounds(3, 1) {
		for _, s := range []struct {
			path, pkg string
			times     *series
		}{{stock, stockCommand, &theirs}, {usher, usherCommand, &ours}} {
			took, err := b.buildStripped(s.path, s.pkg, cache)
			if err != nil {
				return err
			}
			*s.times = append(*s.times, took.Seconds())
		}
	}
	if !b.short {
		b.compare("building again", wallSeconds, ours, theirs, "stock", nil)
	}
	sizes := make(map[string]float64)
	for _, path := range []string{stock, usher} {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		sizes[path] = float64(info.Size())
	}
	b.figure("stripped binary above stock Caddy", megabytes, series{sizes[usher] - sizes[stock]},
		fmt.Sprintf("%s stock, %s with Usher", megabytes(sizes[stock]), megabytes(sizes[usher])), atMost("P9", 10e6, "≤ 10 MB"))
	return nil
}

// buildStripped builds a command: with a cache of its own, as for a release,
// or with what the usual cache has, which was built without -trimpath.
func (b *bench) buildStripped(output, pkg, cache string) (time.Duration, error) {
	// An output that is there already and up to date is not linked again.
	os.Remove(output)
	args := []string{"build", "-ldflags=-s -w", "-o", output}
	env := os.Environ()
	if cache != "" {
		args = append(args, "-trimpath")
		env = append(env, "GOCACHE="+cache)
	}
	cmd := exec.CommandContext(b.ctx, "go", append(args, pkg)...)
	cmd.Env = env
	b.say("go build %s", pkg)
	begun := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return time.Since(begun), nil
}

package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/caddy-usher/usher/test/bench/load"
	"github.com/caddy-usher/usher/test/bench/sleep"
)

// asleep measures sleeping services, and what happens when requests wake many
// of them at once.
func (b *bench) asleep() error {
	if err := b.sleeping(); err != nil {
		return err
	}
	return b.massWake(100)
}

func (b *bench) sleeping() error {
	reloads := b.rounds(20, 5)
	var usher, plain struct{ load, reload series }
	var loaded, reloaded, known, asked, goroutines series
	services := 0
	for range b.rounds(5, 1) {
		r, err := sleep.Measure(b.ctx, sleep.Config{Caddy: b.binaries.caddy, App: b.binaries.app, Reloads: reloads})
		if err != nil {
			return err
		}
		services = r.Services
		first, last := r.Memory()
		loaded, reloaded = append(loaded, float64(first)), append(reloaded, float64(last))
		known, asked = append(known, float64(r.KnownMemory())), append(asked, float64(r.AskedMemory()))
		goroutines = append(goroutines, float64(r.Goroutines()))
		usher.load, plain.load = append(usher.load, float64(r.Usher.Load)), append(plain.load, float64(r.Plain.Load))
		usher.reload, plain.reload = append(usher.reload, float64(r.Usher.Reload)), append(plain.reload, float64(r.Plain.Reload))
	}
	limit := atMost("P8", sleep.Budget, "≤ 3 MB")
	b.figure(fmt.Sprintf("heap of %d services above that of plain routes", services), mebi, loaded, "", limit)
	b.figure(fmt.Sprintf("the same after %d reloads", reloads), mebi, reloaded, "", limit)
	b.figure("the same when each was asked for, and then Caddy was started anew", mebi, known, "", limit)
	b.figure("the same when each was asked for since the start", mebi, asked, "", nil)
	b.figure("goroutines above those of plain routes", pieces, goroutines, "", atMost("P8", 0, "0"))
	if !b.short {
		r, err := sleep.Measure(b.ctx, sleep.Config{Caddy: b.binaries.caddy, Attribute: true})
		if err != nil {
			return err
		}
		b.figure("timers above those of plain routes", pieces, series{float64(r.Timers())}, "", atMost("P8", 0, "0"))
	}
	b.compare("start of Caddy until it serves them", milli, usher.load, plain.load, "plain", nil)
	b.compare("reload", milli, usher.reload, plain.reload, "plain", nil)
	return nil
}

// startLimit is how many starts are in progress at once; it is the default.
const startLimit = 8

// massWake lets one request come for each of n services that sleep, all at
// once, and compares it with starting so many programs by hand, just as many
// at a time.
func (b *bench) massWake(n int) error {
	var usher, byHand series
	for range b.rounds(7, 2) {
		took, err := b.wakeAll(n)
		if err != nil {
			return fmt.Errorf("waking: %w", err)
		}
		usher = append(usher, took)
		if took, err = b.startAll(n); err != nil {
			return fmt.Errorf("starting: %w", err)
		}
		byHand = append(byHand, took)
		b.clear()
	}
	b.compare(fmt.Sprintf("%d services wake at once, %d starts at a time: the last answer", n, startLimit), milli, usher, byHand, "programs started by hand", nil)
	return nil
}

func (b *bench) wakeAll(n int) (float64, error) {
	defer b.clear()
	ports, err := b.freePorts(n + 16)
	if err != nil {
		return 0, err
	}
	var site strings.Builder
	for i := range n {
		fmt.Fprintf(&site, "handle /%d/* {\nusher s%d {\nbackend process %s\n}\n}\n", i, i, b.binaries.app)
	}
	s, err := b.caddy(site.String(), fmt.Sprintf("usher {\nports %d-%d\nstart_limit %d\n}", ports, ports+n+15, startLimit))
	if err != nil {
		return 0, err
	}
	conns := make([]*load.Conn, n)
	for i := range conns {
		if conns[i], err = load.Dial(s.address, fmt.Sprintf("/%d/", i)); err != nil {
			return 0, err
		}
		defer conns[i].Close()
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	begun := time.Now()
	for _, c := range conns {
		wg.Go(func() {
			if failed := c.Ask(); failed != nil {
				mu.Lock()
				defer mu.Unlock()
				err = failed
			}
		})
	}
	wg.Wait()
	took := time.Since(begun)
	if err != nil {
		err = errors.Join(err, errors.New(s.output()))
	}
	return float64(took), err
}

// startAll starts the program n times, so many at a time, until all listen.
func (b *bench) startAll(n int) (float64, error) {
	defer b.clear()
	port, err := b.freePorts(n)
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	started, ready := 0, 0
	waiting := make(map[int]bool, startLimit)
	for ready < n {
		for len(waiting) < startLimit && started < n {
			if _, err := b.start("app", b.binaries.app, "-addr", at(port+started)); err != nil {
				return 0, err
			}
			waiting[port+started] = true
			started++
		}
		for p := range waiting {
			if answers(at(p)) {
				delete(waiting, p)
				ready++
			}
		}
		if time.Since(begun) > time.Minute {
			return 0, fmt.Errorf("%d of %d programs listen after a minute", ready, n)
		}
		time.Sleep(time.Millisecond)
	}
	return float64(time.Since(begun)), nil
}

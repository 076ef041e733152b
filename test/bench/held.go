package main

import (
	"fmt"
	"time"

	"github.com/caddy-usher/usher/test/bench/load"
)

const (
	// holdFor is how long requests may be held: longer than the benchmark.
	holdFor = "1h"
	// slots is how many requests the instance takes at once.
	slots = 16
	// serviceTime is how long each of them takes.
	serviceTime = 10 * time.Millisecond
)

// held measures requests that wait: what they cost, how fast they go when
// they may, and what is left of them when their clients leave.
func (b *bench) held() error {
	counts := []int{1000, 4000, 8000}
	if b.short {
		counts = []int{4000}
	}
	for _, n := range counts {
		if err := b.holding(n); err != nil {
			return fmt.Errorf("%d held: %w", n, err)
		}
		b.clear()
	}
	if err := b.draining(4000); err != nil {
		return fmt.Errorf("draining: %w", err)
	}
	b.clear()
	return b.leaving(4000)
}

// waitingLine starts a Usher whose only instance is occupied, so that all
// that comes is held.
func (b *bench) waitingLine(o *origin) (*server, *load.Held, error) {
	s, err := b.caddy(
		ushered(o, fmt.Sprintf("concurrency %d", slots), "max_waiting 10000", "wait_timeout "+holdFor),
		"usher {\nmax_waiting 10000\n}")
	if err != nil {
		return nil, nil, err
	}
	if err := s.awaitService("web", "the instance is ready", func(st status) bool { return st.Instances.Ready == 1 }); err != nil {
		return nil, nil, err
	}
	inside, err := load.Hold(slots, s.address, "/never")
	if err != nil {
		return nil, nil, err
	}
	return s, inside, s.awaitService("web", "all slots are taken", func(st status) bool { return st.Slots.InUse == slots })
}

// retrying starts a stock Caddy that holds requests in its own way: it tries
// again and again.
func (b *bench) retrying(o *origin) (*server, *load.Held, error) {
	s, err := b.caddy(proxied(o, fmt.Sprintf("unhealthy_request_count %d", slots), "lb_try_duration "+holdFor), "")
	if err != nil {
		return nil, nil, err
	}
	inside, err := load.Hold(slots, s.address, "/never")
	return s, inside, err
}

// holding measures what a request costs while it waits.
func (b *bench) holding(n int) error {
	type way struct {
		start       func(*origin) (*server, *load.Held, error)
		memory, cpu series
	}
	usher, stock := &way{start: b.waitingLine}, &way{start: b.retrying}
	for range b.rounds(3, 1) {
		for _, w := range []*way{usher, stock} {
			bytes, cpu, err := b.hold(n, w.start, w == usher)
			if err != nil {
				return err
			}
			w.memory = append(w.memory, bytes)
			w.cpu = append(w.cpu, cpu)
			b.clear()
		}
	}
	var memory, cpu *budget
	if n == 4000 {
		memory = atMost("P6", 30<<10, "≤ 30 KiB")
		cpu = atMost("P6", 0.005, "< 0.5 % of a core")
	}
	b.figure(fmt.Sprintf("memory of a held request, %d held", n), kibi, usher.memory, kibi(stock.memory.median())+" stock, retrying", memory)
	b.figure(fmt.Sprintf("CPU while %d are held, part of a core", n), percent, usher.cpu, percent(stock.cpu.median())+" stock, retrying", cpu)
	return nil
}

// hold holds n requests for a while.
func (b *bench) hold(n int, start func(*origin) (*server, *load.Held, error), usher bool) (bytesEach, cpu float64, err error) {
	o, err := b.origin(1)
	if err != nil {
		return 0, 0, err
	}
	s, inside, err := start(o)
	if err != nil {
		return 0, 0, err
	}
	defer inside.Leave()
	before, err := s.memory()
	if err != nil {
		return 0, 0, err
	}
	held, err := load.Hold(n, s.address, "/")
	if err != nil {
		return 0, 0, err
	}
	defer held.Leave()
	if usher {
		err = s.awaitService("web", "all wait", func(st status) bool { return st.Waiting == n })
	} else {
		// Each that waits has a goroutine of its own.
		err = await(60*time.Second, "all wait", func() bool {
			g, err := s.metric("go_goroutines")
			return err == nil && g >= float64(n)
		})
	}
	if err != nil {
		return 0, 0, err
	}
	after, err := s.memory()
	if err != nil {
		return 0, 0, err
	}
	// The collector goes on in the background for a moment.
	time.Sleep(time.Second)
	span := b.span(10*time.Second, 3*time.Second)
	begin, err := s.process.cpu()
	if err != nil {
		return 0, 0, err
	}
	begun := time.Now()
	select {
	case <-b.ctx.Done():
		return 0, 0, b.ctx.Err()
	case <-time.After(span):
	}
	end, err := s.process.cpu()
	return (after - before) / float64(n), float64(end-begin) / float64(time.Since(begun)), err
}

// draining measures how well the slots are used while a long line goes
// through them.
func (b *bench) draining(n int) error {
	path := "/slow/" + serviceTime.String()
	drain := func(start func(*origin) (*server, *load.Held, error), ready func(*server) error) (float64, error) {
		defer b.clear()
		o, err := b.origin(1)
		if err != nil {
			return 0, err
		}
		s, inside, err := start(o)
		if err != nil {
			return 0, err
		}
		defer inside.Leave()
		held, err := load.Hold(n, s.address, path)
		if err != nil {
			return 0, err
		}
		defer held.Leave()
		if err := ready(s); err != nil {
			return 0, err
		}
		begun := time.Now()
		if err := o.release(); err != nil {
			return 0, err
		}
		last, err := held.Answers(5 * time.Minute)
		if err != nil {
			return 0, err
		}
		ideal := serviceTime * time.Duration(n) / slots
		return float64(ideal) / float64(last.Sub(begun)), b.ctx.Err()
	}
	var usher, other series
	for range b.rounds(5, 2) {
		part, err := drain(b.waitingLine, func(s *server) error {
			return s.awaitService("web", "all wait", func(st status) bool { return st.Waiting == n })
		})
		if err != nil {
			return err
		}
		usher = append(usher, part)
		if b.binaries.haproxy == "" {
			continue
		}
		part, err = drain(func(o *origin) (*server, *load.Held, error) {
			s, err := b.haproxy(o.addresses(), slots)
			if err != nil {
				return nil, nil, err
			}
			inside, err := load.Hold(slots, s.address, "/never")
			time.Sleep(500 * time.Millisecond)
			return s, inside, err
		}, func(*server) error { time.Sleep(time.Second); return nil })
		if err != nil {
			return err
		}
		other = append(other, part)
	}
	what := fmt.Sprintf("use of %d slots while %d of %s drain", slots, n, serviceTime)
	limit := atLeast("P7", 0.95, "≥ 0.95 of the ideal")
	r := row{
		part: b.part, what: what, usher: hundredths(usher.median()), noise: usher.noise(),
		budget: limit.name + ": " + limit.words,
	}
	if len(other) > 0 {
		// What a proxy that spends next to nothing does not reach either is
		// up to the machine.
		r.other = hundredths(other.median()) + " HAProxy"
		r.noise = max(r.noise, (1-other.median())/usher.median())
	}
	r.verdict = limit.judge(usher.median(), r.noise)
	b.add(r)
	return nil
}

// leaving measures how long it takes until nothing is left of requests whose
// clients have gone, all at once.
func (b *bench) leaving(n int) error {
	var usher, stock, rest, stockRest series
	for range b.rounds(5, 2) {
		o, err := b.origin(1)
		if err != nil {
			return err
		}
		s, inside, err := b.waitingLine(o)
		if err != nil {
			return err
		}
		took, more, err := b.leave(s, n, "/", 0, func() error {
			return s.awaitService("web", "all wait", func(st status) bool { return st.Waiting == n })
		})
		inside.Leave()
		if err != nil {
			return fmt.Errorf("clients of Usher that leave: %w", err)
		}
		usher, rest = append(usher, took), append(rest, more)
		b.clear()

		if o, err = b.origin(1); err != nil {
			return err
		}
		if s, err = b.caddy(proxied(o), ""); err != nil {
			return err
		}
		took, more, err = b.leave(s, n, "/never", idleUpstream, func() error {
			return await(60*time.Second, "all are inside", func() bool {
				g, err := s.metric("go_goroutines")
				return err == nil && g >= float64(n)
			})
		})
		if err != nil {
			return fmt.Errorf("clients of stock Caddy that leave: %w", err)
		}
		stock, stockRest = append(stock, took), append(stockRest, more)
		b.clear()
	}
	limit := max(300e6, 1.5*stock.median())
	b.figure(fmt.Sprintf("%d clients leave: time until nothing is left", n), milli, usher, milli(stock.median())+" stock, while it serves them",
		atMost("P7", limit, "≤ 300 ms or 1.5 × stock"))
	b.figure(fmt.Sprintf("memory above what it was before the %d", n), kibi, rest, kibi(stockRest.median())+" stock", nil)
	return nil
}

// idleUpstream is how many goroutines the connections have that Caddy keeps
// open to an upstream: two each, and 32 connections.
const idleUpstream = 2 * 32

// leave lets n clients come, and go, and looks when all of it is over: when
// no more goroutines are left than there were, and those that may stay.
func (b *bench) leave(s *server, n int, path string, mayStay float64, arrived func() error) (took, rest float64, err error) {
	memory, err := s.memory()
	if err != nil {
		return 0, 0, err
	}
	goroutines, err := s.metric("go_goroutines")
	if err != nil {
		return 0, 0, err
	}
	held, err := load.Hold(n, s.address, path)
	if err != nil {
		return 0, 0, err
	}
	if err := arrived(); err != nil {
		held.Leave()
		return 0, 0, err
	}
	begun := time.Now()
	held.Leave()
	// The one that asks has a connection of its own.
	const own = 4
	left := 0.0
	err = await(30*time.Second, "nothing is left of the requests", func() bool {
		var err error
		left, err = s.metric("go_goroutines")
		return err == nil && left <= goroutines+own+mayStay
	})
	took = float64(time.Since(begun))
	if err != nil {
		return took, 0, fmt.Errorf("%w: %.0f goroutines, %.0f before", err, left, goroutines)
	}
	after, err := s.memory()
	return took, after - memory, err
}

package main

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-usher/usher/test/bench/load"
)

// clients is how many connections ask at once.
const clients = 64

// A side is one of those that are compared, and what was measured of it.
type side struct {
	name string
	*server

	throughput, cpu, allocs, p50, p99 series
}

// warm compares the way of a request to an instance that is ready.
func (b *bench) warm() error {
	for _, n := range []int{1, 100, 1000} {
		if b.short && n == 100 {
			continue
		}
		if err := b.warmWith(n); err != nil {
			return fmt.Errorf("%d instances: %w", n, err)
		}
		b.clear()
	}
	return b.warmH2()
}

// ushered is a site with Usher before the instances of the origin.
func ushered(o *origin, options ...string) string {
	return fmt.Sprintf("usher web {\nbackend existing %s %d\ninstances %d %d\n%s\n}",
		host, o.port, o.n, o.n, strings.Join(options, "\n"))
}

// proxied is the site without Usher.
func proxied(o *origin, options ...string) string {
	return fmt.Sprintf("reverse_proxy %s {\n%s\n}", strings.Join(o.addresses(), " "), strings.Join(options, "\n"))
}

// keeping is the name of a stock Caddy that is told to keep as many idle
// connections as Usher does by itself.
const keeping = "stock, keeping 256 connections"

// sides starts Usher, stock Caddy, the same once more, and HAProxy; and for one
// instance, which all clients share, a stock Caddy that keeps its connections.
func (b *bench) sides(o *origin) (usher, stock, again *side, others []*side, err error) {
	usher, stock = &side{name: "Usher"}, &side{name: "stock"}
	if usher.server, err = b.caddy(ushered(o), ""); err != nil {
		return
	}
	err = usher.awaitService("web", "all instances are ready", func(s status) bool { return s.Instances.Ready == o.n })
	if err != nil {
		return
	}
	if stock.server, err = b.caddy(proxied(o, "lb_policy least_conn"), ""); err != nil {
		return
	}
	others = []*side{stock}
	if o.n == 1 {
		again = &side{name: "stock again"}
		if again.server, err = b.caddy(proxied(o, "lb_policy least_conn"), ""); err != nil {
			return
		}
		kept := &side{name: keeping}
		if kept.server, err = b.caddy(proxied(o, "lb_policy least_conn", "transport http {\nkeepalive_idle_conns_per_host 256\n}"), ""); err != nil {
			return
		}
		others = append(others, again, kept)
	}
	if b.binaries.haproxy != "" {
		h := &side{name: "HAProxy"}
		if h.server, err = b.haproxy(o.addresses(), 0); err != nil {
			return
		}
		others = append(others, h)
	}
	return usher, stock, again, others, nil
}

func (b *bench) warmWith(n int) error {
	o, err := b.origin(n)
	if err != nil {
		return err
	}
	usher, stock, again, others, err := b.sides(o)
	if err != nil {
		return err
	}
	all := append([]*side{usher}, others...)
	rounds := b.rounds(9, 3)
	if n > 1 {
		rounds = b.rounds(5, 2)
	}
	for i := range rounds + 1 {
		for k := range all {
			// Each round begins with another one.
			if err := b.saturate(all[(i+k)%len(all)], i > 0); err != nil {
				return err
			}
		}
	}
	// Well below what the slowest can do, latency is the proxy's own, and not
	// that of a queue.
	slowest := stock.throughput.median()
	for _, s := range all {
		slowest = min(slowest, s.throughput.median())
	}
	rate := slowest * 0.3
	for i := range rounds {
		for k := range all {
			if err := b.pace(all[(i+k)%len(all)], load.HTTP1, rate); err != nil {
				return err
			}
		}
	}
	of := fmt.Sprintf(", %d instances", n)
	if n == 1 {
		of = ", 1 instance"
	}
	noise := func(pick func(*side) series) float64 {
		if again == nil {
			return 0
		}
		twice := pick(again).over(pick(stock))
		return abs(twice.median()-1) + twice.noise()
	}
	if again != nil {
		b.compare("stock Caddy against itself: throughput", perSecond, again.throughput, stock.throughput, "stock", nil)
		b.compare("stock Caddy against itself: CPU per request", micro, again.cpu, stock.cpu, "stock", nil)
	}
	for _, other := range others {
		if other == again {
			continue
		}
		var limit *budget
		if n == 1 && other == stock {
			limit = atLeast("P1", 0.97, "≥ 0.97 of stock")
		}
		b.idleNoise = noise(func(s *side) series { return s.throughput })
		b.compare("throughput"+of, perSecond, usher.throughput, other.throughput, other.name, limit)
		b.idleNoise = noise(func(s *side) series { return s.cpu })
		b.compare("CPU per request"+of, micro, usher.cpu, other.cpu, other.name, nil)
		b.idleNoise = 0
		if other == stock {
			b.compare("allocations per request"+of, pieces, usher.allocs, other.allocs, other.name, nil)
		}
		b.idleNoise = noise(func(s *side) series { return s.p50 })
		b.compare(fmt.Sprintf("p50 at %.0f/s%s", rate, of), micro, usher.p50, other.p50, other.name, nil)
		b.idleNoise = noise(func(s *side) series { return s.p99 })
		b.compare(fmt.Sprintf("p99 at %.0f/s%s", rate, of), micro, usher.p99, other.p99, other.name, nil)
		b.idleNoise = 0
	}
	return nil
}

// warmH2 compares the way of a request that comes by HTTP/2.
func (b *bench) warmH2() error {
	o, err := b.origin(1)
	if err != nil {
		return err
	}
	binary := b.binaries.haproxy
	b.binaries.haproxy = "" // it does not speak HTTP/2 beside HTTP/1.1 without TLS
	usher, stock, again, _, err := b.sides(o)
	b.binaries.haproxy = binary
	if err != nil {
		return err
	}
	const rate = 1000
	for i := range b.rounds(7, 3) + 1 {
		all := []*side{usher, stock, again}
		for k := range all {
			s := all[(i+k)%len(all)]
			if err := b.pace(s, load.H2, rate); err != nil {
				return err
			}
			if i == 0 {
				s.cpu, s.p50, s.p99 = nil, nil, nil // it was for warming up
			}
		}
	}
	b.idleNoise = abs(again.cpu.over(stock.cpu).median() - 1)
	b.compare(fmt.Sprintf("HTTP/2, CPU per request at %d/s", rate), micro, usher.cpu, stock.cpu, "stock", nil)
	b.idleNoise = abs(again.p50.over(stock.p50).median() - 1)
	b.compare(fmt.Sprintf("HTTP/2, p50 at %d/s", rate), micro, usher.p50, stock.p50, "stock", nil)
	b.idleNoise = abs(again.p99.over(stock.p99).median() - 1)
	b.compare(fmt.Sprintf("HTTP/2, p99 at %d/s", rate), micro, usher.p99, stock.p99, "stock", nil)
	b.idleNoise = 0
	return nil
}

func abs(v float64) float64 { return max(v, -v) }

// saturate lets clients ask without pause, and notes throughput, CPU and
// allocations.
func (b *bench) saturate(s *side, note bool) error {
	mallocs := func() float64 {
		if s.admin == "" {
			return 0
		}
		n, err := s.metric("go_memstats_mallocs_total")
		if err != nil {
			b.say("%s: %v", s.name, err)
		}
		return n
	}
	// The looking itself allocates, too.
	first := mallocs()
	before := mallocs()
	start, err := s.process.cpu()
	if err != nil {
		return err
	}
	rate, requests, err := b.hammer(s.address, b.span(3*time.Second, time.Second))
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	end, err := s.process.cpu()
	if err != nil {
		return err
	}
	if note {
		s.throughput = append(s.throughput, rate)
		s.cpu = append(s.cpu, float64(end-start)/requests)
		s.allocs = append(s.allocs, (mallocs()-before-(before-first))/requests)
	}
	return b.ctx.Err()
}

// pace sends requests at a constant rate, and notes latencies and CPU.
func (b *bench) pace(s *side, connect func(address, path string) func() (load.Asker, error), rate float64) error {
	start, err := s.process.cpu()
	if err != nil {
		return err
	}
	r, err := load.Constant(rate, b.span(3*time.Second, time.Second), clients, connect(s.address, "/"))
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	end, err := s.process.cpu()
	if err != nil {
		return err
	}
	if len(s.throughput) == 0 {
		s.cpu = append(s.cpu, float64(end-start)/float64(len(r.Latencies)))
	}
	s.p50 = append(s.p50, float64(r.Quantile(0.5)))
	s.p99 = append(s.p99, float64(r.Quantile(0.99)))
	return b.ctx.Err()
}

var (
	wrkRequests = regexp.MustCompile(`(\d+) requests in `)
	wrkRate     = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
)

// hammer lets clients ask without pause: by wrk, which needs the least CPU
// for itself, where it is installed.
func (b *bench) hammer(address string, d time.Duration) (rate, requests float64, err error) {
	if b.binaries.wrk == "" {
		r, err := load.Closed(d, clients, load.HTTP1(address, "/"))
		return r.Rate(), float64(len(r.Latencies)), err
	}
	out, err := exec.CommandContext(b.ctx, b.binaries.wrk, "-t1", "-c"+strconv.Itoa(clients), "-d"+strconv.Itoa(int(d.Seconds())), "http://"+address+"/").CombinedOutput()
	if err != nil {
		return 0, 0, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	text := string(out)
	if strings.Contains(text, "Non-2xx") || strings.Contains(text, "Socket errors") {
		return 0, 0, fmt.Errorf("requests failed:\n%s", text)
	}
	n, perSecond := wrkRequests.FindStringSubmatch(text), wrkRate.FindStringSubmatch(text)
	if n == nil || perSecond == nil {
		return 0, 0, errors.New("wrk says something else: " + text)
	}
	if requests, err = strconv.ParseFloat(n[1], 64); err == nil {
		rate, err = strconv.ParseFloat(perSecond[1], 64)
	}
	return rate, requests, err
}

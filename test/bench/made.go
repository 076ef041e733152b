package main

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddy-usher/usher/test/bench/load"
)

const (
	// madePace is how many services are made in a second.
	madePace = 100

	// othersPace is how many requests another service gets in a second meanwhile.
	othersPace = 1000

	// plainRoutes is how many routes a Caddy has that shows what one costs.
	plainRoutes = 1000

	// madeBudget is the memory of a service that sleeps above that of a plain route:
	// what P8 allows for each of a thousand.
	madeBudget = 3e6 / 1000
)

// made measures services that are made while Caddy runs: what making them does to the
// requests of others, what they cost, and how soon a Caddy that was killed knows them.
func (b *bench) made() error {
	n := 10_000
	if b.short {
		n = 1000
	}
	home, err := b.home()
	if err != nil {
		return err
	}
	s, err := b.madeCaddy(home)
	if err != nil {
		return err
	}
	heap, anonymous, err := s.bothMemories()
	if err != nil {
		return err
	}
	took, calls, others, err := s.makeAll(n)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, s.output())
	}
	var starts, heaps, anonymouses series
	for range b.rounds(5, 2) {
		began := time.Now()
		s.kill()
		if s, err = b.madeCaddy(home); err != nil {
			return err
		}
		if err := s.knows(n); err != nil {
			return fmt.Errorf("%w\n%s", err, s.output())
		}
		starts = append(starts, float64(time.Since(began)))
		heapAfter, anonymousAfter, err := s.bothMemories()
		if err != nil {
			return err
		}
		heaps, anonymouses = append(heaps, (heapAfter-heap)/float64(n)), append(anonymouses, (anonymousAfter-anonymous)/float64(n))
	}
	s.stop()
	plain, err := b.plainRoute()
	if err != nil {
		return err
	}
	b.figure(fmt.Sprintf("%d services made, %d a second wanted, while another one gets %d requests a second", n, madePace, othersPace), perSecond, series{float64(n) / took.Seconds()}, "", nil)
	b.figure("one call, p50", milli, series{float64(calls.Quantile(0.5))}, "", nil)
	b.figure("one call, p99", milli, series{float64(calls.Quantile(0.99))}, "", nil)
	b.figure("requests of others meanwhile; none failed", perSecond, series{others.Rate()}, "", nil)
	b.figure("memory of one that sleeps, heap and stacks", kibi, heaps, kibi(plain)+" a route with reverse_proxy", nil)
	above := make(series, len(heaps))
	for k, h := range heaps {
		above[k] = h - plain
	}
	b.figure("the same above that of such a route", kibi, above, "", atMost("P8", madeBudget, "≤ 3 kB"))
	b.figure("all memory of one that sleeps, with what the collector has not given back", kibi, anonymouses, "", nil)
	b.figure("start after kill -9, until all are known", milli, starts, "", atMost("start", 2e9, "≤ 2 s"))
	return nil
}

// plainRoute is the memory of a route that hands requests to one server.
func (b *bench) plainRoute() (float64, error) {
	heaps := make([]float64, 2)
	for k, n := range []int{0, plainRoutes} {
		var site strings.Builder
		for i := range n {
			fmt.Fprintf(&site, "handle /s%d/* {\nreverse_proxy 127.0.0.1:1\n}\n", i)
		}
		s, err := b.caddy(site.String()+"respond ok\n", "")
		if err != nil {
			return 0, err
		}
		if heaps[k], err = s.memory(); err != nil {
			return 0, err
		}
		s.stop()
	}
	return (heaps[1] - heaps[0]) / plainRoutes, nil
}

// madeCaddy starts a Caddy with one service of its configuration, and a template for
// those that are made.
func (b *bench) madeCaddy(home string) (*server, error) {
	ports, err := b.freePorts(8)
	if err != nil {
		return nil, err
	}
	global := fmt.Sprintf("usher {\nports %d-%d\ntemplate web {\nbackend process %s\nparam NAME ^[a-z0-9]+$ env\n}\nregistry {\nallow template web\n}\n}", ports, ports+7, b.binaries.app)
	site := fmt.Sprintf("handle /made/* {\nusher {http.request.uri.path.1} {\nfrom ^s[0-9]+$\n}\n}\nhandle {\nusher steady {\nbackend process %s\nconcurrency %d\n}\n}", b.binaries.app, clients)
	s, err := b.caddyIn(home, b.binaries.caddy, site, global)
	if err != nil {
		return nil, err
	}
	return s, s.awaitService("steady", "the service is there", func(status) bool { return true })
}

// makeAll makes n services at the pace, while clients ask the one of the configuration.
func (s *server) makeAll(n int) (took time.Duration, calls, others load.Result, err error) {
	var wg sync.WaitGroup
	var loadErr error
	wg.Go(func() {
		others, loadErr = load.Constant(othersPace, time.Duration(n)*time.Second/madePace, clients, load.HTTP1(s.address, "/"))
	})
	var mu sync.Mutex
	turns := make(chan int)
	for range 8 {
		wg.Go(func() {
			for k := range turns {
				began := time.Now()
				_, failed := s.askAdmin(http.MethodPut, fmt.Sprintf("/usher/services/s%d", k), "application/json", []byte(`{"template":"web","params":{"NAME":"bench"}}`))
				mu.Lock()
				calls.Latencies = append(calls.Latencies, time.Since(began))
				err = errors.Join(err, failed)
				mu.Unlock()
			}
		})
	}
	began := time.Now()
	tick := time.NewTicker(time.Second / madePace)
	defer tick.Stop()
	for k := range n {
		<-tick.C
		turns <- k
	}
	close(turns)
	wg.Wait()
	took = time.Since(began)
	calls.Took = took
	slices.Sort(calls.Latencies)
	return took, calls, others, errors.Join(err, loadErr)
}

// knows waits until the last of n services that were made is found.
func (s *server) knows(n int) error {
	return await(time.Minute, "all services are known", func() bool {
		for _, k := range []int{0, n / 2, n - 1} {
			if _, err := s.askAdmin(http.MethodGet, fmt.Sprintf("/usher/services/s%d", k), "", nil); err != nil {
				return false
			}
		}
		return true
	})
}

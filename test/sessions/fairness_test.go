package sessions

import (
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// waits has, for each client, how long its requests waited, in milliseconds.
type waits map[string][]int

// p99 of all clients but one.
func (w waits) p99(but string) int {
	var all []int
	for client, of := range w {
		if client != but {
			all = append(all, of...)
		}
	}
	slices.Sort(all)
	return all[len(all)*99/100]
}

// load lets clients send for a while, each with so many requests at a time.
func load(t *testing.T, c *harness.Caddy, d time.Duration, atATime map[string]int) waits {
	t.Helper()
	got := make(waits)
	var mu sync.Mutex
	var all sync.WaitGroup
	end := time.Now().Add(d)
	for client, n := range atATime {
		for range n {
			all.Go(func() {
				for time.Now().Before(end) {
					r := c.Do(harness.Request{Path: "/sleep?d=20ms", Header: http.Header{"Client": {client}}})
					ms, err := strconv.Atoi(r.Header.Get("X-Wait"))
					if r.Status != 200 || err != nil {
						t.Errorf("%s: %d %v %s", client, r.Status, r.Err, r.Body)
						return
					}
					mu.Lock()
					got[client] = append(got[client], ms)
					mu.Unlock()
				}
			})
		}
	}
	all.Wait()
	return got
}

// One client sends a hundred times as much as each of the others. They wait no
// more than twice as long as without it.
func TestG2OneBusyClientDoesNotMakeTheOthersWait(t *testing.T) {
	c := harness.New(t)
	c.Start(harness.Config{Site: harness.Usher("web", c.Backend(), "instances 1", "concurrency 2", "fair_by {header.Client}", "header_down X-Wait {http.usher.wait_ms}")})
	calm := make(map[string]int)
	for k := range 7 {
		calm["calm"+strconv.Itoa(k)] = 2
	}
	load(t, c, time.Second, calm)
	without := load(t, c, 4*time.Second, calm)
	calm["busy"] = 200
	with := load(t, c, 8*time.Second, calm)
	a, b := without.p99("busy"), with.p99("busy")
	t.Logf("p99 of the others' waits: %d ms without the busy client, %d ms with it; it had %d of %d answers, and waited %d ms",
		a, b, len(with["busy"]), len(with["busy"])+7*len(with["calm0"]), slices.Max(with["busy"]))
	if b > 2*a {
		t.Errorf("the others' p99 is %d ms, and without the busy client %d ms", b, a)
	}
	for client, of := range with {
		if client != "busy" && len(of) < 2*len(without[client])*6/10 {
			t.Errorf("%s had %d answers in 8 s, and %d in 4 s without the busy client", client, len(of), len(without[client]))
		}
	}
}

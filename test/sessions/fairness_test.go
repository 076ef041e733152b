package sessions

import (
	"net/http"
	"slices"
	"sort"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// waited is what a request has waited for.
type waited struct {
	client, seq string
	ms          int // by Usher's clock
	turns       int // how many requests got an instance while it waited
}

// load lets clients send for a while, each with so many requests at a time.
func load(t *testing.T, c *harness.Caddy, phase string, d time.Duration, atATime map[string]int) []waited {
	t.Helper()
	var got []waited
	var mu sync.Mutex
	var all sync.WaitGroup
	end := time.Now().Add(d)
	for client, n := range atATime {
		for sender := range n {
			all.Go(func() {
				for k := 0; time.Now().Before(end); k++ {
					seq := phase + " " + client + " " + strconv.Itoa(sender) + " " + strconv.Itoa(k)
					r := c.Do(harness.Request{Path: "/sleep?d=20ms", Header: http.Header{"Client": {client}, "X-Seq": {seq}}})
					ms, err := strconv.Atoi(r.Header.Get("X-Wait"))
					if r.Status != 200 || err != nil {
						t.Errorf("%s: %d %v %s", client, r.Status, r.Err, r.Body)
						return
					}
					mu.Lock()
					got = append(got, waited{client: client, seq: seq, ms: ms})
					mu.Unlock()
				}
			})
		}
	}
	all.Wait()
	countTurns(t, c, got)
	return got
}

// countTurns counts for each request how many others began while it waited. On
// a machine that is busy with other work a turn takes longer, and it is still
// one turn.
func countTurns(t *testing.T, c *harness.Caddy, all []waited) {
	t.Helper()
	var begun []int64
	began := make(map[string]int64)
	for _, e := range c.Journal().Of("begin") {
		begun = append(begun, e.Time)
		began[e.Seq] = e.Time
	}
	slices.Sort(begun)
	after := func(at int64) int { return sort.Search(len(begun), func(k int) bool { return begun[k] > at }) }
	for k := range all {
		at, ok := began[all[k].seq]
		if !ok {
			t.Fatalf("the instance did not note request %q", all[k].seq)
		}
		all[k].turns = max(0, after(at)-after(at-int64(all[k].ms)*int64(time.Millisecond))-1)
	}
}

// p99 returns the longest wait of all clients but one, less the longest percent.
func p99(all []waited, but string, of func(waited) int) int {
	var waits []int
	for _, w := range all {
		if w.client != but {
			waits = append(waits, of(w))
		}
	}
	slices.Sort(waits)
	return waits[len(waits)*99/100]
}

// One client sends a hundred times as much as each of the others. They wait no
// more than twice as long as without it.
func TestG2OneBusyClientDoesNotMakeTheOthersWait(t *testing.T) {
	c := harness.New(t)
	c.Start(harness.Config{Site: harness.Usher("web", c.Backend(), "instances 1", "concurrency 2", "fair_by {header.Client}", "header_down X-Wait {http.usher.wait_ms}")})
	clients := make(map[string]int)
	for k := range 7 {
		clients["calm"+strconv.Itoa(k)] = 2
	}
	load(t, c, "warm", time.Second, clients)
	without := load(t, c, "without", 4*time.Second, clients)
	clients["busy"] = 200
	with := load(t, c, "with", 8*time.Second, clients)

	answers := make(map[string]int)
	for _, w := range with {
		answers[w.client]++
	}
	ms, turns := func(w waited) int { return w.ms }, func(w waited) int { return w.turns }
	t.Logf("p99 of the others' waits: %d turns (%d ms) without the busy client, %d turns (%d ms) with it; it had %d of %d answers",
		p99(without, "busy", turns), p99(without, "busy", ms), p99(with, "busy", turns), p99(with, "busy", ms), answers["busy"], len(with))
	if a, b := p99(without, "busy", turns), p99(with, "busy", turns); b > 2*a {
		t.Errorf("the others' p99 is %d turns, and without the busy client %d", b, a)
	}
	for client := range clients {
		if fair := len(with) / len(clients); client != "busy" && answers[client] < fair*6/10 {
			t.Errorf("%s had %d answers; its fair share of %d is %d", client, answers[client], len(with), fair)
		}
	}
}

package chaos

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// A footprint is what Caddy holds while all services sleep.
type footprint struct {
	goroutines map[string]int // by where they were made, and where they are
	files      []string
	heap       int
}

func (f footprint) count() int {
	n := 0
	for _, k := range f.goroutines {
		n += k
	}
	return n
}

var (
	profileEntry = regexp.MustCompile(`(?m)^(\d+) @`)
	heapAlloc    = regexp.MustCompile(`(?m)^# HeapAlloc = (\d+)`)
)

// takeFootprint looks at what Caddy holds now.
func takeFootprint(t *testing.T, c *harness.Caddy) footprint {
	t.Helper()
	f := footprint{goroutines: make(map[string]int)}
	res := c.Admin(http.MethodGet, "/debug/pprof/goroutine?debug=1", "")
	if res.Err != nil {
		t.Fatal(res.Err)
	}
	for part := range strings.SplitSeq(res.Body, "\n\n") {
		if m := profileEntry.FindStringSubmatch(part); m != nil {
			n, _ := strconv.Atoi(m[1])
			f.goroutines[frames(part)] += n
		}
	}
	res = c.Admin(http.MethodGet, "/debug/pprof/heap?gc=1&debug=1", "")
	if m := heapAlloc.FindStringSubmatch(res.Body); m != nil {
		f.heap, _ = strconv.Atoi(m[1])
	}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", c.PID()))
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err == nil {
			f.files = append(f.files, target)
		}
	}
	slices.Sort(f.files)
	return f
}

// frames are the functions of a stack, without addresses.
func frames(part string) string {
	var names []string
	for line := range strings.Lines(part) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "#" {
			name, _, _ := strings.Cut(fields[2], "+")
			names = append(names, name)
		}
	}
	return strings.Join(names, " < ")
}

// above returns how many goroutines f has more than a base, and which.
func (f footprint) above(base footprint) (n int, which string) {
	var b strings.Builder
	for stack, k := range f.goroutines {
		if more := k - base.goroutines[stack]; more > 0 {
			fmt.Fprintf(&b, "  %d more: %s\n", more, stack)
		}
	}
	return f.count() - base.count(), b.String()
}

// checkAsleep waits until all services sleep by themselves, and checks that
// nothing of them is left on the machine.
func checkAsleep(t *testing.T, c *harness.Caddy, ports string) {
	t.Helper()
	var last []harness.Service
	asleep := func() bool {
		last = c.Services()
		for _, s := range last {
			in := s.Instances
			if s.State != "asleep" || s.Waiting != 0 || s.Slots.InUse != 0 || in.Ready+in.Starting+in.Ejected+in.Draining != 0 {
				return false
			}
		}
		return c.Count() == 0 && len(last) == len(services)
	}
	if !harness.WaitFor(harness.Slow(30*time.Second), asleep) {
		text, _ := json.MarshalIndent(last, "", "  ")
		t.Errorf("not everything sleeps and is gone: processes %+v, services %s", c.Processes(), text)
		return
	}
	left := func() (left []string) {
		for _, glob := range []string{"data/caddy/usher/process/*", "tmp/*/*"} {
			found, _ := filepath.Glob(c.Path(glob))
			left = append(left, found...)
		}
		// A half-written record has no known owner. A Caddy that starts removes
		// it once it is a minute old.
		left = slices.DeleteFunc(left, func(path string) bool { return strings.HasSuffix(path, ".json.new") })
		from, to, _ := cutPorts(ports)
		for _, port := range harness.ListeningIn(from, to) {
			left = append(left, fmt.Sprintf("port %d", port))
		}
		return left
	}
	if !harness.WaitFor(5*time.Second, func() bool { return len(left()) == 0 }) {
		t.Errorf("left over when all services sleep: %v", left())
	}
}

// checkFootprint waits until Caddy holds no more than in the beginning.
func checkFootprint(t *testing.T, c *harness.Caddy, base footprint) {
	t.Helper()
	const (
		// Connections of the test itself, and what Caddy does by its clock.
		spareGoroutines, spareFiles = 4, 3
		spareHeap                   = 6 << 20
	)
	var now footprint
	if !harness.WaitFor(harness.Slow(15*time.Second), func() bool {
		now = takeFootprint(t, c)
		more, _ := now.above(base)
		return more <= spareGoroutines && len(now.files) <= len(base.files)+spareFiles && now.heap <= base.heap+spareHeap
	}) {
		_, which := now.above(base)
		t.Errorf("Caddy holds more than in the beginning: %d goroutines, then %d\n%sfiles: %v,\nthen %v\nheap: %d KiB, then %d KiB",
			base.count(), now.count(), which, base.files, now.files, base.heap>>10, now.heap>>10)
	}
	t.Logf("in the beginning %d goroutines, %d files, %d KiB of heap; in the end %d, %d, %d KiB",
		base.count(), len(base.files), base.heap>>10, now.count(), len(now.files), now.heap>>10)
}

// A watch looks at what the admin API tells all the time.
type watch struct {
	stop   chan struct{}
	wg     sync.WaitGroup
	mu     sync.Mutex
	looks  int
	broken []string
}

// watchBooks begins to look. At no moment may a request wait beside a free
// slot: the counters of a service are taken together.
func watchBooks(c *harness.Caddy) *watch {
	w := &watch{stop: make(chan struct{})}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	w.wg.Go(func() {
		for {
			select {
			case <-w.stop:
				return
			case <-time.After(40 * time.Millisecond):
			}
			var all []harness.Service
			res, err := client.Get("http://" + c.AdminAddr + "/usher/services")
			if err != nil {
				continue // Caddy is down, or replaces its admin server
			}
			err = json.NewDecoder(res.Body).Decode(&all)
			res.Body.Close()
			if err != nil {
				continue
			}
			w.look(all)
		}
	})
	return w
}

func (w *watch) look(all []harness.Service) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks++
	for _, s := range all {
		if total := s.Slots.Total; total != nil && s.Waiting > 0 && s.Slots.InUse < *total {
			w.broken = append(w.broken, fmt.Sprintf("%s %s: %d wait, and of %d slots %d are in use",
				time.Now().Format(clock), s.Name, s.Waiting, *total, s.Slots.InUse))
		}
		if s.Waiting < 0 || s.Slots.InUse < 0 {
			w.broken = append(w.broken, fmt.Sprintf("%s: a negative counter: %+v", s.Name, s))
		}
	}
}

// end stops looking, and returns how often it looked and what was wrong.
func (w *watch) end() (looks int, broken []string) {
	close(w.stop)
	w.wg.Wait()
	return w.looks, w.broken
}

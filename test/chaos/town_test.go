package chaos

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// The services. Calm is the one that nothing is done to: whatever happens to
// its neighbours, it serves.
const calm = "calm"

// disturbed are the others.
var disturbed = []string{"tcp", "unix", "fd", "retry"}

var services = append([]string{calm}, disturbed...)

// waitTimeout is that of every place, and longest what a request takes inside
// at most, a stopped instance aside.
const (
	waitTimeout = 6 * time.Second
	longest     = 2500 * time.Millisecond
)

// limits are the options that change while a service runs.
type limits struct {
	concurrency, maxWaiting, min, max int
	balance                           string
}

func (l limits) String() string {
	return fmt.Sprintf("(concurrency %d, max_waiting %d, instances %d %d, balance %s)", l.concurrency, l.maxWaiting, l.min, l.max, l.balance)
}

func drawLimits(rng *rand.Rand) limits {
	least := rng.IntN(2)
	return limits{
		concurrency: 1 + rng.IntN(4), maxWaiting: []int{0, 2, 8, 100}[rng.IntN(4)],
		min: least, max: max(1, least+rng.IntN(3)),
		balance: []string{"least_loaded", "oldest", "random"}[rng.IntN(3)],
	}
}

// settings are what the configuration says about a service.
type settings struct {
	limits
	revision int
	removed  bool
}

// town is the configuration: what is in force now, and what was.
type town struct {
	c     *harness.Caddy
	keep  bool // on_exit
	wide  string
	ports string
	now   map[string]settings

	mu       sync.Mutex
	history  map[string][]era
	reloads  int
	changing bool // a reload is under way
}

// era is a time in which settings were in force, at least for a part of it.
type era struct {
	settings
	from, to time.Time // to is zero while it lasts
}

func newTown(c *harness.Caddy, ports string, keep bool) *town {
	w := &town{c: c, keep: keep, wide: ports, ports: ports, history: make(map[string][]era)}
	w.now = w.base()
	return w
}

// base is the configuration with which a run begins and ends.
func (w *town) base() map[string]settings {
	return map[string]settings{
		calm:    {limits: limits{concurrency: 50, maxWaiting: 1000, max: 1, balance: "least_loaded"}},
		"tcp":   {limits: limits{concurrency: 2, maxWaiting: 8, max: 3, balance: "least_loaded"}},
		"unix":  {limits: limits{concurrency: 1, maxWaiting: 100, max: 2, balance: "oldest"}},
		"fd":    {limits: limits{concurrency: 4, maxWaiting: 8, max: 2, balance: "random"}},
		"retry": {limits: limits{concurrency: 2, maxWaiting: 100, max: 2, balance: "least_loaded"}},
	}
}

// config writes the configuration down.
func (w *town) config(now map[string]settings) harness.Config {
	onExit := "on_exit stop"
	if w.keep {
		onExit = "on_exit keep"
	}
	var site strings.Builder
	fmt.Fprintf(&site, "log {\n\toutput file %s {\n\t\troll_disabled\n\t}\n}\n@loud not header X-Quiet *\n", w.c.Path("access.log"))
	for _, name := range services {
		if !now[name].removed {
			fmt.Fprintf(&site, "handle_path /%s/* {\n%s\n}\n", name, w.directive(name, now[name]))
		}
	}
	site.WriteString("respond 404")
	return harness.Config{
		Global: "servers {\n\tprotocols h1 h2c\n}",
		Usher:  onExit + "\nstart_limit 4",
		Ports:  w.ports,
		Site:   site.String(),
	}
}

func (w *town) directive(name string, s settings) string {
	args := []string{"-exit-while", w.c.Path("broken-" + name), "-slow-while", w.c.Path("slow-" + name)}
	backend := fmt.Sprintf("env REVISION %d", s.revision)
	var more []string
	switch name {
	case "unix":
		backend += "\nlisten unix"
		args = append(args, "-socket", "{usher.socket}")
		more = append(more, "ready http /healthz")
	case "fd":
		backend += "\nlisten fd"
	case "retry":
		more = append(more, "lb_retries 3", "lb_retry_match {\n\tmethod GET\n}")
	}
	return harness.Usher(name, append([]string{
		w.c.BackendWith(backend, args...),
		fmt.Sprintf("instances %d %d\nconcurrency %d\nmax_waiting %d\nbalance %s", s.min, s.max, s.concurrency, s.maxWaiting, s.balance),
		"idle_timeout 1s\nstart_timeout 6s\ndrain_timeout 8s\nstop_timeout 2s",
		"scale queue {\n\tdown_window 1s\n}",
		fmt.Sprintf("wait_timeout %s\nwake @loud", waitTimeout),
	}, more...)...)
}

// begin notes that settings may be in force from now on.
func (w *town) begin(now map[string]settings) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reloads++
	w.changing = true
	for name, s := range now {
		w.history[name] = append(w.history[name], era{settings: s, from: time.Now()})
	}
}

// end notes that of all eras only those of the settings go on.
func (w *town) end(now map[string]settings) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changing = false
	for name, eras := range w.history {
		for k := range eras {
			if e := &eras[k]; e.to.IsZero() && e.settings != now[name] {
				e.to = time.Now()
			}
		}
	}
}

// generation counts the configurations that were tried, and tells whether one
// is being tried.
func (w *town) generation() (n int, changing bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reloads, w.changing
}

// during returns the settings of a service that were in force in some moment
// of a time.
func (w *town) during(name string, from, to time.Time) []settings {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []settings
	for _, e := range w.history[name] {
		if !e.from.After(to) && (e.to.IsZero() || !e.to.Before(from)) {
			all = append(all, e.settings)
		}
	}
	return all
}

// slots is the highest limit of an instance's requests in a time.
func (w *town) slots(name string, from, to time.Time) int {
	most := 0
	for _, s := range w.during(name, from, to) {
		most = max(most, s.concurrency)
	}
	return most
}

// with returns the configuration with one service changed.
func (w *town) with(name string, change func(*settings)) map[string]settings {
	next := maps.Clone(w.now)
	s := next[name]
	change(&s)
	next[name] = s
	return next
}

// bad returns a configuration that cannot be loaded, in one of several ways,
// and what it would have put in force before that shows.
func (w *town) bad(s step) (harness.Config, map[string]settings) {
	next := w.with(s.service, func(x *settings) { x.limits = s.limits })
	cfg := w.config(next)
	switch s.n % 5 {
	case 0: // it shows when the listeners are opened: everything was in force
		cfg.Sites = "http://" + w.c.SpareAddr + " {\n\trespond ok\n}\n"
	case 1:
		cfg.Site += "\nusher not-defined"
	case 2:
		cfg.Site = strings.Replace(cfg.Site, "idle_timeout 1s", "idle_timeout soon", 1)
	case 3:
		cfg.Site = strings.Replace(cfg.Site, "stop_timeout 2s", "stop_timeout 2s\nlb_policy first", 1)
	default: // another definition of a service that is always there
		cfg.Site += "\nusher " + calm + " {\n\tbackend process /bin/true\n}"
	}
	return cfg, next
}

// leastWaiting is the least limit of the line among the settings.
func leastWaiting(all []settings) int {
	return slices.MinFunc(all, func(a, b settings) int { return a.maxWaiting - b.maxWaiting }).maxWaiting
}

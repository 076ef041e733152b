package marathonsim

import (
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// The kinds of faults that stay until they are taken back, or have struck as
// often as they should. What happens once, such as a partition or the end of
// a stream, is a method of Sim.
const (
	// Of the API. Method, Path (a prefix) and Node say where.
	FaultLatency  = "latency"   // Delay before anything happens
	FaultStatus   = "status"    // answers Status (500) and does nothing
	FaultReset    = "reset"     // the request is carried out, and the connection reset
	FaultTruncate = "truncate"  // half of the body, and the end
	FaultSlowBody = "slow_body" // the body comes in pieces, with Delay between them
	FaultHang     = "hang"      // accepts, and never answers
	FaultStale    = "stale"     // what is read of tasks is up to Delay old (2s)
	FaultLoop     = "loop"      // /v2/events redirects to itself
	FaultDeadEnd  = "dead_end"  // /v2/events redirects to a leader that is not there

	// Of the event streams.
	FaultEventLost      = "event_lost"
	FaultEventTwice     = "event_twice"
	FaultEventLate      = "event_late"      // by up to Delay (2s), so the order is lost
	FaultUnknownEvent   = "unknown_event"   // one of an unknown type, before another
	FaultHugeEvent      = "huge_event"      // an api_post_event of a megabyte, before another
	FaultSilentStream   = "silent_stream"   // a new stream says nothing from its first byte on
	FaultTruncatedFrame = "truncated_frame" // a stream ends in the middle of a line

	// Of tasks. App says of which; empty is any.
	FaultCrash        = "crash"         // exits with 1 at once
	FaultExitZero     = "exit_zero"     // exits with 0 at once
	FaultNeverListens = "never_listens" // runs, and does not serve
	FaultLaunchDelay  = "launch_delay"  // Delay instead of Config.LaunchDelay: an image is pulled
	FaultIgnoreTerm   = "ignore_term"   // TERM has no effect
	FaultSlowTerm     = "slow_term"     // TERM takes effect after Delay; it serves meanwhile
	FaultKillLost     = "kill_lost"     // the order does not arrive, and is repeated
	FaultDies         = "dies"          // is killed from outside Delay after its start
	FaultWedges       = "wedges"        // stops Delay after its start: accepts, and never replies

	// Of the resources.
	FaultStarved     = "starved"      // Resource is short: cpus, mem, ports or role
	FaultNoOffers    = "no_offers"    // Mesos sends none
	FaultPortsReused = "ports_reused" // the port given back last is given out first
)

// A Fault is something that goes wrong. The zero values mean: everywhere,
// always, until it is taken back.
type Fault struct {
	Kind     string        `json:"kind"`
	App      string        `json:"app,omitempty"`
	Node     int           `json:"node,omitempty"` // counted from 1
	Method   string        `json:"method,omitempty"`
	Path     string        `json:"path,omitempty"`
	Resource string        `json:"resource,omitempty"`
	Status   int           `json:"status,omitempty"`
	Delay    time.Duration `json:"delay,omitempty"`
	Times    int           `json:"times,omitempty"` // how often it strikes
	Rate     float64       `json:"rate,omitempty"`  // with what probability, drawn from the seed
}

// faults are those in force. They have a source of chance of their own, so
// that a fault that is not there changes nothing in what the engine draws.
type faults struct {
	e *engine

	mu   sync.Mutex
	rng  *rand.Rand
	next int
	list []*activeFault
}

type activeFault struct {
	Fault
	id   int
	left int
}

func newFaults(e *engine) *faults {
	return &faults{e: e, rng: rand.New(rand.NewPCG(e.cfg.Seed, 0xfa017))}
}

func (f *faults) add(x Fault) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next++
	f.list = append(f.list, &activeFault{x, f.next, x.Times})
	return f.next
}

func (f *faults) remove(id int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = slices.DeleteFunc(f.list, func(x *activeFault) bool { return x.id == id })
}

func (f *faults) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = nil
}

// strike looks for a fault of the kind that applies, and counts it.
func (f *faults) strike(kind string, applies func(*Fault) bool) (Fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.list {
		if x.Kind != kind || applies != nil && !applies(&x.Fault) || x.Times > 0 && x.left == 0 {
			continue
		}
		if x.Rate > 0 && f.rng.Float64() >= x.Rate {
			continue
		}
		if x.Times > 0 {
			x.left--
		}
		switch kind {
		case FaultNoOffers, FaultStarved, FaultStale, FaultPortsReused:
			// They strike many times a second.
		default:
			f.e.log("fault", x.App, "", "%s", kind)
		}
		return x.Fault, true
	}
	return Fault{}, false
}

func (f *faults) ofApp(kind, app string) (Fault, bool) {
	return f.strike(kind, func(x *Fault) bool { return x.App == "" || x.App == app })
}

// ofRequest looks for a fault of a request to a node. What the control asks
// for through the nodes is not spared either.
func (f *faults) ofRequest(kind string, node int, method, path string) (Fault, bool) {
	return f.strike(kind, func(x *Fault) bool {
		return (x.Node == 0 || x.Node == node) && (x.Method == "" || x.Method == method) && strings.HasPrefix(path, x.Path)
	})
}

func (f *faults) launchDelay(app string) (time.Duration, bool) {
	x, ok := f.ofApp(FaultLaunchDelay, app)
	return x.Delay, ok
}

func (f *faults) losesKill(app string) bool {
	_, ok := f.ofApp(FaultKillLost, app)
	return ok
}

// termDelay tells that TERM is ignored, or how late it takes effect.
func (f *faults) termDelay(app string) (late time.Duration, ignored bool) {
	if _, ok := f.ofApp(FaultIgnoreTerm, app); ok {
		return 0, true
	}
	x, _ := f.ofApp(FaultSlowTerm, app)
	return x.Delay, false
}

func (f *faults) replaceCommand(app string) ([]string, bool) {
	for _, x := range []struct{ kind, script string }{
		{FaultCrash, "exit 1"},
		{FaultExitZero, "exit 0"},
		{FaultNeverListens, "exec sleep 1000000"},
	} {
		if _, ok := f.ofApp(x.kind, app); ok {
			return []string{"sh", "-c", x.script}, true
		}
	}
	return nil, false
}

// started arms what happens to a task that runs.
func (f *faults) started(t *task) {
	later := func(kind string, do func(p *process)) {
		x, ok := f.ofApp(kind, t.app)
		if !ok {
			return
		}
		f.e.after(x.Delay, func() {
			if t.proc != nil {
				do(t.proc)
			}
		})
	}
	later(FaultDies, func(p *process) { p.signal(sigkill) })
	later(FaultWedges, func(p *process) { p.signal(sigstop) })
}

// eventFate is how often and how late an event is delivered.
func (f *faults) eventFate(delay time.Duration) (int, time.Duration) {
	if _, lost := f.strike(FaultEventLost, nil); lost {
		return 0, 0
	}
	copies := 1
	if _, twice := f.strike(FaultEventTwice, nil); twice {
		copies = 2
	}
	if x, late := f.strike(FaultEventLate, nil); late {
		f.mu.Lock()
		delay = time.Duration(f.rng.Float64() * float64(orDefault(x.Delay, 2*time.Second)))
		f.mu.Unlock()
	}
	return copies, delay
}

func (f *faults) staleness() time.Duration {
	x, ok := f.strike(FaultStale, nil)
	if !ok {
		return 0
	}
	return orDefault(x.Delay, 2*time.Second)
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

func (f *faults) withholdOffers() bool {
	_, ok := f.strike(FaultNoOffers, nil)
	return ok
}

func (f *faults) reusePorts() bool {
	_, ok := f.strike(FaultPortsReused, nil)
	return ok
}

// starved are the resources that are short.
func (f *faults) starved() map[string]bool {
	out := map[string]bool{}
	for _, r := range []string{"cpus", "mem", "ports", "role"} {
		if _, ok := f.strike(FaultStarved, func(x *Fault) bool { return x.Resource == r }); ok {
			out[r] = true
		}
	}
	return out
}

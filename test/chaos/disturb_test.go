package chaos

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caddy-usher/usher/test/harness"
)

// vandal carries a plan out, and notes what it did. Its goroutine is that of
// the test.
type vandal struct {
	t       *testing.T
	c       *harness.Caddy
	town    *town
	events  *events
	stopped map[int]string // pids that got SIGSTOP, by their service
}

// follow carries out the steps of the plan, each at its time.
func (v *vandal) follow(plan []step) {
	began := time.Now()
	for _, s := range plan {
		time.Sleep(time.Until(began.Add(s.at)))
		v.do(s)
	}
}

// do carries out one step. What a step finds impossible, because there is no
// instance, say, it leaves.
func (v *vandal) do(s step) {
	v.events.note("%s", s)
	switch s.do {
	case killInstance:
		v.strike(s, syscall.SIGKILL)
	case exitInstance:
		v.strike(s, syscall.SIGUSR2)
	case stopInstance:
		v.strike(s, syscall.SIGSTOP)
	case deafenInstance:
		// The listener of the service fd is Usher's own, too, so it cannot
		// be made to refuse.
		if s.service != "fd" {
			v.strike(s, syscall.SIGUSR1)
		}
	case contInstances:
		v.wakeStopped(s.service)
	case slowDown:
		v.c.Open("slow-" + s.service)
	case speedUp:
		v.c.Shut("slow-" + s.service)
	case breakStarts:
		v.trouble(s.service)
		path := v.c.Path("broken-" + s.service)
		if err := os.WriteFile(path+".new", []byte(strconv.Itoa(3*(s.n%2))), 0o644); err != nil {
			v.t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			v.t.Fatal(err)
		}
	case mendStarts:
		v.trouble(s.service)
		v.c.Shut("broken-" + s.service)
	case killCaddy, stopCaddy:
		v.restartCaddy(s.do == killCaddy)
	case fewFiles:
		v.events.shortage = append(v.events.shortage, span{from: time.Now()})
		v.limitFiles(uint64(v.openFiles() + 2*s.n))
	case enoughFiles:
		v.limitFiles(0)
		last := &v.events.shortage[len(v.events.shortage)-1]
		last.to = time.Now()
	case suspendIt, resumeIt, sleepIt, wakeIt, restartIt, deleteInstance:
		v.operate(s)
	default:
		v.reload(s)
	}
}

// trouble notes that starts of the service may fail.
func (v *vandal) trouble(service string) {
	v.events.badStarts[service] = append(v.events.badStarts[service], time.Now())
	v.unsettle(service)
}

// unsettle notes that requests may have to be tried again, or change to another
// line.
func (v *vandal) unsettle(service string) {
	now := time.Now()
	v.events.troubled[service] = append(v.events.troubled[service], span{now, now.Add(time.Second)})
}

// strike sends a signal to an instance.
func (v *vandal) strike(s step, sig syscall.Signal) {
	p, ok := v.victim(s)
	if !ok {
		return
	}
	v.trouble(s.service)
	switch sig {
	case syscall.SIGKILL, syscall.SIGUSR2:
		v.events.killed[p.Instance] = time.Now()
	case syscall.SIGUSR1:
		now := time.Now()
		v.events.deafened[p.Instance] = now
		// Until it is replaced it can refuse.
		v.events.troubled[s.service] = append(v.events.troubled[s.service], span{now, now.Add(10 * time.Second)})
	}
	if syscall.Kill(p.PID, sig) == nil {
		v.events.note("  %s to process %d, instance %s of %s", unix.SignalName(sig), p.PID, p.Instance, p.Service)
		if sig == syscall.SIGSTOP {
			v.stopped[p.PID] = s.service
		}
	}
}

// victim is the process of the service that the step is about.
func (v *vandal) victim(s step) (p harness.Process, ok bool) {
	var all []harness.Process
	for _, p := range v.c.Processes() {
		if p.Service == s.service {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return p, false
	}
	slices.SortFunc(all, func(a, b harness.Process) int { return cmp.Compare(a.PID, b.PID) })
	return all[s.n%len(all)], true
}

// wakeStopped continues what was stopped and still is a process of this test.
func (v *vandal) wakeStopped(service string) {
	for _, p := range v.c.Processes() {
		if of, ok := v.stopped[p.PID]; ok && (of == service || service == "") {
			_ = syscall.Kill(p.PID, syscall.SIGCONT)
		}
	}
	maps.DeleteFunc(v.stopped, func(_ int, of string) bool { return of == service || service == "" })
}

// reload loads another configuration, and notes from when to when it, or what
// was before, may be in force.
func (v *vandal) reload(s step) {
	next, cfg, bad := maps.Clone(v.town.now), harness.Config{}, false
	switch s.do {
	case reloadLimits:
		next = v.town.with(s.service, func(x *settings) { x.limits = s.limits })
	case reloadNew:
		next = v.town.with(s.service, func(x *settings) { x.revision++ })
	case removeIt:
		next = v.town.with(s.service, func(x *settings) { x.removed = true })
	case bringItBack:
		next = v.town.with(s.service, func(x *settings) { x.removed = false })
	case narrowPorts:
		from, _, _ := cutPorts(v.town.wide)
		v.town.ports = fmt.Sprintf("%d-%d", from, from+1)
	case widenPorts:
		v.town.ports = v.town.wide
	case reloadBad:
		cfg, next = v.town.bad(s)
		bad = true
	}
	if !bad {
		cfg = v.town.config(next)
	}
	if s.do == narrowPorts || s.do == widenPorts {
		for _, name := range services {
			v.trouble(name)
		}
	}
	for name := range next {
		if next[name].revision != v.town.now[name].revision || next[name].removed != v.town.now[name].removed {
			v.unsettle(name)
		}
	}
	v.town.begin(next)
	v.events.reloading = append(v.events.reloading, span{from: time.Now()})
	err := v.load(cfg)
	v.events.reloading[len(v.events.reloading)-1].to = time.Now().Add(100 * time.Millisecond)
	switch {
	case !bad && err != nil:
		v.t.Errorf("%s: a good configuration was not loaded: %v", s, err)
	case bad && err == nil:
		v.t.Errorf("%s: a bad configuration was loaded", s)
		fallthrough
	case !bad:
		v.town.now = next
	}
	v.town.end(v.town.now)
}

// load loads a configuration.
func (v *vandal) load(cfg harness.Config) error {
	return v.again(func() error { return v.c.Reload(cfg) })
}

// again makes a call of the admin API once more if it was reset: the admin
// server is replaced with every configuration, and what the old one has not
// accepted yet is lost.
func (v *vandal) again(call func() error) error {
	err := call()
	for range 3 {
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, io.EOF) {
			break
		}
		v.events.note("  again, after %v", err)
		err = call()
	}
	return err
}

func cutPorts(s string) (from, to int, err error) {
	_, err = fmt.Sscanf(s, "%d-%d", &from, &to)
	return from, to, err
}

// operate makes a call of the admin API.
func (v *vandal) operate(s step) {
	method, path, body := http.MethodPost, "/usher/services/"+s.service, ""
	now := time.Now()
	switch s.do {
	case suspendIt:
		path, body = path+"/suspend", `{"reason":"chaos"}`
		v.unsettle(s.service)
		v.events.suspending[s.service] = append(v.events.suspending[s.service], span{from: now})
	case resumeIt:
		path += "/resume"
		closeLast(v.events.suspended[s.service], now)
	case sleepIt:
		path += "/sleep"
	case wakeIt:
		path += "/wake"
	case restartIt:
		path += "/restart"
		v.unsettle(s.service)
	case deleteInstance:
		p, ok := v.victim(s)
		if !ok {
			return
		}
		method = http.MethodDelete
		path += "/instances/" + p.Instance
	}
	var res harness.Response
	_ = v.again(func() error {
		res = v.c.Admin(method, path, body)
		return res.Err
	})
	expected := res.Status == http.StatusOK ||
		res.Status == http.StatusNotFound && (s.do == deleteInstance || v.town.now[s.service].removed) ||
		res.Status == http.StatusConflict && s.do == wakeIt && touched(v.events.suspending[s.service], now, now)
	if res.Err != nil || !expected {
		v.t.Errorf("%s: %s %s was answered with %d %s, error %v", s, method, path, res.Status, res.Body, res.Err)
	}
	now = time.Now()
	switch {
	case s.do == suspendIt && res.Status == http.StatusOK:
		v.events.suspended[s.service] = append(v.events.suspended[s.service], span{from: now})
	case s.do == resumeIt && res.Status == http.StatusOK:
		closeLast(v.events.suspending[s.service], now)
	}
}

// restartCaddy ends Caddy, one way or the other, and starts it again.
func (v *vandal) restartCaddy(kill bool) {
	v.events.caddy = append(v.events.caddy, span{from: time.Now()})
	for _, name := range services {
		v.unsettle(name)
	}
	if kill {
		v.c.Kill()
	} else {
		v.c.Signal(syscall.SIGTERM)
		// Processes that were stopped end when their time is over.
		v.c.AwaitExit(harness.Slow(30 * time.Second))
	}
	v.events.note("  Caddy has ended")
	v.town.begin(v.town.now)
	v.c.Start(v.town.config(v.town.now))
	v.town.end(v.town.now)
	v.events.note("  Caddy serves again, as process %d", v.c.PID())
	v.events.caddy[len(v.events.caddy)-1].to = time.Now()
}

func (v *vandal) openFiles() int {
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", v.c.PID()))
	if err != nil {
		v.t.Fatal(err)
	}
	return len(files)
}

// limitFiles sets how many files Caddy may have open; 0 is as many as it may
// at most.
func (v *vandal) limitFiles(n uint64) {
	var l unix.Rlimit
	if err := unix.Prlimit(v.c.PID(), unix.RLIMIT_NOFILE, nil, &l); err != nil {
		v.t.Fatal(err)
	}
	l.Cur = n
	if n == 0 {
		l.Cur = l.Max
	}
	if err := unix.Prlimit(v.c.PID(), unix.RLIMIT_NOFILE, &l, nil); err != nil {
		v.t.Fatal(err)
	}
}

// relent ends whatever is still being done, and goes back to the
// configuration of the beginning.
func (v *vandal) relent() {
	v.events.note("the end of the disturbances")
	v.wakeStopped("")
	for _, name := range services {
		for _, gate := range []string{"broken-", "slow-"} {
			if _, err := os.Stat(v.c.Path(gate + name)); err == nil {
				v.c.Shut(gate + name)
			}
		}
	}
	v.limitFiles(0)
	for k := range v.events.shortage {
		if s := &v.events.shortage[k]; s.to.IsZero() {
			s.to = time.Now()
		}
	}
	v.town.ports = v.town.wide
	// Another revision than any before: what is left of those is closed.
	next := v.town.base()
	for name, s := range v.town.now {
		x := next[name]
		x.revision = s.revision + 1
		next[name] = x
	}
	v.town.begin(next)
	v.events.reloading = append(v.events.reloading, span{from: time.Now()})
	if err := v.load(v.town.config(next)); err != nil {
		v.t.Errorf("the configuration of the beginning was not loaded: %v", err)
	}
	v.events.reloading[len(v.events.reloading)-1].to = time.Now()
	v.town.now = next
	v.town.end(next)
	for _, name := range services {
		v.operate(step{do: resumeIt, service: name})
	}
}

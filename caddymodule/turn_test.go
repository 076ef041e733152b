package caddymodule

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/reserver"
)

func replacerWith(name, value string) *caddy.Replacer {
	r := caddy.NewEmptyReplacer()
	r.Set(name, value)
	return r
}

// full takes the one slot of a service; the function that is returned gives it
// back.
func (f *fleet) full() func() {
	f.t.Helper()
	f.ready(1)
	r := new(reserver.Reservation)
	if ok, err := serving(f.t, f.name).Reserver.Reserve(r, reserver.Ask{}); !ok || err != nil {
		f.t.Fatal(ok, err)
	}
	return func() { r.Release(reserver.Neutral) }
}

// order sends requests that wait, and returns the order in which they were
// answered.
func (f *fleet) order(c *config, requests ...[]string) string {
	f.t.Helper()
	free := f.full()
	var mu sync.Mutex
	var served []string
	var all sync.WaitGroup
	for k, q := range requests {
		wait := c.begin("GET", q[0], "", q[1:]...)
		all.Go(func() {
			if r := wait(); r.status != 200 {
				f.t.Errorf("%s: %+v", q[0], r)
			}
		})
		f.waiting(k + 1)
	}
	f.set(func() { f.served = func(path string) { mu.Lock(); served = append(served, path); mu.Unlock() } })
	free()
	all.Wait()
	return strings.Join(served, " ")
}

func TestG2RequestsOfAHigherClassHaveTheirTurnsFirst(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.handler = f.serves
	c := start(t, site("@vip header Vip *\n"+f.usher("instances 1", "concurrency 1", "priority high @vip", "priority low /bulk/*")))
	if got := f.order(c,
		[]string{"/bulk/1"}, []string{"/a"}, []string{"/b", "Vip", "1"}, []string{"/bulk/vip", "Vip", "1"}, []string{"/c"},
	); got != "/b /bulk/vip /a /c /bulk/1" {
		t.Error(got)
	}
}

func TestALowRequestIsServedAfterAQuarterOfItsTimeInEachClass(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.handler = f.serves
	c := start(t, site(f.usher("instances 1", "concurrency 1", "wait_timeout 4s", "priority low /low")))
	free := f.full()
	low := c.begin("GET", "/low", "")
	f.waiting(1)
	time.Sleep(1100 * time.Millisecond) // real time: Caddy's server has no other
	normal := c.begin("GET", "/normal", "")
	f.waiting(2)
	served := make(chan string, 2)
	f.set(func() { f.served = func(path string) { served <- path } })
	free()
	low()
	normal()
	if first := <-served; first != "/low" {
		t.Errorf("%s was first", first)
	}
}

func TestG2FairSharesHaveTheirTurnsOneAfterTheOther(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.handler = f.serves
	c := start(t, site(f.usher("instances 1", "concurrency 1", "fair_by {header.Client}")))
	var requests [][]string
	for k := range 4 {
		requests = append(requests, []string{fmt.Sprint("/busy", k), "Client", "busy"})
	}
	requests = append(requests, []string{"/calm", "Client", "calm"}, []string{"/none0"}, []string{"/none1"}, []string{"/huge", "Client", strings.Repeat("x", 1<<19)})
	if got := f.order(c, requests...); got != "/busy0 /calm /none0 /huge /busy1 /none1 /busy2 /busy3" {
		t.Error(got)
	}
}

func TestOneShareCannotFillTheQueue(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.handler = f.serves
	c := start(t, site(f.usher("instances 1", "concurrency 1", "fair_by {header.Client} {\nmax_waiting 2\n}")))
	free := f.full()
	var waits []func() reply
	for range 2 {
		waits = append(waits, c.begin("GET", "/", "", "Client", "busy"))
		f.waiting(len(waits))
	}
	if r := c.get("/", "Client", "busy"); r.header.Get("Usher-Error") != codeQueueFull || r.header.Get("Retry-After") == "" || !strings.Contains(r.body, "share") {
		t.Errorf("%+v", r)
	}
	waits = append(waits, c.begin("GET", "/", "", "Client", "calm"))
	f.waiting(3)
	free()
	for _, wait := range waits {
		if r := wait(); r.status != 200 {
			t.Errorf("%+v", r)
		}
	}
}

// What a visitor is told of its place counts those that have their turns before.
func TestAVisitorHasTheClassAndTheShareOfItsRequest(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.handler = f.serves
	c := start(t, site(f.usher("instances 1", "concurrency 1", "fair_by {header.Client}", "priority high /vip", "waiting_page {\nafter 0s\n}")))
	free := f.full()
	var waits []func() reply
	for k := range 4 {
		waits = append(waits, c.begin("GET", "/", "", "Client", "busy"))
		f.waiting(k + 1)
	}
	// In this order: the visitor of the first one stays in the queue.
	for _, v := range []struct {
		path string
		one  bool // one is ahead
	}{{"/", true}, {"/vip", false}} {
		r := c.get(v.path, append([]string{"Client", "calm"}, person...)...)
		if r.header.Get("Usher-Error") != "waiting_page" || strings.Contains(r.body, english.place(1)) != v.one {
			t.Errorf("%s: %+v", v.path, r)
		}
	}
	free()
	for _, wait := range waits {
		wait()
	}
}

func TestRetryAfterCountsThoseThatHaveTheirTurnsBefore(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.handler = f.serves
	c := start(t, site(f.usher("instances 1", "concurrency 1", "max_waiting 4", "priority low /low", "priority high /high")))
	free := f.full()
	serving(t, f.name).Loop.Served(3 * time.Second)
	var waits []func() reply
	for k := range 4 {
		waits = append(waits, c.begin("GET", "/", ""))
		f.waiting(k + 1)
	}
	for path, want := range map[string]string{"/low": "12", "/": "12", "/high": "1"} {
		if r := c.get(path); r.header.Get("Usher-Error") != codeQueueFull || r.header.Get("Retry-After") != want {
			t.Errorf("%s: %+v", path, r)
		}
	}
	free()
	for _, wait := range waits {
		wait()
	}
}

func TestOrderingAQueueThatTheServiceDoesNotHaveIsRefused(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	for name, x := range map[string]struct{ app, handler, want string }{
		"fair_by":         {`"max_waiting":0`, `"fair_by":{"value":"{http.vars.client_ip}"}`, "fair_by has no effect with max_waiting 0"},
		"priority":        {`"max_waiting":0`, `"priority":[{"class":"low"}]`, "priority has no effect with max_waiting 0"},
		"a greater share": {`"max_waiting":5`, `"fair_by":{"value":"{http.vars.client_ip}","max_waiting":6}`, "no more than 5"},
		"a class":         {`"max_waiting":5`, `"priority":[{"class":"urgent"}]`, "the class 'urgent' is unknown"},
		"a dead rule":     {`"max_waiting":5`, `"priority":[{"class":"low"},{"class":"high"}]`, "can never hold"},
		"a constant":      {`"max_waiting":5`, `"fair_by":{"value":"all"}`, "is not one placeholder"},
		"a negative":      {`"max_waiting":5`, `"fair_by":{"value":"{http.vars.client_ip}","max_waiting":-1}`, "at least 1"},
	} {
		app := `{"services":{"` + f.name + `":{"backend":{"type":"test","fleet":"` + f.name + `"},` + x.app + `}}}`
		_, err := tryProvision(t, jsonApps(app, `{"handler":"usher","service":"`+f.name+`",`+x.handler+`}`))
		if err == nil || !strings.Contains(err.Error(), x.want) || !strings.Contains(err.Error(), f.name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A server can name the service before the one that defines it is read.
func TestOrderingTheQueueOfAServiceThatIsDefinedLaterIsRefusedAtTheStart(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := provision(t, site("route {\nusher "+f.name+" {\nfair_by {client_ip}\n}\n"+f.usher("max_waiting 0")+"}"))
	if err := c.app.Start(); err == nil || !strings.Contains(err.Error(), "fair_by has no effect") {
		t.Error(err)
	}
}

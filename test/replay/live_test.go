package main

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler/policies"
	"github.com/caddy-usher/usher/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const (
	// liveSpeed is how much faster a trace passes in front of a real Caddy:
	// its minutes are seconds.
	liveSpeed = 60

	// liveLength is how much of a trace passes, liveStart how long starts take,
	// and liveMax the maximum of instances, all as in the trace.
	liveLength = 80 * time.Minute
	liveStart  = 30 * time.Second
	liveMax    = 3

	// apart is how much less a policy has to need in the simulator, as a part
	// of what another one needs, for their order to be held against the real
	// Caddy. Nearer ones could change places by chance.
	apart = 0.75
)

func faster(d time.Duration) time.Duration { return d / liveSpeed }

// measured is what a policy needs, in seconds of the trace.
type measured struct{ instances, waits float64 }

// measures are what policies are compared by.
var measures = []struct {
	name string
	of   func(measured) float64
}{
	{"instance-seconds", func(m measured) float64 { return m.instances }},
	{"waits", func(m measured) float64 { return m.waits }},
}

// learns is the one of them that is told from the baseline.
const learns = "adaptive 5m"

// liveContenders are the policies, and how they are configured where time
// passes faster.
var liveContenders = []struct {
	contender
	scale string
}{
	{contender{name: "queue 5m", policy: plain(policies.Queue{}), idleTimeout: 5 * time.Minute}, "scale queue {\ndown_window " + faster(time.Minute).String() + "\n}"},
	{contender{name: "queue 15m", policy: plain(policies.Queue{}), idleTimeout: 15 * time.Minute}, "scale queue {\ndown_window " + faster(time.Minute).String() + "\n}"},
	{contender{name: "adaptive 5m", policy: plain(policies.Adaptive{}), idleTimeout: 5 * time.Minute}, "scale adaptive"},
}

// liveTraces are a job each ten minutes, and an app of Azure Functions with
// irregular pauses.
func liveTraces(t *testing.T) []Trace {
	recorded, err := azure(1)
	if err != nil {
		t.Fatal(err)
	}
	k := slices.IndexFunc(recorded, func(t Trace) bool { return t.Name == "azure-e118e09d165a" })
	return []Trace{part(crons(1)[0], 0), part(recorded[k], 160*time.Minute)}
}

// part is a trace of liveLength out of another one.
func part(t Trace, from time.Duration) Trace {
	all := t.Requests
	t.Requests, t.Length = nil, liveLength
	for _, r := range all {
		if r.At >= from && r.At < from+liveLength {
			t.Requests = append(t.Requests, Request{r.At - from, r.Service})
		}
	}
	return t
}

// serviceOf names the service that gets the requests of a trace by a policy.
func serviceOf(t Trace, policy string) string {
	return t.Family + "-" + strings.ReplaceAll(policy, " ", "-")
}

// pass sends the requests of all traces to the services of all policies, side by
// side, and returns when the last one is answered and the traces are over.
func pass(t *testing.T, c *harness.Caddy, traces []Trace) {
	type request struct {
		Request
		service string
	}
	var all []request
	for _, trace := range traces {
		for _, r := range trace.Requests {
			for _, who := range liveContenders {
				all = append(all, request{Request{faster(r.At), faster(r.Service)}, serviceOf(trace, who.name)})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b request) int { return cmp.Compare(a.At, b.At) })
	var sent []*harness.Pending
	began := time.Now()
	for _, r := range all {
		time.Sleep(time.Until(began.Add(r.At)))
		sent = append(sent, c.Send(harness.Request{Path: "/" + r.service + "/sleep?d=" + r.Service.String()}))
	}
	for _, p := range sent {
		if r := p.Wait(t, harness.Slow(time.Minute)); r.Status != http.StatusOK {
			t.Fatalf("%+v", r)
		}
	}
	time.Sleep(time.Until(began.Add(faster(liveLength))))
}

// liveMeasures returns what each service has needed.
func liveMeasures(t *testing.T, c *harness.Caddy) map[string]measured {
	sums := make(map[string]measured)
	for series, value := range c.Metrics("caddy_usher_wait_seconds_sum") {
		if !strings.Contains(series, `outcome="granted"`) {
			continue
		}
		_, name, _ := strings.Cut(series, `service="`)
		name, _, _ = strings.Cut(name, `"`)
		waits, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		sums[name] = measured{waits: waits * liveSpeed}
	}
	// An instance that is left costs until now.
	ended, journal := make(map[int]int64), c.Journal()
	for _, e := range journal.Of("exit") {
		ended[e.PID] = e.Time
	}
	for _, e := range journal.Of("start") {
		until, over := ended[e.PID]
		if !over {
			until = time.Now().UnixNano()
		}
		s := sums[e.Service]
		s.instances += time.Duration(until-e.Time).Seconds() * liveSpeed
		sums[e.Service] = s
	}
	return sums
}

// What the simulator says of two policies holds of a real Caddy with real
// processes. They are compared by which one needs less, and not by how much:
// that is up to the machine.
func TestTheSimulatorAndARealCaddyPutPoliciesInTheSameOrder(t *testing.T) {
	if testing.Short() {
		t.Skip("the trace takes 80 seconds")
	}
	traces := liveTraces(t)
	c := harness.New(t)
	site := ""
	for _, trace := range traces {
		for _, who := range liveContenders {
			name := serviceOf(trace, who.name)
			site += "handle_path /" + name + "/* {\n" + harness.Usher(name, c.Backend("-delay", faster(liveStart).String()),
				fmt.Sprintf("instances 0 %d", liveMax), fmt.Sprintf("concurrency %d", trace.Concurrency),
				"idle_timeout "+faster(who.idleTimeout).String(), who.scale) + "\n}\n"
		}
	}
	c.Start(harness.Config{Site: site})
	pass(t, c, traces)
	live := liveMeasures(t, c)

	for _, trace := range traces {
		simulated := make(map[string]measured)
		for _, who := range liveContenders {
			r := replay(t, trace, Setup{Policy: who.policy, IdleTimeout: who.idleTimeout, StartTime: liveStart, Max: liveMax, Seed: 1})
			name := serviceOf(trace, who.name)
			simulated[name] = measured{r.Instances.Seconds(), r.Waits.sum.Seconds()}
			t.Logf("%s, %s: simulated %.0f instance-seconds, %.0f s of waits; live %.0f and %.0f",
				trace.Name, who.name, simulated[name].instances, simulated[name].waits, live[name].instances, live[name].waits)
		}
		compared := 0
		for _, m := range measures {
			for _, a := range liveContenders {
				for _, b := range liveContenders {
					less, more := serviceOf(trace, a.name), serviceOf(trace, b.name)
					if m.of(simulated[less]) > apart*m.of(simulated[more]) {
						continue
					}
					compared++
					if m.of(live[less]) >= m.of(live[more]) {
						t.Errorf("%s: of %s, %s needs %.0f and %s %.0f; in the simulator %.0f and %.0f", trace.Name, m.name,
							a.name, m.of(live[less]), b.name, m.of(live[more]), m.of(simulated[less]), m.of(simulated[more]))
					}
				}
			}
		}
		if ratio := simulated[serviceOf(trace, learns)].instances / simulated[serviceOf(trace, baseline)].instances; ratio > apart {
			t.Errorf("%s: in the simulator, %s needs %.2f of the instance-seconds of %s: they cannot be told apart", trace.Name, learns, ratio, baseline)
		}
		t.Logf("%s: %d orders compared", trace.Name, compared)
	}
}

package marathon

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler/backendtest"
	"github.com/caddy-usher/usher/test/marathonsim"
)

// The simulator is a Marathon with tasks that are real processes.
func TestTheContractOfBackendsIsKept(t *testing.T) {
	for _, profile := range []string{"1.4", "1.9"} {
		t.Run(profile, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backendtest.Subject { return subject(t, profile) })
		})
	}
}

func subject(t *testing.T, profile string) backendtest.Subject {
	t.Helper()
	sim, err := marathonsim.New(marathonsim.Config{
		Profile: profile, OfferInterval: 5 * time.Millisecond, ReviveInterval: time.Millisecond,
		LaunchDelay: marathonsim.Range{Min: 1, Max: 2}, EventDelay: marathonsim.Range{Max: 5 * time.Millisecond},
		ElectionGap: marathonsim.Range{Min: 20 * time.Millisecond, Max: 40 * time.Millisecond},
		NodeRestart: 100 * time.Millisecond, AbdicateDelay: 10 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	if err := sim.CreateApp(`{"id":"/web","cmd":"exec sleep 1000","instances":0,"cpus":0.1,"mem":32,"backoffSeconds":0}`); err != nil {
		t.Fatal(err)
	}
	make := func(app string) *Backend {
		return provisioned(t, &Backend{App: app, URLs: sim.URLs(), BasicAuth: &BasicAuth{User: "usher", Password: "hunter2"}})
	}
	everywhere := func(kind string) func() func() {
		return func() func() {
			return sim.Inject(marathonsim.Fault{Kind: kind})
		}
	}
	return backendtest.Subject{
		Backend: make("/web"), Same: make("/web"), Other: make("/other"), Broken: make("/missing"),
		Secrets: []string{"hunter2"},
		Running: func() int {
			n := 0
			for _, task := range sim.Tasks() {
				if task.PID != 0 && task.Goal == "Running" {
					n++
				}
			}
			return n
		},
		Kill: func(id string) { sim.KillTask(id) },
		Cut: func() func() {
			for n := range sim.URLs() {
				sim.CrashNode(n)
			}
			return func() {
				for n := range sim.URLs() {
					sim.StartNode(n)
				}
			}
		},
		Hang: everywhere(marathonsim.FaultHang),
	}
}

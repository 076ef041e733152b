package kubernetes

import (
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler/backendtest"
)

func TestTheContractOfBackendsIsKept(t *testing.T) {
	for _, kind := range []string{"Deployment", "ReplicaSet", "StatefulSet", "Job"} {
		t.Run(kind, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backendtest.Subject { return subject(t, kind) })
		})
	}
}

func subject(t *testing.T, kind string) backendtest.Subject {
	t.Helper()
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", false))
	if kind == "Job" {
		s.cronJob("web", nil)
	} else {
		s.workload(kind, "web", 0)
	}
	resource := strings.ToLower(kind)
	config := s.kubeconfig()
	provisioned := func(name string) *Backend {
		b := &Backend{Resource: resource + "/" + name, Kubeconfig: config}
		if err := b.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		return b
	}
	pod := func(id string, change func(object)) {
		name, _, _ := strings.Cut(id, ".")
		if kind == "Job" {
			name += "-x"
		}
		s.change("pods", name, change)
	}
	return backendtest.Subject{
		Backend: provisioned("web"), Same: provisioned("web"), Other: provisioned("other"), Broken: provisioned("missing"),
		Secrets: []string{s.token},
		Running: func() int {
			s.mu.Lock()
			defer s.mu.Unlock()
			n := 0
			for _, name := range s.names("pods") {
				o := s.objects["pods"][name]
				if o["metadata"].(object)["deletionTimestamp"] == nil && text(child(o, "status"), "phase") != "Failed" {
					n++
				}
			}
			return n
		},
		Kill: func(id string) {
			pod(id, func(o object) {
				merge(o, object{"status": object{"phase": "Failed"}})
				containerIs(object{"restartCount": float64(0), "state": object{"terminated": object{"exitCode": float64(1), "reason": "Error"}}})(o)
			})
		},
		Ready: func(id string) { pod(id, running("10.0.0.1", true)) },
		Cut:   func() func() { s.stop(); return s.start },
		Hang: func() func() {
			speak := make(chan struct{})
			calls := []string{"patch " + resource + "s/web/scale", "patch " + resource + "s/web", "get " + resource + "s/web", "get " + resource + "s/web/scale"}
			s.do(func() {
				for _, c := range calls {
					s.slow[c] = speak
				}
				if kind == "Job" {
					s.slow["get cronjobs/web"], s.slow["post jobs"] = speak, speak
				}
			})
			return sync.OnceFunc(func() {
				s.do(func() { clear(s.slow) })
				close(speak)
			})
		},
	}
}

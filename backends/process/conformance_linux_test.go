package process

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/backendtest"
)

func TestTheContractOfBackendsIsKept(t *testing.T) {
	for _, listen := range []string{listenTCP, listenUnix} {
		t.Run(listen, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backendtest.Subject {
				dataDir := t.TempDir()
				make := func(role string, args ...string) *Backend {
					b := self(t, role, args...)
					b.Listen, b.Env = listen, map[string]string{"PASSWORD": "hunter2"}
					provision(t, b)
					return b
				}
				serve := func() *Backend {
					if listen == listenUnix {
						return make("serve-unix", "{usher.socket}")
					}
					return make("serve")
				}
				broken := self(t, "serve", "hunter2")
				broken.Command = filepath.Join(dataDir, "missing")
				if err := broken.Provision(caddy.Context{}); err != nil {
					t.Fatal(err)
				}
				running := func() int { return len(records(t, dataDir)) }
				return backendtest.Subject{
					Backend: serve(), Same: serve(), Other: make("stubborn"), Broken: broken, Secrets: []string{"hunter2"},
					Host: &scaler.Host{DataDir: dataDir, Local: func() scaler.LocalOptions {
						return scaler.LocalOptions{PortFrom: firstPort, PortTo: firstPort + portsOfRun - 1}
					}},
					Running: running,
					Kill: func(id string) {
						for _, path := range records(t, dataDir) {
							if !strings.Contains(filepath.Base(path), id) {
								continue
							}
							r, err := readRecord(path)
							if err == nil {
								err = syscall.Kill(r.PID, syscall.SIGKILL)
							}
							if err != nil {
								t.Error(err)
							}
						}
					},
				}
			})
		})
	}
}

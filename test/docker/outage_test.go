//go:build linux

package docker

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// The engine stands still for 20 s, and is killed and started again, under load:
// warm traffic notices nothing, requests to sleeping services learn why, and all
// is well afterwards.
func TestEngineIsAway(t *testing.T) {
	faults := map[string]func(w *world) (back func()){
		"stopped": func(w *world) func() {
			if err := w.e.Freeze(); err != nil {
				w.t.Fatal(err)
			}
			return func() {
				if err := w.e.Thaw(); err != nil {
					w.t.Fatal(err)
				}
			}
		},
		"killed": func(w *world) func() {
			w.e.Kill()
			return func() {
				if err := w.e.Up(); err != nil {
					w.t.Fatal(err)
				}
			}
		},
	}
	for name, away := range map[string]time.Duration{"stopped": 20 * time.Second, "killed": 3 * time.Second} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, &docker)
			w.create(spec{name: "web"})
			w.create(spec{name: "other"})
			cfg := w.config("web", "", "idle_timeout 5m", "scale queue")
			cfg.Sites = fmt.Sprintf("http://%s {\n\tusher other {\n\t\tbackend docker other\n\t\tidle_timeout 1s\n\t\twait_timeout 30s\n\t}\n}\n", w.SpareAddr)
			w.Start(cfg)
			w.ok(w.Get("/"))
			load := w.Load(4, "/sleep?d=5ms")
			w.await("it serves", func() bool { return load.Len() > 20 })
			n := load.Len()
			back := faults[name](w)
			ended := time.Now().Add(away)
			cold := w.ask("http://" + w.SpareAddr)
			t.Logf("a request to a service that sleeps: %d %s after %s", cold.Status, strings.TrimSpace(cold.Body), cold.Took)
			if cold.Status != 503 || !strings.Contains(cold.Body, "engine") {
				t.Errorf("a request to a service that sleeps got %d %s", cold.Status, cold.Body)
			}
			time.Sleep(time.Until(ended))
			if load.Len() < n+100 {
				t.Errorf("while the engine was away, %d requests were served", load.Len()-n)
			}
			back()
			w.await("the service that slept is there again", func() bool { return w.ask("http://"+w.SpareAddr).Status == 200 })
			all := load.Stop()
			if bad := harness.Failed(all); len(bad) > 0 {
				t.Errorf("%d of %d requests failed, such as %+v", len(bad), len(all), bad[0])
			}
			if s := w.Service("web"); s.Instances.Ready != 1 {
				t.Errorf("afterwards %+v", s)
			}
		})
	}
}

// Caddy is killed: the next one adopts the containers that run, and removes
// those that no service wants.
func TestCaddyIsKilled(t *testing.T) {
	for _, s := range []*shared{&docker, &podman} {
		t.Run(s.name(), func(t *testing.T) {
			w := newWorld(t, s)
			w.create(spec{name: "exists"})
			cfg := w.config("image "+image, "")
			cfg.Sites = fmt.Sprintf("http://%s {\n\tusher gone {\n\t\tbackend docker image %s -delay 1ms\n\t}\n\tusher /exists exists {\n\t\tbackend docker exists\n\t}\n}\n", w.SpareAddr, image)
			w.Start(cfg)
			w.ok(w.Get("/"))
			w.ok(w.ask("http://" + w.SpareAddr))
			w.ok(w.ask("http://" + w.SpareAddr + "/exists"))
			before := w.running("usher.service=web")
			if len(before) != 1 || len(w.running()) != 3 {
				t.Fatalf("%d containers of the service, %d in all", len(before), len(w.running()))
			}
			w.Kill()
			w.Start(w.config("image "+image, ""))
			w.ok(w.Get("/"))
			if after := w.running("usher.service=web"); len(after) != 1 || after[0] != before[0] {
				t.Errorf("the running container %v was not adopted, but there are %v", before, after)
			}
			w.await("what no service wants is gone", func() bool {
				all, err := w.e.Containers(t.Context(), "usher.service=gone")
				return err == nil && len(all) == 0
			})
			if len(w.running()) != 2 {
				t.Errorf("%d containers run; what exists is left as it is", len(w.running()))
			}
			w.Stop()
			if left, err := w.e.Containers(t.Context(), "usher.caddy"); err != nil || len(left) > 0 {
				t.Errorf("after an orderly exit %d containers of Usher's are left, error %v", len(left), err)
			}
		})
	}
}

// With on_exit keep they outlive Caddy, and the next one takes them over.
func TestKeptContainersAreAdopted(t *testing.T) {
	w := newWorld(t, &docker)
	cfg := w.config("image "+image, "")
	cfg.Usher += "\non_exit keep"
	w.Start(cfg)
	w.ok(w.Get("/"))
	before := w.running()
	w.Stop()
	if now := w.running(); len(now) != 1 || now[0] != before[0] {
		t.Fatalf("%v ran, and after Caddy's exit %v", before, now)
	}
	w.Start(cfg)
	w.ok(w.Get("/"))
	if now := w.running(); len(now) != 1 || now[0] != before[0] {
		t.Errorf("%v was kept, and now %v run", before, now)
	}
	cfg.Usher = strings.ReplaceAll(cfg.Usher, "keep", "stop")
	w.MustReload(cfg)
	w.Stop()
	if now := w.running(); len(now) != 0 {
		t.Errorf("after an exit with on_exit stop %v run", now)
	}
}

// A socket that Caddy may not use: the reason says what to do.
func TestSocketIsForbidden(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("that needs root")
	}
	w := newWorld(t, &docker)
	w.create(spec{name: "web"})
	w.RunAs(65534, 65534)
	w.Start(w.config("web", "", "error_detail full"))
	var res harness.Response
	w.await("the reason is told", func() bool {
		res = w.Get("/")
		return res.Status == 503 && strings.Contains(res.Body, "forbidden")
	})
	if !strings.Contains(res.Body, "group of the socket") {
		t.Errorf("the answer does not say what to do: %s", res.Body)
	}
	info, err := os.Stat(w.e.Socket())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(w.e.Socket(), 0o666); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(w.e.Socket(), info.Mode().Perm()) })
	w.await("it works with the right to use it", func() bool { return w.Get("/").Status == 200 })
}

//go:build linux

package docker

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/caddy-usher/usher/test/harness"
)

// 500 requests at once to a service that sleeps: all are answered, by no more
// than three instances, and none of those has more requests than slots.
func TestBurstOnASleepingService(t *testing.T) {
	for _, s := range []*shared{&docker, &podman} {
		t.Run(s.name(), func(t *testing.T) {
			w := newWorld(t, s)
			w.Start(w.config("image "+image, "env APP_JOURNAL /journal/journal\nvolume "+w.Dir+":/journal",
				"instances 0 3", "scale queue", "concurrency 20"))
			const n = 500
			start := time.Now()
			pending := make([]*harness.Pending, n)
			for k := range pending {
				pending[k] = w.Send(harness.Request{Path: "/sleep?d=200ms"})
			}
			answers := make([]harness.Response, n)
			for k, p := range pending {
				answers[k] = p.Wait(t, 60*time.Second)
			}
			if bad := harness.Failed(answers); len(bad) > 0 {
				t.Fatalf("%d of %d answers are bad, such as %+v", len(bad), n, bad[0])
			}
			figure(t, "burst of %d: all answered after %s", n, time.Since(start).Round(time.Millisecond))
			if starts := w.Journal().Starts(); starts < 2 || starts > 3 {
				t.Errorf("%d containers were started, with a maximum of 3", starts)
			}
			if most := w.Journal().MaxInside(); most > 20 {
				t.Errorf("an instance had %d requests inside, with 20 slots", most)
			}
		})
	}
}

// From nothing to three instances and back, under load, without one request that
// is cut: containers that exist, copies, and an image.
func TestUpAndDownUnderLoad(t *testing.T) {
	prepare := map[string]func(w *world) (backend, options string){
		"compose": func(w *world) (string, string) {
			for n := range 3 {
				w.create(spec{name: fmt.Sprintf("shop-web-%d", n+1), labels: composeLabels("shop", "web", n+1)})
			}
			return "compose shop/web", ""
		},
		"copies": func(w *world) (string, string) {
			w.create(spec{name: "web"})
			return "web", "copies on"
		},
		"image": func(*world) (string, string) { return "image " + image, "" },
	}
	for _, form := range []string{"compose", "copies", "image"} {
		t.Run(form, func(t *testing.T) {
			w := newWorld(t, &docker)
			backend, options := prepare[form](w)
			w.Start(w.config(backend, options, "instances 0 3", "concurrency 4", "idle_timeout 1s", "drain_timeout 10s", "stop_timeout 3s",
				"scale queue {\n\tdown_window 1s\n}"))
			heavy := w.Load(10, "/sleep?d=40ms")
			w.AwaitReady("web", 3, 20*time.Second)
			w.await("some hundred answers", func() bool { return heavy.Len() > 300 })
			light := w.Load(1, "/sleep?d=40ms")
			all := heavy.Stop()
			w.await("one instance is left", func() bool { return len(w.running()) == 1 })
			all = append(all, light.Stop()...)
			w.asleep()
			if bad := harness.Failed(all); len(bad) > 0 {
				t.Fatalf("%d of %d requests failed, such as %+v", len(bad), len(all), bad[0])
			}
			w.ok(w.Get("/"))
		})
	}
}

// A stream that is open longer than idle_timeout is not cut.
func TestOpenStreamKeepsItsContainer(t *testing.T) {
	w := newWorld(t, &docker)
	w.create(spec{name: "web"})
	w.Start(w.config("web", "idle pause", "idle_timeout 200ms", "scale queue"))
	res := w.Get("/slow-body?n=20&d=50ms")
	w.ok(res)
	if n := strings.Count(res.Body, "\n"); n != 20 {
		t.Errorf("%d of 20 lines came", n)
	}
}

// What becomes of a container behind Usher's back is noticed, and told, and the
// next request is served.
func TestContainersThatEnd(t *testing.T) {
	type end struct {
		name   string
		config func(*container.Config, *container.HostConfig)
		do     func(w *world, id string)
		told   string // in last_error; "" is no failure
	}
	kill := func(w *world, id string) {
		if _, err := w.e.Client.ContainerKill(w.t.Context(), id, client.ContainerKillOptions{Signal: "KILL"}); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, x := range []end{
		{name: "killed", do: kill, told: "exit status 137"},
		{name: "crashed", do: func(w *world, _ string) { w.Get("/crash") }, told: "exit status 5"},
		{name: "stopped by hand", do: func(w *world, id string) {
			if _, err := w.e.Client.ContainerStop(w.t.Context(), id, client.ContainerStopOptions{}); err != nil {
				w.t.Fatal(err)
			}
		}},
		{name: "restarted by its policy", config: func(_ *container.Config, h *container.HostConfig) {
			h.RestartPolicy = container.RestartPolicy{Name: container.RestartPolicyAlways}
		}, do: func(w *world, _ string) { w.Get("/crash") }, told: "restart"},
		{name: "out of memory", config: func(_ *container.Config, h *container.HostConfig) {
			h.Memory = 24 << 20
			h.MemorySwap = 24 << 20
		}, do: func(w *world, _ string) {
			w.Send(harness.Request{Path: "/hog"})
		}, told: "out of memory (limit 24MiB)"},
	} {
		t.Run(x.name, func(t *testing.T) {
			w := newWorld(t, &docker)
			id := w.create(spec{name: "web", config: x.config})
			w.Start(w.config("web", "", "error_detail full"))
			w.ok(w.Get("/"))
			was := w.instance()
			x.do(w, id)
			w.await("its end was noticed", func() bool { return w.instance() != was })
			if x.told == "" {
				if s := w.Service("web"); s.LastError != nil {
					t.Errorf("a container that was stopped by hand counts as a failure: %v", s.LastError)
				}
			} else {
				w.await("the reason was told", func() bool { return strings.Contains(w.RawLog(), x.told) })
			}
			w.ok(w.Get("/"))
		})
	}
}

// instance is the id of the only instance, or "".
func (w *world) instance() string {
	for _, i := range w.Service("web").InstanceList {
		if i.State != "stopping" && i.State != "draining" {
			return i.ID
		}
	}
	return ""
}

// A container that is removed and made anew, as `docker compose up` does, is the
// service's next instance.
func TestContainerIsRecreated(t *testing.T) {
	w := newWorld(t, &docker)
	first := w.create(spec{name: "web"})
	w.Start(w.config("web", ""))
	w.ok(w.Get("/"))
	if _, err := w.e.Client.ContainerRemove(t.Context(), first, client.ContainerRemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	w.await("the reason is told", func() bool {
		res := w.Get("/")
		return res.Status == 503 && strings.Contains(res.Body, "does not exist")
	})
	second := w.create(spec{name: "web"})
	w.await("the new one serves", func() bool { return w.Get("/").Status == 200 })
	if s := w.state(second); s != container.StateRunning {
		t.Errorf("the new container is %s", s)
	}
}

// A container that was started by hand is put to sleep like any other.
func TestContainerThatWasStartedByHandIsPutToSleep(t *testing.T) {
	w := newWorld(t, &docker)
	id := w.create(spec{name: "web"})
	w.Start(w.config("web", "", "idle_timeout 500ms", "scale queue"))
	if _, err := w.e.Client.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	w.AwaitReady("web", 1, 10*time.Second)
	w.await("it was put to sleep", func() bool { return w.state(id) == container.StateExited })
}

// What exists is left as it is when the service is removed and when Caddy exits.
func TestExistingContainersOutliveTheService(t *testing.T) {
	w := newWorld(t, &docker)
	id := w.create(spec{name: "web"})
	w.Start(w.config("web", ""))
	w.ok(w.Get("/"))
	w.MustReload(harness.Config{Site: "respond \"nothing\""})
	w.ok(w.Get("/"))
	if s := w.state(id); s != container.StateRunning {
		t.Errorf("after the service was removed the container is %s", s)
	}
	w.MustReload(w.config("web", ""))
	w.ok(w.Get("/"))
	w.Stop()
	if s := w.state(id); s != container.StateRunning {
		t.Errorf("after Caddy's exit the container is %s", s)
	}
}

// More instances than containers: those that exist serve, and the log says it.
func TestFewerContainersThanInstances(t *testing.T) {
	w := newWorld(t, &docker)
	for n := range 2 {
		w.create(spec{name: fmt.Sprintf("web%d", n), labels: map[string]string{"tier": "web"}})
	}
	w.Start(w.config("label tier=web", "", "instances 0 5", "scale queue", "concurrency 1"))
	load := w.Load(6, "/sleep?d=20ms")
	w.AwaitReady("web", 2, 20*time.Second)
	w.await("it was told", func() bool { return strings.Contains(w.RawLog(), "all 2 containers of the service run") })
	w.await("some answers", func() bool { return load.Len() > 100 })
	if bad := harness.Failed(load.Stop()); len(bad) > 0 {
		t.Errorf("%d requests failed, such as %+v", len(bad), bad[0])
	}
}

// A changed backend on the same containers, and a restart: held requests, no
// loss.
func TestReloadAndRestart(t *testing.T) {
	w := newWorld(t, &docker)
	w.create(spec{name: "web", env: []string{"PORT=8080"}, config: w.journal})
	w.Start(w.config("web", "", "stop_timeout 3s"))
	load := w.Load(3, "/sleep?d=5ms")
	w.await("it serves", func() bool { return load.Len() > 20 })
	w.MustReload(w.config("web", "port 8080", "stop_timeout 3s"))
	w.await("the container was started anew", func() bool { return w.Journal().Starts() == 2 })
	w.AwaitReady("web", 1, 10*time.Second)
	if res := w.Post("web/restart", ""); res.Status/100 != 2 {
		t.Fatalf("restart: %d %s", res.Status, res.Body)
	}
	w.await("the container was started anew", func() bool { return w.Journal().Starts() == 3 })
	n := load.Len()
	w.await("it serves", func() bool { return load.Len() > n+50 })
	all := load.Stop()
	if bad := slices.DeleteFunc(harness.Failed(all), func(r harness.Response) bool { return r.Status == 0 }); len(bad) > 0 {
		t.Errorf("%d of %d requests failed, such as %+v", len(bad), len(all), bad[0])
	}
}

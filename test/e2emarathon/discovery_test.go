package e2emarathon

import (
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/marathonsim"
)

// An app with a label is a service that is reached by its host and sleeps; without
// the label it is none, and the app stays.
func TestALabelMakesAService(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/shop/web", "")
	w.app("/other", "")
	w.Start(harness.Config{
		Usher: "marathon {\n\turl " + strings.Join(w.sim.URLs(), " ") + "\n}\nregistry {\n\tdiscover marathon\n}",
		Site:  "log\nusher {http.request.host}",
	})
	ask := func(host string) harness.Response { return w.Do(harness.Request{Path: "/", Host: host}) }
	unknown := func(host string) {
		t.Helper()
		harness.Eventually(t, soon, func() bool {
			res := ask(host)
			return res.Status == http.StatusNotFound && res.UsherError() == "unknown_service"
		}, "%s is the host of no service", host)
	}
	label := func(labels map[string]any) {
		t.Helper()
		if err := w.sim.UpdateApp("/shop/web", map[string]any{"labels": labels}, true); err != nil {
			t.Fatal(err)
		}
	}
	serves := func(host string) {
		t.Helper()
		harness.Eventually(t, soon, func() bool { return ask(host).Status == http.StatusOK }, "%s is served", host)
	}
	unknown("shop.example.com")

	// What it says of others has no effect.
	label(map[string]any{"USHER_ENABLE": "true", "USHER_HOSTS": "shop.example.com", "USHER_APP": "/other", "USHER_COMMAND": "sh"})
	serves("shop.example.com")
	w.awaitTasks("/shop/web", 1)
	if others := w.running("/other"); len(others) > 0 {
		t.Errorf("tasks of another app run: %v", others)
	}

	label(map[string]any{"USHER_ENABLE": "true", "USHER_HOSTS": "www.example.com"})
	serves("www.example.com")
	unknown("shop.example.com")

	// Of two that claim a host, the older one has it.
	w.app("/thief", `,"labels":{"USHER_ENABLE":"true","USHER_HOSTS":"www.example.com"}`)
	harness.Eventually(t, soon, func() bool {
		return strings.Contains(w.RawLog(), "the host www.example.com belongs to the service shop-web")
	}, "that the host is taken is logged")
	if n := strings.Count(w.RawLog(), "USHER_COMMAND"); n != 1 {
		t.Errorf("labels that have no effect were logged %d times", n)
	}

	// A Marathon that is away ends no service.
	back := w.sim.Inject(marathonsim.Fault{Kind: marathonsim.FaultReset})
	w.sim.DropStreams()
	harness.Eventually(t, soon, func() bool { return strings.Contains(w.RawLog(), "a platform cannot be asked for services") }, "the outage is logged")
	if res := ask("www.example.com"); res.Status != http.StatusOK {
		t.Errorf("while Marathon is away: status %d, %s", res.Status, res.Body)
	}
	back()

	if err := w.sim.DeleteApp("/thief"); err != nil { // or it would have the host next
		t.Fatal(err)
	}
	label(map[string]any{"USHER_HOSTS": "www.example.com"})
	unknown("www.example.com")
	if n := len(w.running("/thief")); n != 0 {
		t.Errorf("%d tasks of an app that is no service run", n)
	}
	if n := len(w.running("/shop/web")); n != 1 {
		t.Errorf("%d tasks of the app run after it is no service any more", n)
	}
}

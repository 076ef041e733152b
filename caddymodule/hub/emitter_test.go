package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"
)

func init() { caddy.RegisterModule(recordingHandler{}) }

// recordingHandler handles Caddy's events by noting them under a name. It
// waits for the gate of that name, if there is one.
type recordingHandler struct {
	Name string `json:"name,omitempty"`
}

func (recordingHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.recording", New: func() caddy.Module { return new(recordingHandler) }}
}

var recorded struct {
	sync.Mutex
	events map[string][]string
	gates  map[string]chan struct{}
}

func (h *recordingHandler) Handle(_ context.Context, e caddy.Event) error {
	recorded.Lock()
	recorded.events[h.Name] = append(recorded.events[h.Name], fmt.Sprint(e.Name(), e.Data["n"]))
	gate := recorded.gates[h.Name]
	recorded.Unlock()
	if gate != nil {
		<-gate
	}
	return nil
}

// listening returns an emitter on an events app that records what it is told
// to under the test's name, which is begun with.
func listening(t *testing.T, gate chan struct{}) *emitter {
	t.Helper()
	recorded.Lock()
	if recorded.events == nil {
		recorded.events, recorded.gates = make(map[string][]string), make(map[string]chan struct{})
	}
	recorded.gates[t.Name()] = gate
	delete(recorded.events, t.Name())
	recorded.Unlock()
	base, err := caddy.ProvisionContext(&caddy.Config{AppsRaw: caddy.ModuleMap{"events": json.RawMessage(
		`{"subscriptions":[{"events":["usher.ready"],"handlers":[{"handler":"recording","name":"` + t.Name() + `"}]}]}`)}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(base)
	t.Cleanup(cancel)
	app, err := ctx.App("events")
	if err != nil {
		t.Fatal(err)
	}
	if err := app.(caddy.App).Start(); err != nil {
		t.Fatal(err)
	}
	e := new(emitter)
	e.use(&Generation{Events: app.(*caddyevents.App), Ctx: ctx, Logger: zap.NewNop()})
	return e
}

func heard(t *testing.T) []string {
	recorded.Lock()
	defer recorded.Unlock()
	return slices.Clone(recorded.events[t.Name()])
}

func numbered(n int) func() map[string]any {
	return func() map[string]any { return map[string]any{"n": n} }
}

func TestEventsComeInTheirOrder(t *testing.T) {
	t.Parallel()
	e := listening(t, nil)
	var want []string
	for n := range 100 {
		e.emit(eventReady, numbered(n))
		want = append(want, fmt.Sprint(eventReady, n))
	}
	eventually(t, "the events", func() bool { return len(heard(t)) == len(want) })
	if got := heard(t); !slices.Equal(got, want) {
		t.Errorf("heard %q", got)
	}
}

func TestAnEventHandlerThatHangsHoldsUpNobody(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	e := listening(t, gate)
	for n := range 2 * emitterBacklog {
		e.emit(eventReady, numbered(n)) // would not return
	}
	close(gate)
	eventually(t, "what there was room for", func() bool { return len(heard(t)) >= emitterBacklog })
	e.emit(eventReady, numbered(-1))
	eventually(t, "one more", func() bool { return slices.Contains(heard(t), eventReady+"-1") })
	if n := len(heard(t)); n > emitterBacklog+2 {
		t.Errorf("%d events were kept", n)
	}
}

func TestAConfigurationThatHasGoneGetsNoEvents(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	e := listening(t, gate)
	e.emit(eventReady, numbered(0))
	e.emit(eventReady, numbered(1))
	eventually(t, "the first", func() bool { return len(heard(t)) == 1 })
	e.use(nil)
	e.emit(eventReady, numbered(2))
	close(gate)
	eventually(t, "the end of the goroutine", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return !e.running
	})
	if got := heard(t); len(got) != 1 {
		t.Errorf("heard %q", got)
	}
}

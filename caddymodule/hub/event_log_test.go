package hub

import (
	"bytes"
	"encoding/json"
	"maps"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

func TestEventsOfAServiceAreLogged(t *testing.T) {
	t.Parallel()
	crash := &scaler.Failure{Reason: scaler.ReasonExit, Short: "exit status 1", ForGood: true}
	for _, x := range []struct {
		event control.Event
		want  map[string]any
	}{
		{
			control.Decision{From: 1, To: 2, Reason: "3 wait", Inputs: map[string]any{"demand": 4, "waiting": 3, "ready": 1}},
			map[string]any{"level": "info", "msg": "decided", "from": 1.0, "to": 2.0, "reason": "3 wait", "demand": 4.0, "waiting": 3.0},
		},
		{
			control.StateChange{From: control.Asleep, To: control.Waking},
			map[string]any{"level": "info", "msg": "state changed", "from": "asleep", "to": "waking"},
		},
		{
			control.StartFailure{Failure: crash, InARow: 2, Attempts: 3, Pause: 2500*time.Millisecond + time.Microsecond},
			map[string]any{
				"level": "warn", "msg": "start failed", "reason": "exit", "for_good": true, "in_a_row": 2.0,
				"start_attempts": 3.0, "next_try_in": 2.5, "error": crash.Error(),
			},
		},
		{
			control.StartFailure{Failure: crash, InARow: 1, Attempts: 3, Pause: time.Second, Serving: true},
			map[string]any{
				"level": "warn", "msg": "start failed: the earlier revision keeps serving", "reason": "exit", "for_good": true,
				"in_a_row": 1.0, "start_attempts": 3.0, "next_try_in": 1.0, "error": crash.Error(),
			},
		},
		{
			control.StartFailure{Failure: crash, Together: true},
			map[string]any{"level": "warn", "msg": "start failed, together with others", "reason": "exit", "error": crash.Error()},
		},
		{control.ColdStart{Ready: time.Second}, nil},
		{control.InstanceStatus{ID: "a"}, nil},
	} {
		h := newHub()
		s := h.Acquire("web")
		t.Cleanup(func() { _ = h.closeAll() })
		var out bytes.Buffer
		h.logs.use(jsonLogger(&out, zap.DebugLevel))
		(*observer)(s).Observe(x.event)
		var got map[string]any
		if out.Len() > 0 {
			if err := json.Unmarshal(out.Bytes(), &got); err != nil {
				t.Fatalf("%s: %v", &out, err)
			}
			delete(got, "ts")
			x.want["logger"], x.want["service"] = "usher", "web"
		}
		if !maps.Equal(got, x.want) {
			t.Errorf("%T is logged as\n%v; want\n%v", x.event, got, x.want)
		}
	}
}

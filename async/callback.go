package async

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// callbackKeep is how long a callback is kept after its end, and callbackExpires
// how long it may wait for its first attempt.
const (
	callbackKeep    = 24 * time.Hour
	callbackExpires = 72 * time.Hour
)

// CallbackQueue is the queue of the callbacks of a service.
func CallbackQueue(service string) string { return callbackQueue + service }

// callbackQueue is before the name of the service. No service has such a name.
const callbackQueue = "callback:"

// IsCallback reports whether the tasks of a queue are callbacks, and of which
// service.
func IsCallback(queue string) (service string, ok bool) {
	return strings.CutPrefix(queue, callbackQueue)
}

// CallbackOf returns the task that tells of the end of t, with its body. ok is
// false if nothing is to be told. A store accepts it in the transaction in which t
// ends, so that no end goes untold. It calls CallbackOf at each end.
func CallbackOf(t Task) (n NewTask, body []byte, ok bool) {
	if t.Callback == "" || !t.State.Final() {
		return NewTask{}, nil, false
	}
	type data struct {
		ID       string `json:"id"`
		Service  string `json:"service"`
		State    string `json:"state"`
		Reason   string `json:"reason,omitempty"`
		Attempts int    `json:"attempts"`
		Status   int    `json:"status,omitempty"`
	}
	body, err := json.Marshal(struct {
		Type      string    `json:"type"`
		Timestamp time.Time `json:"timestamp"`
		Data      data      `json:"data"`
	}{
		"task." + t.State.String(), t.Ended.UTC(),
		data{t.ID, t.Queue, t.State.String(), t.Reason, t.Attempt, t.Status},
	})
	if err != nil {
		return NewTask{}, nil, false // a year beyond 9999
	}
	return NewTask{
		Queue: CallbackQueue(t.Queue),
		Request: Request{
			Method: http.MethodPost, URI: t.Callback,
			Header: http.Header{"Content-Type": {"application/json"}},
		},
		Client:  t.Client,
		Expires: callbackExpires,
		Keep:    callbackKeep,
	}, body, true
}

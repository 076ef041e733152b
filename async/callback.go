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

// callback is the body of a callback. docs/stored-requests.md explains it.
type callback struct {
	Type      string       `json:"type"`
	Timestamp time.Time    `json:"timestamp"`
	Data      callbackData `json:"data"`
}

type callbackData struct {
	ID       string    `json:"id"`
	Service  string    `json:"service"`
	State    string    `json:"state"`
	Reason   string    `json:"reason,omitempty"`
	Attempts int       `json:"attempts"`
	Accepted time.Time `json:"accepted"`
	Status   int       `json:"status,omitempty"`
	Size     *int64    `json:"size,omitempty"`
	URL      string    `json:"url,omitempty"`
	Result   string    `json:"result,omitempty"`
}

// CallbackOf returns the task that tells of the end of t, with its body. ok is
// false if nothing is to be told. A store accepts it in the transaction in which t
// ends, so that no end goes untold. It calls CallbackOf at each end.
func CallbackOf(t Task) (n NewTask, body []byte, ok bool) {
	if t.Callback == "" || !t.State.Final() {
		return NewTask{}, nil, false
	}
	data := callbackData{
		ID: t.ID, Service: t.Queue, State: t.State.String(), Reason: t.Reason, Attempts: t.Attempt, Status: t.Status,
		Accepted: t.Accepted.UTC(),
	}
	if t.Request.StatusURL != "" {
		data.URL = t.Request.StatusURL + t.ID
	}
	if t.Status != 0 {
		data.Size = &t.ResultSize
		if data.URL != "" {
			data.Result = data.URL + "/result"
		}
	}
	body, err := json.Marshal(callback{"task." + t.State.String(), t.Ended.UTC(), data})
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

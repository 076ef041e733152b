//go:build linux

package kube

import (
	"bytes"
	"encoding/json"
	"os"
	"time"
)

// auditPolicy makes the API server write down what the user usher asks: the
// times are the server's own, whatever Usher says about them.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Request, users: [usher]}
- {level: None}
`

func (c *Cluster) auditLog() string { return c.path("log", "audit.json") }

// A Call is one request to the API server.
type Call struct {
	Stage     string
	Verb      string
	UserAgent string
	ObjectRef struct {
		Resource, Subresource, Namespace, Name string
	}
	ResponseStatus struct{ Code int }
	RequestObject  json.RawMessage
	Received       time.Time `json:"requestReceivedTimestamp"`
}

// Is tells whether the call is of that verb, on "pods" or "deployments/scale".
func (c Call) Is(verb, resource string) bool {
	name := c.ObjectRef.Resource
	if c.ObjectRef.Subresource != "" {
		name += "/" + c.ObjectRef.Subresource
	}
	return c.Verb == verb && name == resource
}

// Calls returns what was asked by the user Usher about a namespace, in the
// order in which the answers were given; a watch stands there when it begins.
func (c *Cluster) Calls(namespace string) []Call {
	data, _ := os.ReadFile(c.auditLog())
	var calls []Call
	for line := range bytes.Lines(data) {
		var call Call
		if json.Unmarshal(line, &call) != nil || call.ObjectRef.Namespace != namespace {
			continue
		}
		if call.Verb == "watch" && call.Stage == "ResponseComplete" && call.ResponseStatus.Code == 200 {
			continue // the end of one that stands there already
		}
		calls = append(calls, call)
	}
	return calls
}

package marathon

import (
	"encoding/json"
	"strings"
	"testing"

	gomarathon "github.com/gambol99/go-marathon"
)

func TestEndpointOfATask(t *testing.T) {
	const host = `{"host":"10.0.0.7","ports":[31001,31002],"ipAddresses":[{"ipAddress":"9.0.0.1","protocol":"IPv4"}]}`
	for name, tc := range map[string]struct {
		app, task string
		port      port
		want      string
		failure   string
	}{
		"host":                    {`{"networks":[{"mode":"host"}],"portDefinitions":[{"port":10000,"name":"http"},{"port":10001,"name":"admin"}]}`, host, port{}, "10.0.0.7:31001", ""},
		"host, second port":       {`{"networks":[{"mode":"host"}],"portDefinitions":[{"port":10000},{"port":10001}]}`, host, port{index: 1}, "10.0.0.7:31002", ""},
		"host, by name":           {`{"portDefinitions":[{"name":"http"},{"name":"admin"}]}`, host, port{name: "admin"}, "10.0.0.7:31002", ""},
		"host, no such name":      {`{"portDefinitions":[{"name":"http"}]}`, host, port{name: "web"}, "", `named ["http"]`},
		"host, no ports":          {`{"portDefinitions":[]}`, host, port{}, "", "0 portDefinitions"},
		"host, ports left out":    {`{}`, `{"host":"h","ports":[31001]}`, port{}, "h:31001", ""},
		"host, index too large":   {`{}`, `{"host":"h","ports":[31001]}`, port{index: 1}, "", "1 ports"},
		"host, a name of nothing": {`{}`, host, port{name: "web"}, "", "use port_index"},
		"host, not known yet":     {`{"portDefinitions":[{"name":"http"}]}`, `{"host":"h","ports":[]}`, port{}, "", ""},
		"IPv6":                    {`{}`, `{"host":"fd00::7","ports":[31001]}`, port{}, "[fd00::7]:31001", ""},
		"bridge": {
			`{"networks":[{"mode":"container/bridge"}],"container":{"type":"MESOS","portMappings":[{"containerPort":80,"hostPort":0,"name":"http"},{"containerPort":81}]}}`,
			host,
			port{index: 1},
			"10.0.0.7:31002", "",
		},
		"container, mapped to the host": {
			`{"networks":[{"mode":"container","name":"dcos"}],"container":{"portMappings":[{"containerPort":80,"name":"inner"},{"containerPort":81,"hostPort":0,"name":"outer"}]}}`,
			host,
			port{name: "outer"},
			"10.0.0.7:31001", "",
		},
		"container, of its own": {
			`{"networks":[{"mode":"container","name":"dcos"}],"container":{"portMappings":[{"containerPort":80,"hostPort":0},{"containerPort":81}]}}`,
			host,
			port{index: 1},
			"9.0.0.1:81", "",
		},
		"container, no address yet": {
			`{"networks":[{"mode":"container","name":"dcos"}],"container":{"portMappings":[{"containerPort":80}]}}`,
			`{"host":"h","ports":[],"ipAddresses":[]}`,
			port{},
			"", "",
		},
		"1.4 bridge": {
			`{"container":{"docker":{"network":"BRIDGE","portMappings":[{"containerPort":80,"hostPort":0,"name":"http"}]}}}`,
			host,
			port{name: "http"},
			"10.0.0.7:31001", "",
		},
		"1.4 user network": {
			`{"ipAddress":{"networkName":"dcos"},"container":{"docker":{"network":"USER","portMappings":[{"containerPort":80}]}}}`,
			host,
			port{},
			"9.0.0.1:80", "",
		},
		"1.4 address per task": {
			`{"ipAddress":{"discovery":{"ports":[{"number":8080,"name":"http","protocol":"tcp"}]}}}`,
			host,
			port{name: "http"},
			"9.0.0.1:8080", "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var app appJSON
			var task gomarathon.Task
			for _, e := range []error{json.Unmarshal([]byte(tc.app), &app), json.Unmarshal([]byte(tc.task), &task)} {
				if e != nil {
					t.Fatal(e)
				}
			}
			app.ID = "/web"
			got, f := app.endpoint(&task, tc.port)
			if got != tc.want || (f != nil) != (tc.failure != "") {
				t.Fatalf("%q, %v", got, f)
			}
			if f != nil && (!f.ForGood || !strings.Contains(f.Error(), tc.failure)) {
				t.Errorf("%v does not say %q", f, tc.failure)
			}
		})
	}
}

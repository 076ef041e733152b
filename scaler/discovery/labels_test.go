package discovery_test

import (
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/discovery"
)

func TestKeysAreReadAndOthersAreNamed(t *testing.T) {
	annotations := discovery.Scheme{Prefix: "usher.caddyserver.com/", Own: []string{"usher.caddyserver.com/scaled-by"}}
	variables := discovery.Scheme{Prefix: "USHER_", Upper: true}
	for _, tt := range []struct {
		name    string
		scheme  discovery.Scheme
		labels  map[string]string
		want    map[string]string
		port    string
		ignored []string
		problem string
		no      bool
	}{
		{name: "nothing", scheme: annotations, no: true},
		{name: "not enabled", scheme: annotations, labels: map[string]string{"usher.caddyserver.com/hosts": "a.example"}, no: true},
		{name: "disabled", scheme: annotations, labels: map[string]string{"usher.caddyserver.com/enable": "false"}, no: true},
		{name: "another program's", scheme: annotations, labels: map[string]string{"example.com/enable": "true"}, no: true},
		{
			name: "annotations", scheme: annotations,
			labels: map[string]string{
				"usher.caddyserver.com/enable": "true", "usher.caddyserver.com/hosts": "a.example, b.example",
				"usher.caddyserver.com/idle-timeout": "5m", "usher.caddyserver.com/port": "http",
				"usher.caddyserver.com/scaled-by": "{}", "app": "web",
			},
			want: map[string]string{"hosts": "a.example, b.example", "idle-timeout": "5m"}, port: "http",
		},
		{
			name: "variables", scheme: variables,
			labels: map[string]string{"USHER_ENABLE": "true", "USHER_IDLE_TIMEOUT": "5m", "USHER_NAME": "x", "HAPROXY_0_VHOST": "y"},
			want:   map[string]string{"idle-timeout": "5m", "name": "x"},
		},
		{
			name: "a placeholder", scheme: variables, labels: map[string]string{"USHER_ENABLE": "true", "USHER_READY": "http /{env.SECRET}"},
			want: map[string]string{}, problem: "USHER_READY holds",
		},
		{
			name: "a placeholder for a port", scheme: variables, labels: map[string]string{"USHER_ENABLE": "true", "USHER_PORT": "{env.SECRET}"},
			want: map[string]string{}, problem: "USHER_PORT holds",
		},
		{
			name: "a line of its own", scheme: variables, labels: map[string]string{"USHER_ENABLE": "true", "USHER_HOSTS": "a\nb"},
			want: map[string]string{}, problem: "USHER_HOSTS holds",
		},
		{
			name: "an object that lies", scheme: annotations,
			labels: map[string]string{
				"usher.caddyserver.com/enable": "true", "usher.caddyserver.com/command": "sh", "usher.caddyserver.com/namespace": "kube-system",
				"usher.caddyserver.com/resource": "deployment/other", "usher.caddyserver.com/owner": "root", "usher.caddyserver.com/backend": "process",
				"usher.caddyserver.com/idle_timeout": "1s", "usher.caddyserver.com/Name": "x",
			},
			want: map[string]string{},
			ignored: []string{
				"usher.caddyserver.com/Name", "usher.caddyserver.com/backend", "usher.caddyserver.com/command", "usher.caddyserver.com/idle_timeout",
				"usher.caddyserver.com/namespace", "usher.caddyserver.com/owner", "usher.caddyserver.com/resource",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var f scaler.Found
			port, ok := tt.scheme.Read(&f, tt.labels)
			if ok == tt.no {
				t.Fatalf("it is a service: %v", ok)
			}
			if !reflect.DeepEqual(f.Labels, tt.want) || port != tt.port || !reflect.DeepEqual(f.Ignored, tt.ignored) || !strings.HasPrefix(f.Problem, tt.problem) || (tt.problem == "") != (f.Problem == "") {
				t.Errorf("labels %v, port %q, ignored %q, problem %q", f.Labels, port, f.Ignored, f.Problem)
			}
		})
	}
}

func TestTheNameOfAnObjectBecomesThatOfAService(t *testing.T) {
	service := regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	long := "a234567890123456789012345678901234567890123456789012345678901234567890"
	for object, want := range map[string]string{
		"web": "web", "prod/web": "prod-web", "Web_1": "web_1", "../secrets/x": "secrets-x", "a..b": "a.b", "a...b": "a.b", "größe": "gr--e",
		"_x": "x", "x.": "x", long: long[:63],
	} {
		got := discovery.Name(object)
		if got != want || !service.MatchString(got) {
			t.Errorf("%s becomes %s, not %s", object, got, want)
		}
	}
	if got := discovery.Name("/"); got != "" {
		t.Errorf("what has no name is named %s", got)
	}
}

package docker

import (
	"slices"
	"strings"
	"testing"
)

func TestParametersStandWhereNothingIsChosenThatRuns(t *testing.T) {
	for _, tt := range []struct {
		b    Backend
		path string
		want bool
	}{
		{Backend{Container: "app-{param.name}"}, "container", true},
		{Backend{Compose: "shop/{param.name}"}, "compose", true},
		{Backend{Label: "app={param.name}"}, "label", true},
		{Backend{Label: "{param.key}=web"}, "label", false},
		{Backend{Label: "{param.key}"}, "label", false},
		{Backend{Image: "app", Command: []string{"{param.x}", "y"}}, "command/0", false},
		{Backend{Image: "app", Command: []string{"--serve", "{param.x}"}}, "command/1", true},
		{Backend{Image: "app", Command: []string{"sh", "-c", "{param.x}"}}, "command/2", false},
		{Backend{Image: "app"}, "env/SIZE", true},
		{Backend{Image: "app"}, "env/LD_PRELOAD", false},
		{Backend{Image: "app"}, "env/PATH", false},
		{Backend{Image: "{param.image}"}, "image", false},
		{Backend{Image: "app"}, "volumes/0", false},
		{Backend{Image: "app"}, "user", false},
		{Backend{Image: "app"}, "host", false},
		{Backend{Image: "app"}, "network", false},
		{Backend{Image: "app"}, "labels/x", false},
		{Backend{Image: "app"}, "registry_auth/user", false},
		{Backend{Image: "app"}, "command", false},
		{Backend{Image: "app"}, "", false},
	} {
		if got := tt.b.TakesParam(strings.Split(tt.path, "/")...); got != tt.want {
			t.Errorf("%s of %+v takes a parameter: %v", tt.path, tt.b, got)
		}
	}
}

func TestAParameterReachesNothingButAName(t *testing.T) {
	for _, value := range []string{"", "../x", "x/../y", "x/y", "x?force=1", "x y", "x\ny", "x\x00", "-x", ".x", "é", "{env.NO_SUCH_VARIABLE}"} {
		for place, b := range map[string]*Backend{
			"container": {Container: value},
			"compose":   {Compose: "shop/" + value},
			"project":   {Compose: value + "/web"},
		} {
			if err := provision(t, b); err == nil {
				t.Errorf("%s %q is not refused", place, value)
			}
		}
	}
	for _, b := range []*Backend{{Container: "a_B.c-1"}, {Container: "/web"}, {Compose: "shop/web.api"}} {
		provisioned(t, b)
	}
	b := provisioned(t, &Backend{Image: "app", Command: []string{"--name", "$(id) ; x\t'y"}, Env: map[string]string{"A": "b=c"}})
	if want := []string{"--name", "$(id) ; x\t'y"}; !slices.Equal(b.plan.command, want) {
		t.Errorf("the command is %q", b.plan.command)
	}
}

func TestTheIDOfAContainerIsNotTheNameOfAnother(t *testing.T) {
	id, other := strings.Repeat("0a", 32), strings.Repeat("1b", 32)
	p := provisioned(t, &Backend{Container: id}).plan
	if !p.selects(id, "web", nil) || p.selects(other, id, nil) {
		t.Error("a container whose name is the id of another one is taken for that one")
	}
}

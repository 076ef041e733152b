package marathon

import (
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

func TestParametersStandForTheAppOnly(t *testing.T) {
	for path, want := range map[string]bool{
		"app": true, "urls/0": false, "basic_auth/user": false, "token_file": false, "ca_file": false, "port_name": false, "": false, "app/0": false,
	} {
		if got := new(Backend).TakesParam(strings.Split(path, "/")...); got != want {
			t.Errorf("%q takes a parameter: %v", path, got)
		}
	}
}

func TestAParameterReachesNoOtherApp(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	fill := func(name string) error {
		b := &Backend{App: strings.ReplaceAll("/dev/{param.name}", "{param.name}", name), URLs: []string{"http://127.0.0.1:1"}}
		return b.Provision(ctx)
	}
	for _, name := range []string{"web", "web.v2", "a/b"} {
		if err := fill(name); err != nil {
			t.Errorf("what is an id is refused: %v", err)
		}
	}
	for _, name := range []string{
		"", "..", "../prod/web", "x/../../prod/web", "x/..", "x/.", "./x", "x..y", "x/", "x//y", "/x", "x?force=true", "x#y", "x%2f..", "X", "x y",
		"x\ny", "x\x00", "-x", "x-", "x/tasks", "x/versions", "x/restart", "{env.HOME}/..", "{env.NO_SUCH_VARIABLE}",
	} {
		if err := fill(name); err == nil {
			t.Errorf("%q is not refused", name)
		}
	}
}

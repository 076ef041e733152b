//go:build unix

package process

import (
	"strings"
	"testing"
)

func TestParametersStandWhereNothingIsChosenThatRuns(t *testing.T) {
	for _, tt := range []struct {
		b    Backend
		path string
		want bool
	}{
		{Backend{Command: "/srv/app", Args: []string{"--size", "{param.size}"}}, "args/1", true},
		{Backend{Command: "/srv/app", Args: []string{"{param.size}"}}, "args/0", true},
		{Backend{Command: "/srv/app", Args: []string{"{param.size}"}}, "args/1", false},
		{Backend{Command: "/srv/app", Args: []string{"{param.size}"}}, "args/-1", false},
		{Backend{Command: "/srv/app", Args: []string{"{param.size}"}}, "args", false},
		{Backend{Command: "/bin/sh", Args: []string{"-c", "{param.size}"}}, "args/1", false},
		{Backend{Command: "env", Args: []string{"bash", "-c", "{param.size}"}}, "args/2", false},
		{Backend{Command: "{env.PROGRAM}", Args: []string{"{param.size}"}}, "args/0", false},
		{Backend{Command: "{param.program}"}, "command", false},
		{Backend{Command: "/bin/sh"}, "env/SIZE", true},
		{Backend{Command: "/srv/app"}, "env/PATH", false},
		{Backend{Command: "/srv/app"}, "env/LD_PRELOAD", false},
		{Backend{Command: "/srv/app"}, "dir", false},
		{Backend{Command: "/srv/app"}, "user", false},
		{Backend{Command: "/srv/app"}, "env_file/0", false},
		{Backend{Command: "/srv/app"}, "address", false},
		{Backend{Command: "/srv/app"}, "stop_signal", false},
		{Backend{Command: "/srv/app"}, "", false},
	} {
		if got := tt.b.TakesParam(strings.Split(tt.path, "/")...); got != tt.want {
			t.Errorf("%s of %s %q takes a parameter: %v", tt.path, tt.b.Command, tt.b.Args, got)
		}
	}
}

func TestAParameterStaysOneArgument(t *testing.T) {
	for _, value := range []string{"x; id", "$(id)", "`id`", "a b", "'a", `"a`, "--flag", "*", "$HOME", `\`} {
		b := &Backend{Command: "/bin/true", Args: []string{"--name=" + value, value}, Env: map[string]string{"NAME": value}}
		if err := loaded(b); err != nil {
			t.Errorf("%q: %v", value, err)
			continue
		}
		p := b.state.current()
		first, _ := p.args[0].constant()
		second, _ := p.args[1].constant()
		env, _ := p.env["NAME"].constant()
		if len(p.args) != 2 || first != "--name="+value || second != value || env != value {
			t.Errorf("%q became the arguments %v and the variable %q", value, p.args, env)
		}
	}
}

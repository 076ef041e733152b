package scaler_test

import (
	"testing"

	"github.com/caddy-usher/usher/scaler"
)

func TestAParameterIsNeverReadAsACommand(t *testing.T) {
	for _, tt := range []struct {
		name string
		argv []string
		at   int
		want bool
	}{
		{"an argument of a program", []string{"/srv/app", "--size", "{param.size}"}, 2, true},
		{"a part of an argument", []string{"app", "--size={param.size}"}, 1, true},
		{"the program", []string{"{param.program}", "x"}, 0, false},
		{"behind a program that is not known", []string{"{env.PROGRAM}", "{param.x}"}, 1, false},
		{"no argument", []string{"app"}, 1, false},
		{"before the program", []string{"app"}, -1, false},
		{"a shell's code", []string{"sh", "-c", "app {param.x}"}, 2, false},
		{"a shell's variable", []string{"sh", "-c", `app "$1"`, "sh", "{param.x}"}, 4, false},
		{"a shell by its path", []string{"/bin/bash", "-c", "{param.x}"}, 2, false},
		{"a shell of a version", []string{"/usr/bin/bash-5.2", "-c", "{param.x}"}, 2, false},
		{"a shell of Windows", []string{`C:\Windows\System32\CMD.EXE`, "/c", "{param.x}"}, 2, false},
		{"a box of shells", []string{"/bin/busybox", "sh", "-c", "{param.x}"}, 3, false},
		{"a shell behind another program", []string{"/usr/bin/env", "-i", "zsh", "-c", "{param.x}"}, 4, false},
		{"a shell of another machine", []string{"ssh", "host", "{param.x}"}, 2, false},
		{"a name that only begins as a shell's", []string{"shine", "{param.x}"}, 1, true},
	} {
		if got := scaler.ParamArg(tt.argv, tt.at); got != tt.want {
			t.Errorf("%s: ParamArg(%q, %d) is %v", tt.name, tt.argv, tt.at, got)
		}
	}
}

func TestAParameterIsNoVariableThatNamesCode(t *testing.T) {
	for _, name := range []string{"SIZE", "LOG_LEVEL", "PORT", "size", "PATHS", "MY_LD_PRELOAD"} {
		if !scaler.ParamVariable(name) {
			t.Errorf("%s takes no parameter", name)
		}
	}
	for _, name := range []string{"", "PATH", "Path", "LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES", "BASH_ENV", "ENV", "NODE_OPTIONS", "PYTHONPATH", "BASH_FUNC_ls%%", "JAVA_TOOL_OPTIONS"} {
		if scaler.ParamVariable(name) {
			t.Errorf("%q takes a parameter", name)
		}
	}
}

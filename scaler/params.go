package scaler

import (
	"path"
	"slices"
	"strings"
)

// ParamTaker is implemented by a Backend whose description may be a template:
// a developer, or a request, fills in the values of its parameters later. A
// backend that is none takes no parameters.
type ParamTaker interface {
	// TakesParam reports whether the value at a place of this description may
	// hold parameters. path leads there through the JSON: the keys of objects,
	// and the indexes of arrays in decimal, such as "args", "2" or "env",
	// "SIZE". The place need not exist yet: a variable is asked for before it
	// is added.
	//
	// It is called on a value that was decoded and not provisioned, with the
	// placeholders of the parameters, `{param.<name>}`, still in it. It must
	// refuse every place from which a value chooses what is executed, as which
	// user, from which file or image, or which platform is asked. What a
	// parameter makes of the description is provisioned like any other one, and
	// Provision has to refuse a name that is none.
	TakesParam(path ...string) bool
}

// ParamPlaceholder reports whether a value of a description is not wholly known
// yet, because it has a placeholder in it.
func ParamPlaceholder(value string) bool { return strings.ContainsRune(value, '{') }

// ParamArg reports whether a parameter may stand in argv[index]. argv[0] is the
// program. It is false for the program itself, and for every argument if the
// program is not known yet, or if it or an argument is one that makes a command
// of what it is given: a shell would read the value as code.
func ParamArg(argv []string, index int) bool {
	if index < 1 || index >= len(argv) || ParamPlaceholder(argv[0]) {
		return false
	}
	return !slices.ContainsFunc(argv, runsCommands)
}

// ParamVariable reports whether a parameter may be the value of a variable of
// the environment. It is false for the variables from which a loader, a shell
// or an interpreter takes what it executes.
func ParamVariable(name string) bool {
	name = strings.ToUpper(name)
	if name == "" || codeVariables[name] {
		return false
	}
	for _, prefix := range []string{"LD_", "DYLD_", "BASH_FUNC_", "GIT_"} {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	return true
}

// runsCommands reports whether a word names a program that executes text as a
// command. It need not be the first one: `env bash -c` is a shell as well.
func runsCommands(word string) bool {
	name := strings.ToLower(path.Base(strings.ReplaceAll(word, `\`, "/")))
	name = strings.TrimSuffix(name, ".exe")
	return shells[name] || shells[strings.TrimRight(name, "-.0123456789")] // bash-5.2
}

// shells are the programs that make a command of their arguments: shells, and
// those that hand what they are given to one.
var shells = map[string]bool{
	"sh": true, "bash": true, "dash": true, "ash": true, "zsh": true, "ksh": true, "mksh": true, "fish": true,
	"csh": true, "tcsh": true, "rbash": true, "busybox": true, "toybox": true, "cmd": true, "powershell": true, "pwsh": true,
	"su": true, "runuser": true, "ssh": true, "script": true, "watch": true, "eval": true,
}

// codeVariables are variables that name programs or files of code, or hold
// options that do.
var codeVariables = map[string]bool{
	"PATH": true, "PATHEXT": true, "COMSPEC": true, "SHELL": true, "ENV": true, "BASH_ENV": true, "IFS": true, "SHELLOPTS": true, "BASHOPTS": true,
	"PS4": true, "PROMPT_COMMAND": true, "ZDOTDIR": true, "HOME": true, "XDG_CONFIG_HOME": true, "EDITOR": true, "VISUAL": true, "PAGER": true, "BROWSER": true,
	"GCONV_PATH": true, "GLIBC_TUNABLES": true, "HOSTALIASES": true, "LOCPATH": true, "NLSPATH": true,
	"PYTHONPATH": true, "PYTHONHOME": true, "PYTHONSTARTUP": true, "PYTHONINSPECT": true, "PYTHONWARNINGS": true, "PYTHONBREAKPOINT": true,
	"NODE_OPTIONS": true, "NODE_PATH": true, "PERL5LIB": true, "PERLLIB": true, "PERL5OPT": true, "PERL5DB": true,
	"RUBYOPT": true, "RUBYLIB": true, "LUA_INIT": true, "LUA_PATH": true, "LUA_CPATH": true, "PHPRC": true, "PHP_INI_SCAN_DIR": true,
	"CLASSPATH": true, "JAVA_TOOL_OPTIONS": true, "JDK_JAVA_OPTIONS": true, "_JAVA_OPTIONS": true, "JAVA_OPTS": true, "CATALINA_OPTS": true,
	"DOTNET_STARTUP_HOOKS": true, "CORECLR_PROFILER_PATH": true, "COR_PROFILER_PATH": true, "OPENSSL_CONF": true, "OPENSSL_ENGINES": true,
}

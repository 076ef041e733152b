package marathonsim

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
)

// An appField is one member that the JSON of an app may have, and the JSON
// type that it must be of.
type appField struct {
	name string
	kind string // string, number, int, bool, array, object, any
}

// appFields are in the order in which they are written. Members that are not
// here are ignored when read, as Marathon ignores them.
var appFields = []appField{
	{"cmd", "string"},
	{"args", "array"},
	{"user", "string"},
	{"instances", "int"},
	{"cpus", "number"},
	{"mem", "number"},
	{"disk", "number"},
	{"gpus", "number"},
	{"executor", "string"},
	{"constraints", "array"},
	{"acceptedResourceRoles", "array"},
	{"fetch", "array"},
	{"storeUrls", "array"},
	{"uris", "array"},
	{"backoffSeconds", "number"},
	{"backoffFactor", "number"},
	{"maxLaunchDelaySeconds", "number"},
	{"container", "object"},
	{"healthChecks", "array"},
	{"readinessChecks", "array"},
	{"check", "object"},
	{"dependencies", "array"},
	{"upgradeStrategy", "object"},
	{"labels", "object"},
	{"env", "object"},
	{"secrets", "object"},
	{"ipAddress", "object"},
	{"networks", "array"},
	{"ports", "array"},
	{"portDefinitions", "array"},
	{"requirePorts", "bool"},
	{"residency", "object"},
	{"taskKillGracePeriodSeconds", "number"},
	{"unreachableStrategy", "any"},
	{"killSelection", "string"},
	{"resourceLimits", "object"},
	{"tty", "bool"},
	{"role", "string"},
}

// A violation is one entry of the details of a 422.
type violation struct {
	path   string
	errors []string
}

func details(vs []violation) []any {
	out := []any{}
	for _, v := range vs {
		out = append(out, object{{"path", v.path}, {"errors", v.errors}})
	}
	return out
}

// checkTypes finds the members that are of the wrong JSON type, in the words
// of Marathon's JSON reader, and returns the members that it knows.
func checkTypes(in map[string]any) (map[string]any, []violation) {
	known := map[string]any{}
	var bad []violation
	for _, f := range append([]appField{{"id", "string"}, {"version", "string"}, {"versionInfo", "object"}}, appFields...) {
		v, ok := in[f.name]
		if !ok {
			continue
		}
		known[f.name] = v
		if v == nil || f.kind == "any" {
			continue
		}
		expected := ""
		switch f.kind {
		case "string":
			if _, ok := v.(string); !ok {
				expected = "error.expected.jsstring"
			}
		case "bool":
			if _, ok := v.(bool); !ok {
				expected = "error.expected.jsboolean"
			}
		case "array":
			if _, ok := v.([]any); !ok {
				expected = "error.expected.jsarray"
			}
		case "object":
			if _, ok := v.(map[string]any); !ok {
				expected = "error.expected.jsobject"
			}
		case "number", "int":
			if _, ok := v.(json.Number); !ok {
				expected = "error.expected.jsnumber"
			} else if n := asFloat(v, 0); f.kind == "int" && n != math.Trunc(n) {
				expected = "error.expected.int"
			}
		}
		if expected != "" {
			bad = append(bad, violation{"/" + f.name, []string{expected}})
		}
	}
	slices.SortFunc(bad, func(a, b violation) int { return strings.Compare(a.path, b.path) })
	return known, bad
}

var idSegment = regexp.MustCompile(`^(([a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9])\.)*([a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9])$`)

// validate checks what is well-formed for sense.
func validate(id string, app map[string]any) []violation {
	var bad []violation
	fail := func(path, format string, args ...any) {
		bad = append(bad, violation{path, []string{fmt.Sprintf(format, args...)}})
	}
	segments := strings.Split(strings.Trim(id, "/"), "/")
	for _, s := range segments {
		if !idSegment.MatchString(s) {
			fail("/id", "must fully match regular expression '%s'", idSegment)
			break
		}
	}
	switch last := segments[len(segments)-1]; last {
	case "restart", "tasks", "versions":
		fail("/id", "must not end with any of these values: [restart, tasks, versions]")
	}
	if asString(app["cmd"], "") == "" && app["args"] == nil && app["container"] == nil {
		fail("/", "AppDefinition must either contain one of 'cmd' or 'args', and/or a 'container'.")
	}
	if app["cmd"] != nil && app["args"] != nil {
		fail("/", "AppDefinition must either contain one of 'cmd' or 'args', and/or a 'container'.")
	}
	for _, k := range []string{"instances", "cpus", "mem", "disk", "gpus", "backoffSeconds", "maxLaunchDelaySeconds", "taskKillGracePeriodSeconds"} {
		if n := asFloat(app[k], 0); n < 0 {
			fail("/"+k, "error.min")
		}
	}
	if asFloat(app["backoffFactor"], 1.15) < 1 {
		fail("/backoffFactor", "error.min")
	}
	ports := len(asList(app["portDefinitions"]))
	if app["portDefinitions"] == nil {
		ports = 1
	}
	if c := asMap(app["container"]); c["portMappings"] != nil {
		ports = len(asList(c["portMappings"]))
	} else if app["ports"] != nil {
		ports = len(asList(app["ports"]))
	}
	for i, c := range asList(app["healthChecks"]) {
		m := asMap(c)
		if n := asInt(m["portIndex"], 0); n >= ports && m["port"] == nil && m["protocol"] != "COMMAND" {
			fail(fmt.Sprintf("/healthChecks(%d)", i), "Health check port indices must address an element of the ports array or container port mappings.")
		}
	}
	names := map[string]bool{}
	for _, p := range asList(app["portDefinitions"]) {
		if name := asString(asMap(p)["name"], ""); name != "" {
			if names[name] {
				fail("/portDefinitions", "Port names must be unique.")
			}
			names[name] = true
		}
	}
	if k := asString(app["killSelection"], "YOUNGEST_FIRST"); k != "YOUNGEST_FIRST" && k != "OLDEST_FIRST" {
		fail("/killSelection", "error.unknown.enum.literal")
	}
	return bad
}

// merge is a partial update: what is sent replaces the member of that name
// whole, and what is not sent stays.
func merge(base, update map[string]any) map[string]any {
	out := maps.Clone(base)
	for k, v := range update {
		if v != nil {
			out[k] = v
		}
	}
	// A command in one form takes the place of one in the other.
	if update["cmd"] != nil {
		delete(out, "args")
	}
	if update["args"] != nil {
		delete(out, "cmd")
	}
	// Numbers in the old form and their definitions are one thing.
	if update["ports"] != nil && update["portDefinitions"] == nil {
		delete(out, "portDefinitions")
	}
	if update["portDefinitions"] != nil {
		delete(out, "ports")
	}
	return out
}

package marathonsim

import (
	"encoding/json"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"
)

// A definition is one version of an app: the JSON as Marathon keeps it, with
// every default filled in, and what the engine reads out of it. It is never
// changed once made.
type definition struct {
	id     string
	fields map[string]any // without id, instances, version, versionInfo

	instances   int
	version     time.Time
	lastScaling time.Time
	lastConfig  time.Time // launch back-off is kept by this, so that scaling does not reset it

	cmd              string
	args             []string
	env              map[string]any
	labels           map[string]any
	cpus, mem        float64
	disk, gpus       float64
	backoff          time.Duration
	backoffFactor    float64
	maxLaunchDelay   time.Duration
	killGrace        time.Duration
	ports            []portSpec
	requirePorts     bool
	containerIP      bool // every task has an address of its own
	constraints      [][]string
	healthChecks     []healthCheck
	readinessChecks  []readinessCheck
	minHealth        float64
	maxOver          float64
	killOldest       bool
	inactiveAfter    time.Duration
	expungeAfter     time.Duration
	unreachableNever bool // unreachableStrategy "disabled"
	dependencies     []string
}

// A portSpec is one entry of portDefinitions or of container.portMappings.
type portSpec struct {
	name          string
	servicePort   int
	containerPort int  // of a mapping; 0 with host networking
	hostPort      bool // takes a port of the agent, so it has an entry in task.ports
}

type healthCheck struct {
	json        any
	protocol    string // HTTP, HTTPS, TCP; MESOS_HTTP, MESOS_HTTPS, MESOS_TCP, COMMAND
	path        string
	portIndex   int
	port        int
	command     string
	grace       time.Duration
	interval    time.Duration
	timeout     time.Duration
	delay       time.Duration
	maxFailures int
}

// mesos tells whether the agent runs the check, and not Marathon's leader.
func (h healthCheck) mesos() bool {
	return strings.HasPrefix(h.protocol, "MESOS_") || h.protocol == "COMMAND"
}

type readinessCheck struct {
	name     string
	https    bool
	path     string
	portName string
	interval time.Duration
	timeout  time.Duration
	statuses []int
	preserve bool
}

// defaultKillGrace is Mesos' own, used when the app does not say.
const defaultKillGrace = 3 * time.Second

// newDefinition fills in the defaults, hands out service ports and reads what
// the engine needs. The input has been validated.
func newDefinition(p profile, id string, in map[string]any, servicePort func() int) *definition {
	f := maps.Clone(in)
	for _, k := range []string{"id", "instances", "version", "versionInfo"} {
		delete(f, k)
	}
	for k, v := range f {
		if v == nil {
			delete(f, k)
		}
	}
	setDefault(f, "cpus", json.Number("1"))
	setDefault(f, "mem", json.Number("128"))
	setDefault(f, "disk", json.Number("0"))
	setDefault(f, "gpus", json.Number("0"))
	setDefault(f, "executor", "")
	setDefault(f, "backoffSeconds", json.Number("1"))
	setDefault(f, "backoffFactor", json.Number("1.15"))
	setDefault(f, "maxLaunchDelaySeconds", num(p.maxLaunchDelay.Seconds()))
	for _, k := range []string{"constraints", "dependencies", "healthChecks", "readinessChecks", "fetch"} {
		setDefault(f, k, []any{})
	}
	setDefault(f, "env", map[string]any{})
	setDefault(f, "labels", map[string]any{})
	setDefault(f, "secrets", map[string]any{})
	setDefault(f, "requirePorts", false)
	setDefault(f, "killSelection", "YOUNGEST_FIRST")
	setDefault(f, "role", "*")
	f["upgradeStrategy"] = overlay(map[string]any{
		"minimumHealthCapacity": json.Number("1"), "maximumOverCapacity": json.Number("1"),
	}, f["upgradeStrategy"])
	if f["unreachableStrategy"] != "disabled" {
		f["unreachableStrategy"] = overlay(map[string]any{
			"inactiveAfterSeconds": json.Number("0"), "expungeAfterSeconds": json.Number("0"),
		}, f["unreachableStrategy"])
	}
	f["healthChecks"] = healthDefaults(asList(f["healthChecks"]))
	f["readinessChecks"] = readinessDefaults(asList(f["readinessChecks"]))

	d := &definition{id: id, fields: f, instances: asInt(in["instances"], 1)}
	d.readNetwork(p, servicePort)
	d.read()
	return d
}

func setDefault(m map[string]any, key string, v any) {
	if _, ok := m[key]; !ok {
		m[key] = v
	}
}

func overlay(base map[string]any, over any) map[string]any {
	for k, v := range asMap(over) {
		if v != nil {
			base[k] = v
		}
	}
	return base
}

func healthDefaults(checks []any) []any {
	out := []any{}
	for _, c := range checks {
		out = append(out, overlay(map[string]any{
			"protocol": "HTTP", "gracePeriodSeconds": json.Number("300"), "intervalSeconds": json.Number("60"),
			"timeoutSeconds": json.Number("20"), "maxConsecutiveFailures": json.Number("3"),
			"delaySeconds": json.Number("15"), "ipProtocol": "IPv4",
		}, c))
	}
	return out
}

func readinessDefaults(checks []any) []any {
	out := []any{}
	for _, c := range checks {
		out = append(out, overlay(map[string]any{
			"name": "readinessCheck", "protocol": "HTTP", "path": "/", "portName": "http-api",
			"intervalSeconds": json.Number("30"), "timeoutSeconds": json.Number("10"),
			"httpStatusCodesForReady": []any{json.Number("200")}, "preserveLastResponse": false,
		}, c))
	}
	return out
}

// readNetwork brings the several ways in which an app can say its network
// into one: networks[] with container.portMappings, and, up to 1.4,
// container.docker.network with docker.portMappings.
func (d *definition) readNetwork(p profile, servicePort func() int) {
	f := d.fields
	container := maps.Clone(asMap(f["container"]))
	docker := asMap(container["docker"])
	mode := "host"
	if n := asList(f["networks"]); len(n) > 0 {
		mode = asString(asMap(n[0])["mode"], "container")
	} else {
		switch asString(docker["network"], "") {
		case "BRIDGE":
			mode = "container/bridge"
		case "USER":
			mode = "container"
		}
		if asMap(f["ipAddress"]) != nil {
			mode = "container"
		}
	}
	if p.networks {
		setDefault(f, "networks", []any{map[string]any{"mode": mode}})
	} else {
		delete(f, "networks")
	}

	if mode == "host" {
		d.readPortDefinitions(p, servicePort)
		return
	}
	mappings, inDocker := container["portMappings"], false
	if mappings == nil && docker != nil {
		mappings, inDocker = docker["portMappings"], true
	}
	if mappings == nil && mode == "container/bridge" {
		mappings = []any{map[string]any{"containerPort": json.Number("0")}}
	}
	out := []any{}
	for _, m := range asList(mappings) {
		pm := overlay(map[string]any{
			"containerPort": json.Number("0"), "protocol": "tcp", "servicePort": json.Number("0"), "labels": map[string]any{},
		}, m)
		if mode == "container/bridge" {
			setDefault(pm, "hostPort", json.Number("0"))
		}
		spec := portSpec{
			name: asString(pm["name"], ""), servicePort: asInt(pm["servicePort"], 0),
			containerPort: asInt(pm["containerPort"], 0),
		}
		_, spec.hostPort = pm["hostPort"]
		if spec.servicePort == 0 {
			spec.servicePort = servicePort()
			pm["servicePort"] = num(float64(spec.servicePort))
		}
		d.ports = append(d.ports, spec)
		out = append(out, pm)
	}
	d.containerIP = mode == "container"
	if container == nil {
		container = map[string]any{"type": "MESOS"}
	}
	if inDocker && !p.networks {
		docker = maps.Clone(docker)
		docker["portMappings"] = out
		container["docker"] = docker
	} else {
		container["portMappings"] = out
	}
	f["container"] = container
}

func (d *definition) readPortDefinitions(p profile, servicePort func() int) {
	f := d.fields
	given, ok := f["portDefinitions"]
	if !ok {
		if ports, old := f["ports"]; old {
			list := []any{}
			for _, port := range asList(ports) {
				list = append(list, map[string]any{"port": port})
			}
			given = list
		} else {
			given = []any{map[string]any{"port": json.Number("0"), "name": "default"}}
		}
	}
	out, numbers := []any{}, []any{}
	for _, g := range asList(given) {
		pd := overlay(map[string]any{"port": json.Number("0"), "protocol": "tcp", "labels": map[string]any{}}, g)
		spec := portSpec{name: asString(pd["name"], ""), servicePort: asInt(pd["port"], 0), hostPort: true}
		if spec.servicePort == 0 {
			spec.servicePort = servicePort()
			pd["port"] = num(float64(spec.servicePort))
		}
		d.ports = append(d.ports, spec)
		out = append(out, pd)
		numbers = append(numbers, pd["port"])
	}
	f["portDefinitions"] = out
	delete(f, "ports")
	if !p.networks {
		f["ports"] = numbers
	}
}

// read takes the values that the engine works with out of the JSON.
func (d *definition) read() {
	f := d.fields
	d.cmd, d.args = asString(f["cmd"], ""), asStrings(f["args"])
	d.env, d.labels = asMap(f["env"]), asMap(f["labels"])
	d.cpus, d.mem = asFloat(f["cpus"], 1), asFloat(f["mem"], 128)
	d.disk, d.gpus = asFloat(f["disk"], 0), asFloat(f["gpus"], 0)
	d.backoff = seconds(asFloat(f["backoffSeconds"], 1))
	d.backoffFactor = asFloat(f["backoffFactor"], 1.15)
	d.maxLaunchDelay = seconds(asFloat(f["maxLaunchDelaySeconds"], 300))
	d.killGrace = defaultKillGrace
	if v, ok := f["taskKillGracePeriodSeconds"]; ok {
		d.killGrace = seconds(asFloat(v, 3))
	}
	d.requirePorts = asBool(f["requirePorts"], false)
	for _, c := range asList(f["constraints"]) {
		d.constraints = append(d.constraints, asStrings(c))
	}
	up := asMap(f["upgradeStrategy"])
	d.minHealth, d.maxOver = asFloat(up["minimumHealthCapacity"], 1), asFloat(up["maximumOverCapacity"], 1)
	d.killOldest = f["killSelection"] == "OLDEST_FIRST"
	if un := asMap(f["unreachableStrategy"]); un != nil {
		d.inactiveAfter = seconds(asFloat(un["inactiveAfterSeconds"], 0))
		d.expungeAfter = seconds(asFloat(un["expungeAfterSeconds"], 0))
	} else {
		d.unreachableNever = true
	}
	for _, dep := range asStrings(f["dependencies"]) {
		d.dependencies = append(d.dependencies, absoluteID(dep))
	}
	for _, c := range asList(f["healthChecks"]) {
		m := asMap(c)
		d.healthChecks = append(d.healthChecks, healthCheck{
			json: c, protocol: asString(m["protocol"], "HTTP"), path: asString(m["path"], "/"),
			portIndex: asInt(m["portIndex"], 0), port: asInt(m["port"], 0),
			command:  asString(asMap(m["command"])["value"], ""),
			grace:    seconds(asFloat(m["gracePeriodSeconds"], 300)),
			interval: seconds(math.Max(asFloat(m["intervalSeconds"], 60), 0.001)),
			timeout:  seconds(asFloat(m["timeoutSeconds"], 20)), delay: seconds(asFloat(m["delaySeconds"], 15)),
			maxFailures: asInt(m["maxConsecutiveFailures"], 3),
		})
	}
	for _, c := range asList(f["readinessChecks"]) {
		m := asMap(c)
		r := readinessCheck{
			name: asString(m["name"], ""), https: m["protocol"] == "HTTPS", path: asString(m["path"], "/"),
			portName: asString(m["portName"], ""), interval: seconds(math.Max(asFloat(m["intervalSeconds"], 30), 0.001)),
			timeout: seconds(asFloat(m["timeoutSeconds"], 10)), preserve: asBool(m["preserveLastResponse"], false),
		}
		for _, s := range asList(m["httpStatusCodesForReady"]) {
			r.statuses = append(r.statuses, asInt(s, 200))
		}
		d.readinessChecks = append(d.readinessChecks, r)
	}
}

// sameConfig tells whether nothing but the number of instances differs: then
// a change is a scaling, otherwise an upgrade that restarts what runs.
func (d *definition) sameConfig(o *definition) bool { return reflect.DeepEqual(d.fields, o.fields) }

// input is the definition as it could be sent again, for partial updates.
func (d *definition) input() map[string]any {
	m := maps.Clone(d.fields)
	m["instances"] = num(float64(d.instances))
	return m
}

// json is the app as Marathon writes it, in the order of its own documents.
func (d *definition) json() object {
	o := object{{"id", d.id}}
	for _, f := range appFields {
		switch v, ok := d.fields[f.name]; {
		case f.name == "instances":
			o = append(o, member{"instances", d.instances})
		case ok:
			o = append(o, member{f.name, v})
		}
	}
	return append(o, member{"version", stamp(d.version)}, member{"versionInfo", object{
		{"lastScalingAt", stamp(d.lastScaling)}, {"lastConfigChangeAt", stamp(d.lastConfig)},
	}})
}

// absoluteID is the id of an app with its leading slash.
func absoluteID(id string) string { return "/" + strings.Trim(id, "/") }

// parentGroup is the group in which the app is.
func parentGroup(id string) string {
	if i := strings.LastIndexByte(id, '/'); i > 0 {
		return id[:i]
	}
	return "/"
}

// flatID is the id of the app as it stands in the ids of its tasks.
func flatID(id string) string { return strings.ReplaceAll(strings.Trim(id, "/"), "/", "_") }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

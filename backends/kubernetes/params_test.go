package kubernetes

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

func TestParametersStandForNamesOnly(t *testing.T) {
	b := &Backend{Resource: "deployment/{param.name}", Namespace: "{param.team}"}
	for path, want := range map[string]bool{
		"resource": true, "namespace": true, "kubeconfig": false, "context": false, "port": false, "deadline": false, "type": false,
		"resource/0": false, "": false,
	} {
		if got := b.TakesParam(strings.Split(path, "/")...); got != want {
			t.Errorf("%q takes a parameter: %v", path, got)
		}
	}
	for _, resource := range []string{"{param.kind}/web", "{param.resource}", "{param.kind}/{param.name}", "x{param.kind}/web"} {
		if (&Backend{Resource: resource}).TakesParam("resource") {
			t.Errorf("%s takes a parameter, which chooses the kind", resource)
		}
	}
	if new(Backend).TakesParam() {
		t.Error("a description takes a parameter as a whole")
	}
}

func TestAParameterReachesNoOtherObject(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	fill := func(name, team string) error {
		b := new(Backend)
		text := `{"resource":"deployment/web-{param.name}","namespace":"{param.team}"}`
		for param, value := range map[string]string{"{param.name}": name, "{param.team}": team} {
			quoted, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			text = strings.ReplaceAll(text, param, strings.Trim(string(quoted), `"`))
		}
		if err := json.Unmarshal([]byte(text), b); err != nil {
			t.Fatal(err)
		}
		return b.Provision(ctx)
	}
	if err := fill("a.b-c", "red"); err != nil {
		t.Errorf("what is a name is refused: %v", err)
	}
	evil := []string{
		"../secrets/x", "/../../secrets/x", "x/scale", "x?fieldManager=y", "x#y", "x%2fy", "X", "x y", "x\ny", "x\x00", "x.", "..", "é",
		"{env.HOME}", "{file./etc/passwd}", strings.Repeat("a", 254),
	}
	for _, value := range evil {
		if err := fill(value, "red"); err == nil {
			t.Errorf("name %q is not refused", value)
		}
		if err := fill("x", value); err == nil {
			t.Errorf("namespace %q is not refused", value)
		}
	}
}

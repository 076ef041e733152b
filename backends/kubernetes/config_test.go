package kubernetes

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/scaler"
)

func TestTheCaddyfileSaysWhatTheJSONSays(t *testing.T) {
	for text, want := range map[string]string{
		`kubernetes deployment/web`:         `{"resource":"deployment/web"}`,
		`kubernetes foos.v1.example.com/x`:  `{"resource":"foos.v1.example.com/x"}`,
		`kubernetes deployment/{env.STAGE}`: `{"resource":"deployment/{env.STAGE}"}`,
		"kubernetes statefulset/db {\n namespace prod\n port http\n kubeconfig /etc/kube.conf\n context main\n}": `{"resource":"statefulset/db","namespace":"prod","port":"http","kubeconfig":"/etc/kube.conf","context":"main"}`,
		"kubernetes deployment/web {\n port 8080\n}":                                                             `{"resource":"deployment/web","port":"8080"}`,
	} {
		var b Backend
		if err := b.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text)); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, _ := json.Marshal(&b); string(got) != want {
			t.Errorf("%s:\n got %s\nwant %s", text, got, want)
		}
	}
}

func TestTheGlobalOptionSaysWhatServicesLeaveOut(t *testing.T) {
	var b Backend
	d := caddyfile.NewTestDispenser("kubernetes {\n kubeconfig /etc/kube.conf\n context main\n namespace prod\n}")
	if err := b.UnmarshalCaddyfileDefaults(d); err != nil {
		t.Fatal(err)
	}
	if got, _ := json.Marshal(&b); string(got) != `{"namespace":"prod","kubeconfig":"/etc/kube.conf","context":"main"}` {
		t.Fatalf("%s", got)
	}
	for text, words := range map[string]string{
		"kubernetes x":                       "no arguments",
		"kubernetes {\n port 80\n}":          "it knows kubeconfig, context, namespace",
		"kubernetes {\n namespace Not_ok\n}": "namespace Not_ok",
	} {
		err := new(Backend).UnmarshalCaddyfileDefaults(caddyfile.NewTestDispenser(text))
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestTheCaddyfileRefusesWithTheLine(t *testing.T) {
	for text, words := range map[string]string{
		`kubernetes`:                                       "needs one workload",
		`kubernetes a b`:                                   "needs one workload",
		`kubernetes web`:                                   "write <resource>/<name>",
		`kubernetes widget/web`:                            "<plural>.<version>.<group>",
		`kubernetes deployment/Not_a_name`:                 "no name of a resource",
		"kubernetes deployment/web {\n replicas 3\n}":      "it knows namespace, port, deadline, ttl, kubeconfig, context",
		"kubernetes deployment/web {\n port 0\n}":          "between 1 and 65535",
		"kubernetes deployment/web {\n port 70000\n}":      "between 1 and 65535",
		"kubernetes deployment/web {\n port no_port\n}":    "neither a number nor",
		"kubernetes deployment/web {\n port 1 2\n}":        "exactly one value",
		"kubernetes deployment/web {\n port 1\n port 2\n}": "port is given twice",
		"kubernetes deployment/web {\n namespace\n}":       "exactly one value",
	} {
		var b Backend
		err := b.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text))
		if err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "Testfile:") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestPlaceholdersAreResolvedWhenTheConfigurationIsLoaded(t *testing.T) {
	t.Setenv("STAGE", "prod")
	b := Backend{Resource: "deployment/web-{env.STAGE}", Namespace: "{env.STAGE}"}
	if err := b.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	if b.plan.workload.name != "web-prod" || b.plan.namespace != "prod" {
		t.Fatalf("%+v", b.plan)
	}
	for words, bad := range map[string]*Backend{
		"a resource is required": {},
		"namespace A":            {Resource: "deployment/web", Namespace: "A"},
		"port":                   {Resource: "deployment/web", Port: "{env.NOT_SET_AT_ALL}"},
	} {
		if err := bad.Provision(caddy.Context{}); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestEqualDescriptionsHaveEqualFingerprintsAndOthersDoNot(t *testing.T) {
	t.Setenv("STAGE", "prod")
	print := func(b Backend) string {
		if err := b.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		return b.Fingerprint()
	}
	base := print(Backend{Resource: "deployment/web", Namespace: "prod"})
	for _, same := range []Backend{
		{Resource: "deployments/web", Namespace: "prod"},
		{Resource: "Deployment/web", Namespace: "{env.STAGE}"},
		{Resource: "deployments.v1.apps/web", Namespace: "prod"},
	} {
		if print(same) != base {
			t.Errorf("%+v", same)
		}
	}
	for _, other := range []Backend{
		{Resource: "deployment/web"},
		{Resource: "statefulset/web", Namespace: "prod"},
		{Resource: "deployment/web", Namespace: "prod", Port: "80"},
		{Resource: "deployment/web", Namespace: "prod", Context: "x"},
		{Resource: "deployment/web", Namespace: "prod", Kubeconfig: "x"},
	} {
		if print(other) == base {
			t.Errorf("%+v", other)
		}
	}
}

func TestTheNamespaceIsThatOfTheContextUnlessNamed(t *testing.T) {
	s := newAPIServer(t)
	for want, b := range map[string]Backend{
		"default":   {Resource: "deployment/web"},
		"elsewhere": {Resource: "deployment/web", Context: "other"},
		"named":     {Resource: "deployment/web", Namespace: "named"},
	} {
		bn := openOn(t, s, "deployment/web", func(o *options) { o.backend = b })
		if got := bn.runner.ns.name; got != want {
			t.Errorf("%s instead of %s", got, want)
		}
		bn.close()
	}
}

func TestAConfigurationThatCannotBeUsedIsSaidWhenItIsOpened(t *testing.T) {
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/no/such/file", garbage} {
		b := Backend{Resource: "deployment/web", Kubeconfig: path}
		if err := b.Provision(caddy.Context{}); err != nil {
			t.Fatalf("loading it looked for a cluster: %v", err)
		}
		_, err := b.Open(scaler.Env{Service: "web", Logger: quiet})
		if f := scaler.AsFailure(err); f == nil || f.Reason != scaler.ReasonNotFound || !f.ForGood || !strings.Contains(f.Detail, "KUBECONFIG") {
			t.Fatalf("%v", err)
		}
	}
}

func TestTheFilesThatKUBECONFIGNamesAreTheDefault(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 1)
	path := s.kubeconfig()
	t.Setenv("KUBECONFIG", path)
	b := openOn(t, s, "deployment/web", func(o *options) { o.backend.Kubeconfig = byDefault })
	b.has(1, 1)
}

package kubernetes

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func TestCaddyfile(t *testing.T) {
	for text, want := range map[string]string{
		"kubernetes": `{}`,
		"kubernetes {\n namespace prod\n name {env.NAME}\n kubeconfig /etc/kube.conf\n context main\n}": `{"namespace":"prod","name":"{env.NAME}","kubeconfig":"/etc/kube.conf","context":"main"}`,
	} {
		var c Coordinator
		if err := c.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text)); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, _ := json.Marshal(&c); string(got) != want {
			t.Errorf("%s:\n got %s\nwant %s", text, got, want)
		}
	}
}

func TestCaddyfileMistakes(t *testing.T) {
	for text, words := range map[string]string{
		"kubernetes main":                    "takes a block, and no arguments",
		"kubernetes {\n name\n}":             "name takes exactly one value",
		"kubernetes {\n name a b\n}":         "name takes exactly one value",
		"kubernetes {\n name a\n name b\n}":  "name is given twice",
		"kubernetes {\n name Not_ok\n}":      "name Not_ok: ",
		"kubernetes {\n namespace Not_ok\n}": "namespace Not_ok: ",
		"kubernetes {\n lease x\n}":          "unrecognized option 'lease' of coordinator kubernetes; it knows namespace, name, kubeconfig, context",
	} {
		err := new(Coordinator).UnmarshalCaddyfile(caddyfile.NewTestDispenser(text))
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: error %v, want %q", text, err, words)
		}
	}
}

func TestProvisionMistakes(t *testing.T) {
	for _, c := range []struct {
		c     Coordinator
		words string
	}{
		{Coordinator{Namespace: "Not_ok"}, "kubernetes: namespace Not_ok"},
		{Coordinator{Name: "Not_ok"}, "kubernetes: name Not_ok"},
		{Coordinator{Name: "{env.USHER_IS_NOT_SET}"}, "kubernetes: name: "},
	} {
		if err := c.c.Provision(caddy.Context{}); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%+v: error %v, want %q", c.c, err, c.words)
		}
	}
}

func TestTheObject(t *testing.T) {
	server := startServer(t)
	path := server.kubeconfig(server.address, "good")
	t.Setenv("USHER_TEST_NAME", "x.y")
	for _, c := range []struct {
		c    Coordinator
		want string
	}{
		{Coordinator{}, "the ConfigMap here/usher-main of Kubernetes"},
		{Coordinator{Namespace: "there", Name: "{env.USHER_TEST_NAME}"}, "the ConfigMap there/x.y of Kubernetes"},
	} {
		c.c.Kubeconfig = path
		if err := c.c.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		got, err := c.c.Open("main")
		if err != nil {
			t.Fatal(err)
		}
		if got.String() != c.want {
			t.Errorf("it is called %q, want %q", got, c.want)
		}
		got.Close()
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	server := startServer(t)
	path := server.kubeconfig(server.address, "good")
	for _, c := range []struct {
		c              Coordinator
		cluster, words string
	}{
		{Coordinator{Kubeconfig: "/nonexistent"}, "main", "no usable configuration; looked at kubeconfig"},
		{Coordinator{Kubeconfig: path, Context: "other"}, "main", `context "other" does not exist`},
		{Coordinator{Kubeconfig: path}, "Main Site", "give one: name <name>"},
		{Coordinator{Kubeconfig: path}, "", "the cluster has no name"},
	} {
		if err := c.c.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.c.Open(c.cluster); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("error %v, want %q", err, c.words)
		}
	}
	if _, err := new(Coordinator).Open("main"); err == nil || !strings.Contains(err.Error(), "before it was provisioned") {
		t.Errorf("error %v", err)
	}
}

package kubernetes

import (
	"errors"
	"io"
	"net/http"
	"os"
	"testing"

	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler/control"
)

// rightsOf returns what the Role in a file of deploy/kubernetes allows.
func rightsOf(t *testing.T, name string) map[string]bool {
	t.Helper()
	file, err := os.Open("../../deploy/kubernetes/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	allowed := make(map[string]bool)
	for decoder := yaml.NewYAMLOrJSONDecoder(file, 4096); ; {
		var doc struct {
			Kind  string
			Rules []struct{ Resources, Verbs []string }
		}
		if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
			return allowed
		} else if err != nil {
			t.Fatal(err)
		}
		for _, rule := range doc.Rules {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					allowed[verb+" "+resource] = true
				}
			}
		}
	}
}

func TestTheManifestsGrantExactlyTheRightsThatAreUsed(t *testing.T) {
	allowed := rightsOf(t, "rights.yaml")
	used := make(map[string]bool)
	for _, resource := range []string{"deployment", "statefulset"} {
		s := newAPIServer(t)
		s.controllers(running("10.0.0.1", true))
		s.workload(map[string]string{"deployment": "Deployment", "statefulset": "StatefulSet"}[resource], "web", 0)
		right := func(c call) string {
			r := c.verb + " " + c.resource
			if c.sub != "" {
				r += "/" + c.sub
			}
			return r
		}
		s.refuse = func(c call) (int, string) {
			if !allowed[right(c)] {
				return http.StatusForbidden, "the Role does not say: " + right(c)
			}
			return 0, ""
		}
		x := serve(t, s, resource+"/web", nil)
		a, b := x.inside(), x.inside()
		if err := x.Restart(); err != nil {
			t.Fatal(err)
		}
		b.Release(reserver.Answered)
		eventually(t, "one pod", func() bool {
			return len(s.livePods()) == 1 && (resource == "statefulset" || len(s.made("delete")) > 0)
		})
		a.Release(reserver.Answered)
		s.change(resource+"s", "web", func(o object) {
			merge(o, object{"metadata": object{"annotations": object{"test/quota": "yes"}}})
		})
		if resource == "statefulset" {
			x.Sleep()
			eventually(t, "sleep", func() bool { return x.Status().State == control.Asleep })
			r := new(reserver.Reservation)
			if _, err := x.slots.Reserve(r, reserver.Ask{}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a look at the events", func() bool { return len(s.made("list events")) > 0 })
			r.Cancel()
		}
		for _, c := range s.made("") {
			used[right(c)] = true
		}
	}
	for right := range allowed {
		if !used[right] {
			t.Errorf("granted and not used: %s", right)
		}
	}
	if t.Failed() {
		t.Logf("used: %v", used)
	}
}

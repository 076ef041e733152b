package marathonsim_test

import (
	"slices"
	"testing"
)

func TestAnAppRunsAsProcessesAndScales(t *testing.T) {
	s := start(t, quick())
	s.create("/prod/web", 1, "")
	a := s.settled("/prod/web", 1)
	task := running(a)[0]
	serves(t, endpoint(task))

	up := s.want(200, "PATCH", "/v2/apps/prod/web", `{"instances":3}`)
	if up.str("deploymentId") == "" || up.header.Get("Marathon-Deployment-Id") != up.str("deploymentId") || up.str("version") == "" {
		t.Errorf("the answer to a scaling: %v %s", up.header, up.body)
	}
	a = s.settled("/prod/web", 3)
	var addresses []string
	for _, task := range running(a) {
		addresses = append(addresses, endpoint(task))
		serves(t, endpoint(task))
	}
	slices.Sort(addresses)
	if len(slices.Compact(addresses)) != 3 {
		t.Errorf("tasks share an address: %v", addresses)
	}

	s.want(200, "PATCH", "/v2/apps/prod/web", `{"instances":0}`)
	s.settled("/prod/web", 0)
	for _, address := range addresses {
		if !refuses(address) {
			t.Errorf("%s still listens", address)
		}
	}
}

package caddymodule

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

// The upstreams come from the reservation and from nothing else: without the
// handler there are none, whatever the request says.
func TestUpstreamsWithoutAReservationAreNone(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, fmt.Sprintf(`{"apps":{"usher":{"services":{%q:{"backend":{"type":"test","fleet":%q},"instances":{"min":1}}}},
		"http":{"servers":{"s":{"listen":[":80"],"automatic_https":{"disable":true},
		"routes":[{"handle":[{"handler":"reverse_proxy","dynamic_upstreams":{"source":"usher"}}]}]}}}}}`, f.name, f.name))
	f.ready(1)
	address := serving(t, f.name).Loop.Instances()[0].Address
	for _, header := range []string{"Usher-Service", "Usher-Instance", "X-Usher-Service", "X-Forwarded-Host", "Upstream"} {
		for _, value := range []string{f.name, address, "{http.usher.address}"} {
			r := c.get("/"+value, header, value)
			if r.status/100 != 5 || r.header.Get("X-Instance") != "" {
				t.Errorf("%s: %s is answered %d by %q", header, value, r.status, r.header.Get("X-Instance"))
			}
		}
	}
}

// Names stand in headers, logs, metrics, paths of the admin API and keys of
// the storage: nothing that has a meaning there can be in one.
func TestNamesOfServicesMeanNothingAnywhere(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", ".", "..", "../x", "a/b", `a\b`, "a b", "a\n", "a\r\nX: y", "a\x00", "a\x1b", `a"`, "a'", "a<b>", "a{b}", "a%2fb", "A", "é", "a\u202e", "-a", "_a",
		strings.Repeat("a", 64),
	} {
		if hub.CheckName(name) == nil {
			t.Errorf("%q is accepted as the name of a service", name)
		}
		if _, err := tryProvision(t, string(mustJSON(map[string]any{"apps": map[string]any{"usher": map[string]any{
			"services": map[string]any{name: map[string]any{"backend": map[string]any{"type": "test"}}},
		}}}))); err == nil {
			t.Errorf("%q is loaded as the name of a service", name)
		}
	}
	srv := adminServer(t)
	for _, name := range []string{"..%2f..%2fx", "x%0d%0aX-Forged:%20y", "%1b[2J", "%3Cscript%3E"} {
		r := call(t, srv, http.MethodPost, "/usher/services/"+name+"/suspend", `{}`)
		if r.status != http.StatusNotFound || r.header.Get("X-Forged") != "" || strings.Contains(r.body, "<script>") {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

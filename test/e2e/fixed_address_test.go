package e2e

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/addr"
	"github.com/caddy-usher/usher/test/harness"
)

func TestAProgramWithAFixedPortWakesServesAndSleeps(t *testing.T) {
	c := newCaddy(t)
	address := addr.Free(t).String()
	web := harness.Usher("web", c.BackendWith("listen tcp "+address, "-addr", address), "instances 0 1", "idle_timeout 1s", "scale queue")
	c.Start(harness.Config{Site: web})
	for range 2 {
		if res := c.Get("/"); res.Status != http.StatusOK {
			t.Fatalf("%d %s %v", res.Status, res.Body, res.Err)
		}
		if list := c.Service("web").InstanceList; len(list) != 1 || list[0].Address != address {
			t.Errorf("want one instance at %s: %+v", address, list)
		}
		c.AwaitState("web", "asleep", soon)
		c.AwaitProcesses(0, soon)
	}
}

func TestAProgramThatListensOnIPv6OnlyWakesServesAndSleeps(t *testing.T) {
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("this machine has no IPv6: ", err)
	}
	ln.Close()
	address := netip.AddrPortFrom(netip.IPv6Loopback(), addr.Free(t).Port()).String()
	c := newCaddy(t)
	web := harness.Usher("web", c.BackendWith("listen tcp "+address, "-addr", address), "instances 0 1", "idle_timeout 1s", "scale queue", "ready http /")
	c.Start(harness.Config{Site: web})
	for range 2 {
		if res := c.Get("/"); res.Status != http.StatusOK {
			t.Fatalf("%d %s %v", res.Status, res.Body, res.Err)
		}
		if list := c.Service("web").InstanceList; len(list) != 1 || list[0].Address != address {
			t.Errorf("want one instance at %s: %+v", address, list)
		}
		c.AwaitState("web", "asleep", soon)
		c.AwaitProcesses(0, soon)
	}
}

func TestAFixedAddressIsForOneInstanceOfOneService(t *testing.T) {
	c := newCaddy(t)
	fixed := func(name, address, instances string) string {
		return "handle /" + name + "* {\n" + harness.Usher(name, "backend process /bin/true {\nlisten tcp "+address+"\n}", "instances "+instances) + "\n}\n"
	}
	for name, f := range map[string]struct {
		site string
		want []string
	}{
		"two instances":           {fixed("a", ":3000", "0 2"), []string{"service a", "instances allows 2", "127.0.0.1:3000"}},
		"two services":            {fixed("a", ":3000", "0 1") + fixed("b", "localhost:3000", "0 1"), []string{"127.0.0.1:3000", "as service", "another port"}},
		"overlap":                 {fixed("a", ":3000", "0 1\noverlap on"), []string{"overlap is on", "127.0.0.1:3000"}},
		"an address of elsewhere": {fixed("a", "0.0.0.0:3000", "0 1"), []string{"0.0.0.0:3000", "write 127.0.0.1:3000"}},
	} {
		out, status := c.RunConfig(harness.Config{Site: f.site}, "validate")
		if status == 0 {
			t.Errorf("%s: accepted", name)
		}
		for _, want := range f.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: the message does not say %q: %s", name, want, out)
			}
		}
	}
	for name, site := range map[string]string{
		"two ports":              fixed("a", ":3000", "0 1") + fixed("b", ":3001", "1 1"),
		"the same service twice": fixed("a", ":3000", "0 1") + strings.Replace(fixed("a", ":3000", "0 1"), "handle /a*", "handle /b*", 1),
	} {
		if out, status := c.RunConfig(harness.Config{Site: site}, "validate"); status != 0 {
			t.Errorf("%s: refused: %s", name, out)
		}
	}
}

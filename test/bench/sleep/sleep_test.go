package sleep

import (
	"flag"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

var (
	attribute = flag.Bool("attribute", false, "tell where the memory is")
	services  = flag.Int("services", 1000, "")
)

func TestMain(m *testing.M) { harness.Main(m) }

func TestSleepingServices(t *testing.T) {
	res, err := Measure(t.Context(), Config{Caddy: harness.Build(t).Caddy, Attribute: *attribute, Services: *services})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", res)
}

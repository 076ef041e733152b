package registrytest_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/registry/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTheStoreInMemory(t *testing.T) {
	places := make(map[string]*registrytest.Memory)
	registrytest.Run(t, registrytest.Subject{
		Place: func(t testing.TB) string {
			places[t.Name()] = registrytest.NewMemory()
			return t.Name()
		},
		Open: func(place string) (registry.Store, error) { return places[place].Open(), nil },
	})
}

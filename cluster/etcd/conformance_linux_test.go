package etcd

import (
	"strconv"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/cluster/coordinator"
	"github.com/caddy-usher/usher/cluster/coordinatortest"
	"github.com/caddy-usher/usher/test/etcdserver"
)

func provisioned(t testing.TB, c *Coordinator) *Coordinator {
	t.Helper()
	if err := c.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	return c
}

func opened(t testing.TB, c *Coordinator) *store {
	t.Helper()
	s, err := provisioned(t, c).OpenStore(coordinatortest.Name)
	if err != nil {
		t.Fatal(err)
	}
	return s.(*store)
}

func TestConforms(t *testing.T) {
	server := etcdserver.Start(t, etcdserver.Options{})
	objects := 0
	coordinatortest.Run(t, func(t *testing.T) coordinatortest.Subject {
		objects++
		prefix := "/test/" + strconv.Itoa(objects)
		raw := opened(t, &Coordinator{URLs: []string{server.URL}, Prefix: prefix})
		t.Cleanup(func() { raw.Close() })
		return coordinatortest.Subject{
			Server: server.Address,
			Open: func(t testing.TB, address string) coordinator.Store {
				if address == "" {
					address = server.Address
				}
				return opened(t, &Coordinator{URLs: []string{"http://" + address}, Prefix: prefix})
			},
			Write: func(t testing.TB, data []byte) {
				server.Call("/v3/kv/put", "", map[string][]byte{"key": []byte(raw.key), "value": data}, nil)
			},
			Delete: func(t testing.TB) {
				server.Call("/v3/kv/deleterange", "", map[string][]byte{"key": []byte(raw.key)}, nil)
			},
			Stop: func(testing.TB) (start func()) {
				server.Stop()
				return server.Start
			},
			Freeze: func(testing.TB) (thaw func()) {
				server.Freeze()
				return server.Thaw
			},
		}
	})
}

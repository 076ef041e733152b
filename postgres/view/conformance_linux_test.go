package view

import (
	"fmt"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/cluster/coordinator"
	"github.com/caddy-usher/usher/cluster/coordinatortest"
	"github.com/caddy-usher/usher/postgres/pgserver"
)

func opened(t testing.TB, c *Coordinator) coordinator.Store {
	t.Helper()
	if err := c.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	s, err := c.OpenStore(coordinatortest.Name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConforms(t *testing.T) {
	server := pgserver.Start(t, pgserver.Options{})
	schemas := 0
	coordinatortest.Run(t, func(t *testing.T) coordinatortest.Subject {
		schemas++
		schema := fmt.Sprintf("Schema \"%d", schemas)
		quoted := fmt.Sprintf(`"Schema ""%d"`, schemas)
		raw := opened(t, &Coordinator{DSN: server.DSN(), Schema: schema})
		t.Cleanup(func() { raw.Close() })
		// The tables are there.
		if _, _, err := raw.Get(t.Context()); err != nil {
			t.Fatal(err)
		}
		return coordinatortest.Subject{
			Server: server.Address,
			Open: func(t testing.TB, address string) coordinator.Store {
				if address == "" {
					address = server.Address
				}
				return opened(t, &Coordinator{DSN: pgserver.DSN(address), Schema: schema})
			},
			Write: func(t testing.TB, data []byte) {
				server.Exec(fmt.Sprintf(`INSERT INTO %s.views (cluster, value) VALUES ('%s', '\x%x')
					ON CONFLICT (cluster) DO UPDATE SET value = excluded.value, revision = excluded.revision`, quoted, coordinatortest.Name, data))
			},
			Delete: func(t testing.TB) { server.Exec(`DELETE FROM ` + quoted + `.views`) },
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

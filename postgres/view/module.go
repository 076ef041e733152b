package view

import (
	"errors"
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/cluster/coordinator"
	"github.com/caddy-usher/usher/postgres/server"
)

func init() {
	caddy.RegisterModule(new(Coordinator))
}

// Coordinator keeps what the Caddys of a cluster agree on in one row of a table in
// PostgreSQL, version 13 or later.
//
// `{env.*}` and `{file.*}` are resolved when the configuration is loaded.
type Coordinator struct {
	// The database, e.g. `postgres://usher:{env.PGPASSWORD}@db:5432/app`, or in words
	// such as `host=db user=usher`. What is missing is taken from the environment
	// variables that psql knows. All who may read the configuration can read a
	// password that stands here: take it from the environment or a file.
	DSN string `json:"dsn,omitempty"`

	// The schema of the tables. It is made if it is missing. Default: `usher`.
	Schema string `json:"schema,omitempty"`

	database *server.Database
}

// CaddyModule returns the Caddy module information.
func (*Coordinator) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  coordinator.Namespace + ".postgres",
		New: func() caddy.Module { return new(Coordinator) },
	}
}

// Provision resolves and checks the configuration. It calls no server.
func (c *Coordinator) Provision(caddy.Context) error {
	var err error
	c.database, err = server.Configured(c.DSN, c.Schema)
	return err
}

// Open makes the coordinator of a cluster. It connects with the first call.
func (c *Coordinator) Open(cluster string) (coordinator.Coordinator, error) {
	s, err := c.OpenStore(cluster)
	if err != nil {
		return nil, err
	}
	return coordinator.Over(cluster, s), nil
}

// OpenStore makes what is below the coordinator, for the conformance suite.
func (c *Coordinator) OpenStore(cluster string) (coordinator.Store, error) {
	switch {
	case c.database == nil:
		return nil, errors.New("postgres: the coordinator was opened before it was provisioned")
	case cluster == "":
		return nil, errors.New("postgres: the cluster has no name")
	}
	return open(c.database, cluster), nil
}

// UnmarshalCaddyfile sets up the coordinator from Caddyfile tokens. Syntax:
//
//	coordinator postgres <dsn> {
//		schema <name>
//	}
func (c *Coordinator) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the coordinator
	if err := server.ParseCaddyfile(d, &c.DSN, &c.Schema); err != nil {
		return fmt.Errorf("coordinator postgres: %w", err)
	}
	return nil
}

// Interface guards.
var (
	_ caddy.Module          = (*Coordinator)(nil)
	_ caddy.Provisioner     = (*Coordinator)(nil)
	_ caddyfile.Unmarshaler = (*Coordinator)(nil)
	_ coordinator.Opener    = (*Coordinator)(nil)
)

package tasks

import (
	"errors"
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/postgres/server"
)

func init() { caddy.RegisterModule(new(Opener)) }

// Opener describes the store of tasks in PostgreSQL, version 13 or later. Several Caddys
// can use it at once: each of them executes tasks that any of them has accepted.
//
// `{env.*}` and `{file.*}` are resolved when the configuration is loaded.
type Opener struct {
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
func (*Opener) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "usher.stores.postgres", New: func() caddy.Module { return new(Opener) }}
}

// Provision resolves and checks the configuration. It calls no server.
func (o *Opener) Provision(caddy.Context) error {
	var err error
	o.database, err = server.Configured(o.DSN, o.Schema)
	return err
}

// Open implements async.Opener.
func (o *Opener) Open(e async.Env) (async.Store, error) {
	if o.database == nil {
		return nil, errors.New("postgres: the store was opened before it was provisioned")
	}
	s, err := Open(o.database, Options{Key: e.Key})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	store postgres [<dsn>] {
//		dsn    <dsn>
//		schema <name>
//	}
func (o *Opener) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the store
	if err := server.ParseCaddyfile(d, &o.DSN, &o.Schema); err != nil {
		return fmt.Errorf("store postgres: %w", err)
	}
	return nil
}

var (
	_ async.Opener          = (*Opener)(nil)
	_ caddy.Provisioner     = (*Opener)(nil)
	_ caddyfile.Unmarshaler = (*Opener)(nil)
)

// Package postgres adds PostgreSQL to Usher: the store of tasks
// usher.stores.postgres, for several Caddys, and the coordinator of clusters
// usher.coordinators.postgres. Importing it registers both; it has no API of its
// own. It is a module of its own, so that a Caddy without it has no client of
// PostgreSQL in it.
package postgres

import (
	_ "github.com/caddy-usher/usher/postgres/tasks"
	_ "github.com/caddy-usher/usher/postgres/view"
)

package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Tables are those of one user of a database. They have a version, which is the
// number of their steps.
type Tables struct {
	// Name is unique in the schema.
	Name string

	// Steps are SQL statements. Each leads from one version to the next, and is
	// never changed after a release.
	Steps []string
}

// NewerError says that a newer Usher has made the tables.
type NewerError struct{ Found, Know int }

func (e *NewerError) Error() string {
	return fmt.Sprintf("the tables were made by a newer Usher (version %d, this one knows %d): run that one", e.Found, e.Know)
}

// What PostgreSQL says about what is missing.
const (
	undefinedTable     = "42P01"
	invalidSchema      = "3F000"
	insufficientRights = "42501"
)

// Make makes the tables that are missing, or brings them to the version that this
// Usher knows. If they have it, nothing but the right to read is needed. It returns a
// *NewerError, and changes nothing, if they have a higher one.
func (d *Database) Make(ctx context.Context, c *pgx.Conn, t Tables) error {
	version, err := t.version(ctx, c)
	if err == nil && version < len(t.Steps) {
		err = d.upgrade(ctx, c, t)
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && e.Code == insufficientRights {
		return fmt.Errorf("the user %s may not make tables in the schema %s: create it with CREATE SCHEMA %s AUTHORIZATION %s: %w",
			d.config.User, d.schema, pgx.Identifier{d.schema}.Sanitize(), pgx.Identifier{d.config.User}.Sanitize(), err)
	}
	return err
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// version is that of the tables, 0 if there are none.
func (t Tables) version(ctx context.Context, q querier) (int, error) {
	version := 0
	err := q.QueryRow(ctx, `SELECT version FROM usher_versions WHERE name = $1`, pgx.QueryExecModeExec, t.Name).Scan(&version)
	e, refused := errors.AsType[*pgconn.PgError](err)
	switch {
	case errors.Is(err, pgx.ErrNoRows), refused && (e.Code == undefinedTable || e.Code == invalidSchema):
		return 0, nil
	case err != nil:
		return 0, err
	case version > len(t.Steps):
		return 0, &NewerError{version, len(t.Steps)}
	}
	return version, nil
}

func (d *Database) upgrade(ctx context.Context, c *pgx.Conn, t Tables) error {
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		do := func(sql string, args ...any) error {
			_, err := tx.Exec(ctx, sql, append([]any{pgx.QueryExecModeExec}, args...)...)
			return err
		}
		if err := do(`SELECT pg_advisory_xact_lock(hashtextextended('the tables of Usher in ' || $1, 0))`, d.schema); err != nil {
			return err
		}
		exists := false
		if err := tx.QueryRow(ctx, `SELECT to_regnamespace($1) IS NOT NULL`, pgx.QueryExecModeExec, pgx.Identifier{d.schema}.Sanitize()).Scan(&exists); err != nil {
			return err
		}
		if !exists {
			if err := do(`CREATE SCHEMA ` + pgx.Identifier{d.schema}.Sanitize()); err != nil {
				return err
			}
		}
		// Those who have it need no rights for it.
		if err := tx.QueryRow(ctx, `SELECT to_regclass('usher_versions') IS NOT NULL`).Scan(&exists); err != nil {
			return err
		}
		if !exists {
			if err := do(`CREATE TABLE usher_versions (name text PRIMARY KEY, version integer NOT NULL)`); err != nil {
				return err
			}
		}
		version, err := t.version(ctx, tx)
		if err != nil {
			return err
		}
		for _, step := range t.Steps[version:] {
			// Several statements go by the simple protocol.
			if _, err := tx.Conn().PgConn().Exec(ctx, step).ReadAll(); err != nil {
				return err
			}
		}
		return do(`INSERT INTO usher_versions (name, version) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET version = excluded.version`, t.Name, len(t.Steps))
	})
}

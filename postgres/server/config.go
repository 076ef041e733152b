package server

import (
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Configured is Parse of a configuration, whose placeholders it resolves.
func Configured(dsn, schema string) (*Database, error) {
	resolve := caddy.NewReplacer()
	dsn, err := resolve.ReplaceOrErr(dsn, true, true)
	if err != nil {
		return nil, fmt.Errorf("postgres: dsn: %w", err)
	}
	if schema, err = resolve.ReplaceOrErr(schema, true, true); err != nil {
		return nil, fmt.Errorf("postgres: schema: %w", err)
	}
	d, err := Parse(dsn, schema)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	return d, nil
}

// ParseCaddyfile reads what follows the name of the module. The DSN stands behind it
// or in the block:
//
//	<dsn> {
//		dsn    <dsn>
//		schema <name>
//	}
func ParseCaddyfile(d *caddyfile.Dispenser, dsn, schema *string) error {
	if d.NextArg() {
		*dsn = d.Val()
	}
	if d.NextArg() {
		return d.Err("one DSN is taken: put it in quotes if it has spaces")
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		to, ok := map[string]*string{"dsn": dsn, "schema": schema}[option]
		switch {
		case !ok:
			return d.Errf("unrecognized option '%s'; it knows dsn and schema", option)
		case *to != "":
			return d.Errf("%s is given twice", option)
		case !d.AllArgs(to):
			return d.Errf("%s takes exactly one value", option)
		}
	}
	if *dsn == "" {
		return d.Err("the DSN of the database is missing, such as postgres://usher:{env.PGPASSWORD}@db:5432/app")
	}
	return nil
}

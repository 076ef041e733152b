package server

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Configured is Parse of a configuration, whose placeholders it resolves.
func Configured(dsn, schema string) (*Database, error) {
	dsn, err := resolve(dsn)
	if err != nil {
		return nil, fmt.Errorf("postgres: dsn: %w", err)
	}
	if schema, err = replace(schema, nil); err != nil {
		return nil, fmt.Errorf("postgres: schema: %w", err)
	}
	d, err := Parse(dsn, schema)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	return d, nil
}

// resolve resolves the placeholders of a DSN. What stands in for a user or a password
// may have any signs.
func resolve(dsn string) (string, error) {
	switch {
	case strings.HasPrefix(dsn, "postgres://"), strings.HasPrefix(dsn, "postgresql://"):
		credentials, rest := "", dsn
		if k := strings.LastIndexByte(dsn, '@'); k >= 0 {
			credentials, rest = dsn[:k], dsn[k:]
		}
		credentials, err := replace(credentials, func(s string) string {
			return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
		})
		if err != nil {
			return "", err
		}
		rest, err = replace(rest, nil)
		return credentials + rest, err
	case strings.HasPrefix(dsn, "{"):
		return replace(dsn, nil)
	}
	quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`, ` `, `\ `)
	return replace(dsn, quoted.Replace)
}

// replace resolves placeholders. Those that are unknown or empty are errors.
func replace(text string, escape func(string) string) (string, error) {
	r := caddy.NewReplacer()
	if _, err := r.ReplaceOrErr(text, true, true); err != nil {
		return "", err
	}
	return r.ReplaceFunc(text, func(_ string, value any) (any, error) {
		if escape == nil {
			return value, nil
		}
		return escape(caddy.ToString(value)), nil
	})
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
		var to *string
		switch option {
		case "dsn":
			to = dsn
		case "schema":
			to = schema
		default:
			return d.Errf("unrecognized option '%s'; it knows dsn and schema", option)
		}
		if *to != "" {
			return d.Errf("%s is given twice", option)
		}
		if !d.AllArgs(to) {
			return d.Errf("%s takes exactly one value", option)
		}
	}
	if *dsn == "" {
		return d.Err("the DSN of the database is missing, such as postgres://usher:{env.PGPASSWORD}@db:5432/app")
	}
	return nil
}

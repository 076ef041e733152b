package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// DefaultSchema is where tables are, if the configuration names no other schema.
const DefaultSchema = "usher"

// connectTimeout bounds an attempt to connect to one host, if the DSN does not.
const connectTimeout = 5 * time.Second

// schemaMost is the length of the longest name that PostgreSQL does not cut off.
const schemaMost = 63

// Database is a schema of a database, and the way there.
type Database struct {
	config *pgx.ConnConfig
	schema string
	name   string
}

// Parse reads a DSN: a URL such as postgres://user:password@host:5432/database, or
// words such as host=... user=.... What it leaves out is taken from the environment,
// as psql does. An empty schema is DefaultSchema.
func Parse(dsn, schema string) (*Database, error) {
	if schema == "" {
		schema = DefaultSchema
	}
	switch {
	case dsn == "":
		return nil, errors.New("the DSN of the database is required, such as postgres://user:{env.PASSWORD}@host:5432/database")
	case len(schema) > schemaMost || strings.ContainsRune(schema, 0):
		return nil, fmt.Errorf("the name of a schema has 1 to %d bytes", schemaMost)
	}
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		// Its error may hold a part of the DSN, and so of the password.
		return nil, errors.New(refusal(err))
	}
	d := &Database{config: c, schema: schema}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout
	}
	if c.ValidateConnect == nil {
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "usher"
	}
	c.RuntimeParams["search_path"] = pgx.Identifier{schema}.Sanitize()
	hosts := []string{address(c.Host, c.Port)}
	for _, f := range c.Fallbacks {
		if a := address(f.Host, f.Port); a != hosts[len(hosts)-1] {
			hosts = append(hosts, a)
		}
	}
	d.name = fmt.Sprintf("the schema %s of the PostgreSQL database %s at %s", schema, c.Database, strings.Join(hosts, ", "))
	return d, nil
}

// refusal says why a DSN was refused, without any part of it.
func refusal(err error) string {
	text := "this DSN cannot be read; give it as postgres://user:password@host:5432/database, with %xx for signs such as / and @ in the password, " +
		"or as host=... port=... user=... password=... dbname=..."
	parse, ok := errors.AsType[*pgconn.ParseConfigError](err)
	if !ok {
		return text
	}
	// The words of the client are compared, and never shown.
	words := strings.ReplaceAll(parse.Error(), parse.ConnString, "")
	for part, option := range map[string]string{
		"(sslmode is invalid)": "sslmode", ": invalid connect_timeout": "connect_timeout", ": invalid port": "port",
		"(unable to read CA file": "sslrootcert", "(unable to read cert": "sslcert", "(unable to read sslkey": "sslkey",
	} {
		if strings.Contains(words, part) {
			return "the DSN has a mistake in its " + option
		}
	}
	return text
}

func address(host string, port uint16) string {
	if strings.HasPrefix(host, "/") {
		return host
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// String names the database for people.
func (d *Database) String() string { return d.name }

// Schema is the name of the schema.
func (d *Database) Schema() string { return d.schema }

// Config is the configuration of a connection. It is a copy. Those who use it call
// Adjust on each new connection.
func (d *Database) Config() *pgx.ConnConfig { return d.config.Copy() }

// Adjust sets up a new connection.
func Adjust(ctx context.Context, c *pgx.Conn) error {
	// A commit is confirmed when it is on stable storage, or the server is told to
	// wait for more than that.
	_, err := c.Exec(ctx, `SELECT CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END`, pgx.QueryExecModeExec)
	return err
}

// Connect opens a connection.
func (d *Database) Connect(ctx context.Context) (*pgx.Conn, error) {
	c, err := pgx.ConnectConfig(ctx, d.Config())
	if err != nil {
		return nil, err
	}
	if err := Adjust(ctx, c); err != nil {
		Drop(c)
		return nil, err
	}
	return c, nil
}

// Drop closes a connection without a word to the server.
func Drop(c *pgx.Conn) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = c.Close(ctx)
}

package server_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/caddy-usher/usher/postgres/pgserver"
	"github.com/caddy-usher/usher/postgres/server"
)

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func make1(t testing.TB, d *server.Database, steps ...string) error {
	t.Helper()
	c, err := d.Connect(within(t))
	if err != nil {
		return err
	}
	defer server.Drop(c)
	return d.Make(within(t), c, server.Tables{Name: "test", Steps: steps})
}

func parsed(t testing.TB, dsn, schema string) *server.Database {
	t.Helper()
	d, err := server.Parse(dsn, schema)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestTablesAreMadeOnceAndUpgraded(t *testing.T) {
	s := pgserver.Start(t, pgserver.Options{})
	d := parsed(t, s.DSN(), "some schema")
	one, two := "CREATE TABLE a (b integer); INSERT INTO a VALUES (1)", "UPDATE a SET b = b + 1"
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := make1(t, d, one); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for range 4 {
		all.Go(func() {
			if err := make1(t, d, one, two); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	// A step that fails leaves nothing behind.
	if err := make1(t, d, one, two, two, "UPDATE a SET b = 'x'"); err == nil {
		t.Error("a step that fails is no error")
	}
	c, err := d.Connect(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Drop(c)
	b, rows := 0, 0
	if err := c.QueryRow(within(t), `SELECT max(b), count(*) FROM a`).Scan(&b, &rows); err != nil || b != 2 || rows != 1 {
		t.Errorf("there is %d in %d rows, error %v; want 2 in one", b, rows, err)
	}
	newer, ok := errors.AsType[*server.NewerError](make1(t, d, one))
	if !ok || newer.Found != 2 || newer.Know != 1 {
		t.Errorf("newer tables: error %v", newer)
	}
}

func TestRightsThatAreMissingAreNamed(t *testing.T) {
	s := pgserver.Start(t, pgserver.Options{})
	s.Exec(`CREATE ROLE "plain user" LOGIN PASSWORD 'x'`)
	s.Exec(`CREATE SCHEMA given AUTHORIZATION "plain user"`)
	dsn := "postgres://plain%20user:x@" + s.Address + "/postgres"
	err := make1(t, parsed(t, dsn, "wanted"), "CREATE TABLE a ()")
	if err == nil || !strings.Contains(err.Error(), `CREATE SCHEMA "wanted" AUTHORIZATION "plain user"`) {
		t.Errorf("error %v", err)
	}
	if err := make1(t, parsed(t, dsn, "given"), "CREATE TABLE a ()"); err != nil {
		t.Error(err)
	}
	// Those who have made nothing need no right to do so.
	s.Exec(`CREATE ROLE reader LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA given TO reader; GRANT SELECT ON given.usher_versions TO reader`)
	if err := make1(t, parsed(t, "postgres://reader:x@"+s.Address+"/postgres", "given"), "CREATE TABLE a ()"); err != nil {
		t.Error(err)
	}
	err = make1(t, parsed(t, "postgres://reader:wr0ng@"+s.Address+"/postgres", "given"), "")
	if err == nil || strings.Contains(err.Error(), "wr0ng") || !strings.Contains(err.Error(), "password authentication failed") {
		t.Errorf("a wrong password: error %v", err)
	}
}

func TestACommitIsConfirmedWhenItIsStored(t *testing.T) {
	s := pgserver.Start(t, pgserver.Options{Settings: []string{"synchronous_commit=off"}})
	show := func(dsn string) (on string) {
		c, err := parsed(t, dsn, "").Connect(within(t))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Drop(c)
		if err := c.QueryRow(within(t), `SHOW synchronous_commit`, pgx.QueryExecModeExec).Scan(&on); err != nil {
			t.Fatal(err)
		}
		return on
	}
	if on := show(s.DSN()); on != "on" {
		t.Errorf("synchronous_commit is %s, want on", on)
	}
	if on := show(s.DSN() + "?synchronous_commit=remote_apply"); on != "remote_apply" {
		t.Errorf("synchronous_commit is %s, want what the DSN says", on)
	}
}

func TestAServerThatTakesNoWritesIsLeftAlone(t *testing.T) {
	s := pgserver.Start(t, pgserver.Options{Settings: []string{"default_transaction_read_only=on"}})
	if c, err := parsed(t, s.DSN(), "").Connect(within(t)); err == nil {
		server.Drop(c)
		t.Error("it is used")
	}
}

// Package e2e tests the module for PostgreSQL from outside: real Caddys, real
// instances and a real server.
package e2e

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/postgres/pgserver"
	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/tasks"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "usher-postgres-bin-")
	if err != nil {
		log.Fatal(err)
	}
	program := filepath.Join(dir, "caddy")
	if out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, "../caddy").CombinedOutput(); err != nil {
		log.Fatalf("%v: %s", err, out)
	}
	os.Setenv("USHER_TEST_CADDY", program)
	// The harness builds the program of the instances from the main module.
	if err := os.Chdir("../.."); err != nil {
		log.Fatal(err)
	}
	harness.Main(run{m, dir})
}

// run removes the program after the tests.
type run struct {
	m   *testing.M
	dir string
}

func (r run) Run() int {
	code := r.m.Run()
	os.RemoveAll(r.dir)
	return code
}

// store returns the option store for a Caddy. The password is in its environment.
func store(db *pgserver.Server, c *harness.Caddy) string {
	c.Setenv("PGSECRET", pgserver.Password)
	port := db.Address[strings.LastIndex(db.Address, ":")+1:]
	return fmt.Sprintf("store postgres \"host=127.0.0.1 port=%s user='%s' password={env.PGSECRET} dbname=postgres sslmode=disable\"", port, pgserver.User)
}

// Tasks are handed in to three Caddys and executed by them, while Caddys and instances
// are killed, a Caddy stands still beyond its lease, and PostgreSQL crashes and is
// restarted.
//
//	go test ./e2e -v -timeout 60m -run SeveralCaddys -tasks.count 100000 -tasks.kills 20
func TestG15_SeveralCaddysLoseNoStoredRequest(t *testing.T) {
	db := pgserver.Start(t, pgserver.Options{})
	w := tasks.New(t, 3, func(c *harness.Caddy) string { return store(db, c) })
	again := func(end func()) func(int) {
		return func(int) {
			w.Trouble(func() {
				end()
				db.Start()
			})
		}
	}
	w.Run(
		tasks.Disturbance{Count: 1 + tasks.Kills()/10, Do: w.Freeze},
		tasks.Disturbance{Count: 1 + tasks.Kills()/5, Do: again(db.Stop)},
		tasks.Disturbance{Count: 1 + tasks.Kills()/10, Do: again(db.Shutdown)},
	)
	for _, c := range w.Caddys {
		if strings.Contains(c.RawLog(), pgserver.Password) || strings.Contains(c.RawLog(), "s3cret") {
			t.Errorf("the log of a Caddy has the password")
		}
	}
}

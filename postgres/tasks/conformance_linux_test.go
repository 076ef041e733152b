package tasks

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/async/storetest"
	"github.com/caddy-usher/usher/postgres/pgserver"
	"github.com/caddy-usher/usher/postgres/server"
)

// lease is short, so that tests need not wait long.
const lease = 300 * time.Millisecond

// opened opens the store at a place, which is a DSN and the name of a schema.
func opened(place, key string) (async.Store, error) {
	dsn, schema, _ := strings.Cut(place, " ")
	d, err := server.Parse(dsn, schema)
	if err != nil {
		return nil, err
	}
	s, err := Open(d, Options{Key: key, Lease: lease})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func TestConforms(t *testing.T) { conforms(t, "") }

func TestConformsEncrypted(t *testing.T) { conforms(t, "a key of the operator") }

func conforms(t *testing.T, key string) {
	t.Parallel() // most of it is waiting
	var (
		db     *pgserver.Server // none in the processes that the suite starts
		places atomic.Int64
	)
	storetest.Run(t, func(*testing.T) storetest.Subject {
		return storetest.Subject{
			Place: func(testing.TB) string {
				if db == nil {
					db = pgserver.Start(t, pgserver.Options{})
				}
				return fmt.Sprintf("%s s%d", db.DSN(), places.Add(1))
			},
			Open:   func(place string) (async.Store, error) { return opened(place, key) },
			Shared: true,
			Lease:  3 * lease,
			MakeNewer: func(_ testing.TB, place string) {
				_, schema, _ := strings.Cut(place, " ")
				db.Exec(fmt.Sprintf(`UPDATE %s.usher_versions SET version = version + 1`, schema))
			},
		}
	})
}

package file

import (
	"encoding/binary"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/async/storetest"
)

func TestConforms(t *testing.T) { conforms(t, "") }

func TestConformsEncrypted(t *testing.T) { conforms(t, "a key of the operator") }

func conforms(t *testing.T, key string) {
	storetest.Run(t, func(*testing.T) storetest.Subject {
		return storetest.Subject{
			Place: func(t testing.TB) string { return t.TempDir() },
			Open: func(place string) (async.Store, error) {
				return opened(Open(place, Options{Key: key}))
			},
			OpenAhead: func(place string, ahead time.Duration) (async.Store, error) {
				return opened(Open(place, Options{Key: key, Now: func() time.Time { return time.Now().Add(ahead) }}))
			},
			MakeNewer: makeNewer,
			FillDisk:  fillDisk,
		}
	})
}

// opened is s as an async.Store: nil if there is none.
func opened(s *Store, err error) (async.Store, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

func makeNewer(t testing.TB, place string) {
	db, err := bbolt.Open(filepath.Join(place, databaseName), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(t *bbolt.Tx) error {
		return t.Bucket(metaBucket).Put(versionKey, binary.BigEndian.AppendUint64(nil, version+1))
	})
	if err != nil {
		t.Fatal(err)
	}
}

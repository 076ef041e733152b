package file

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/caddy-usher/usher/async"
)

// version is that of the layout of the store. A store of a lower version would be
// converted when it is opened; there is none.
const version = 1

// inlineMost is the size in bytes of the largest body that is kept in the database.
const inlineMost = 64 << 10

// Names in the directory of the store.
const (
	databaseName = "tasks.db"
	bodiesName   = "bodies"
)

// The buckets, with their keys and values. A place is the position of a task in the
// order of all tasks. It is unique and 8 bytes long, as is a number.
var (
	metaBucket      = []byte("meta")      // see below
	tasksBucket     = []byte("tasks")     // number: record
	bodiesBucket    = []byte("bodies")    // number, part: body
	statesBucket    = []byte("states")    // queue, state, number: nothing
	readyBucket     = []byte("ready")     // queue, exclusive, place: number. They can begin
	delayedBucket   = []byte("delayed")   // queue, due, place: number. They can begin later
	groupsBucket    = []byte("groups")    // queue, group, place: number. The first is ready, delayed or running
	expiryBucket    = []byte("expiry")    // time, number: nothing. They have not begun
	endsBucket      = []byte("ends")      // time, number: nothing. They are to be removed then
	runningBucket   = []byte("running")   // number: nothing
	exclusiveBucket = []byte("exclusive") // exclusive name: number of the one that runs
	keysBucket      = []byte("keys")      // hash of queue and key: number
	filesBucket     = []byte("files")     // name: nothing
	countsBucket    = []byte("counts")    // queue: counts
)

var buckets = [][]byte{
	metaBucket, tasksBucket, bodiesBucket, statesBucket, readyBucket, delayedBucket, groupsBucket, expiryBucket,
	endsBucket, runningBucket, exclusiveBucket, keysBucket, filesBucket, countsBucket,
}

// The keys of metaBucket.
var (
	versionKey = []byte("version")
	timeKey    = []byte("time")  // the latest time of the store, in ns since 1970
	secretKey  = []byte("ids")   // hides the numbers in ids
	saltKey    = []byte("salt")  // of the key of encryption; missing in a plain store
	proofKey   = []byte("proof") // something encrypted, to tell a wrong key
)

// ErrWrongKey is returned by Open for a key with which the store was not encrypted.
var ErrWrongKey = errors.New("the key of encryption is wrong: give the one with which the store was made, or another directory")

// Options are those of Open.
type Options struct {
	// Key encrypts what lies on the disk, if it is not empty. It must be the
	// same each time.
	Key string

	// Now is the system's clock, read when the store is opened. Default: time.Now.
	Now func() time.Time
}

// Store is an open store. It implements async.Store.
type Store struct {
	dir    string
	cipher *cipherKeys // nil: plain
	secret []byte      // of ids
	boot   string      // names this opening

	// mu is held by all that use the database, and alone by what replaces it.
	mu     sync.RWMutex
	db     *bbolt.DB // nil once it is closed
	broken error     // why nothing may be written any more

	// Writers. turn is held by the one that writes.
	turn  chan struct{}
	joins sync.Mutex
	batch *batch // which the next writer joins; nil if there is none

	// The time of the store is base, and what has passed since opened.
	base   time.Time
	opened time.Time

	// What this process has claimed, by id, and how far that is.
	ownMu sync.Mutex
	own   map[string]*ownAttempt

	recovered atomic.Bool // there are no attempts of earlier openings

	compactFrom int64     // compactFrom, lower in tests
	compacted   time.Time // when it was tried last

	async.Watchers
}

type ownAttempt struct {
	attempt    int
	owner      string
	progress   int
	cancelling bool
}

var _ async.Store = (*Store)(nil)

// lockTimeout is how long Open waits for another process to give up the store. A
// Caddy that is replaced by another one ends in that time.
const lockTimeout = 2 * time.Second

// Open opens the store in a directory, and makes both if they are missing.
func Open(dir string, o Options) (*Store, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := makeDirs(dir); err != nil {
		return nil, fmt.Errorf("the store of tasks cannot be made: %w", err)
	}
	s := &Store{
		dir: dir, boot: rand.Text(), compactFrom: compactFrom, turn: make(chan struct{}, 1),
		own: make(map[string]*ownAttempt),
	}
	if err := s.open(o); err != nil {
		if s.db != nil {
			_ = s.db.Close()
		}
		return nil, err
	}
	return s, nil
}

// makeDirs makes the directories, so that they survive a power loss.
func makeDirs(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, bodiesName), 0o700); err != nil {
		return err
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	// A process that was killed may have made any of them, and synced none. What may
	// not be read here was not made by one like this.
	for parent := filepath.Dir(path); parent != path; path, parent = parent, filepath.Dir(parent) {
		if err := syncDir(parent); errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EINVAL) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) open(o Options) error {
	db, err := s.lock()
	if err != nil {
		return err
	}
	s.db = db
	if err := s.prepare(o.Key); err != nil {
		return err
	}
	s.opened = time.Now()
	s.base = o.Now().Round(0)
	return s.view(func(t *tx) error {
		if last := t.Bucket(metaBucket).Get(timeKey); last != nil {
			if at := fromStamp(binary.BigEndian.Uint64(last)); at.After(s.base) {
				s.base = at
			}
		}
		return s.removeStrayFiles(t)
	})
}

// lock opens the database for this process alone.
func (s *Store) lock() (*bbolt.DB, error) {
	path := filepath.Join(s.dir, databaseName)
	for {
		db, file, err := openDatabase(path)
		if errors.Is(err, berrors.ErrTimeout) {
			return nil, fmt.Errorf("%s is used by another process: a store in files belongs to one Caddy. Give this one another directory, or use a store for several Caddys", s)
		}
		if err != nil {
			return nil, fmt.Errorf("%s cannot be opened: %w", s, err)
		}
		named, err := os.Stat(path)
		if err == nil && os.SameFile(file, named) {
			_ = os.Remove(filepath.Join(s.dir, compactedName)) // of an attempt that was cut off
			return db, nil
		}
		// The process that had the lock before has put another file in its place.
		_ = db.Close()
		if err != nil {
			return nil, fmt.Errorf("%s cannot be opened: %w", s, err)
		}
	}
}

// openDatabase opens the file and locks it.
func openDatabase(path string) (db *bbolt.DB, file os.FileInfo, err error) {
	var opened *os.File
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			var err error
			opened, err = os.OpenFile(name, flag, mode)
			return opened, err
		},
	})
	if err != nil {
		return nil, nil, err
	}
	if file, err = opened.Stat(); err == nil {
		// A new file is found after a power loss, too.
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		_ = db.Close()
		return nil, nil, err
	}
	return db, file, nil
}

// prepare makes the buckets of a new store, and checks those of another one.
func (s *Store) prepare(key string) error {
	fresh := false
	err := s.db.View(func(t *bbolt.Tx) error {
		m := t.Bucket(metaBucket)
		if m == nil {
			fresh = true
			return nil
		}
		return s.check(m, key)
	})
	if err != nil || !fresh {
		return err
	}
	return s.db.Update(func(t *bbolt.Tx) error { return s.initialize(t, key) })
}

func (s *Store) check(m *bbolt.Bucket, key string) error {
	if v := m.Get(versionKey); len(v) != 8 {
		return fmt.Errorf("%s is damaged: it has no version", s)
	} else if found := int(binary.BigEndian.Uint64(v)); found > version {
		return &async.NewerError{Store: s.String(), Found: found, Know: version}
	}
	s.secret = bytes.Clone(m.Get(secretKey))
	salt := m.Get(saltKey)
	switch {
	case salt == nil && key != "":
		return fmt.Errorf("%s is not encrypted, and there is a key: a store is encrypted when it is made. Give another directory, or no key", s)
	case salt != nil && key == "":
		return fmt.Errorf("%s is encrypted, and there is no key: give the one with which it was made", s)
	case salt == nil:
		return nil
	}
	c, err := newCipher(key, salt)
	if err != nil {
		return err
	}
	if _, err := c.open(m.Get(proofKey), proofKey); err != nil {
		return fmt.Errorf("%s: %w", s, ErrWrongKey)
	}
	s.cipher = c
	return nil
}

func (s *Store) initialize(t *bbolt.Tx, key string) error {
	for _, b := range buckets {
		if _, err := t.CreateBucketIfNotExists(b); err != nil {
			return err
		}
	}
	m := t.Bucket(metaBucket)
	s.secret = make([]byte, 32)
	rand.Read(s.secret)
	values := map[string][]byte{string(versionKey): number(version), string(secretKey): s.secret}
	if key != "" {
		salt := make([]byte, 32)
		rand.Read(salt)
		c, err := newCipher(key, salt)
		if err != nil {
			return err
		}
		s.cipher = c
		values[string(saltKey)], values[string(proofKey)] = salt, c.seal([]byte("usher"), proofKey)
	}
	for k, v := range values {
		if err := m.Put([]byte(k), v); err != nil {
			return err
		}
	}
	return nil
}

// now is the time of the store.
func (s *Store) now() time.Time { return s.base.Add(time.Since(s.opened)) }

// String implements async.Store.
func (s *Store) String() string { return "the store of tasks in " + s.dir }

// Close implements async.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db == nil {
		return nil
	}
	err := s.db.Close()
	s.db = nil
	return err
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

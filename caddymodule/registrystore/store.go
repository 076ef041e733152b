// Package registrystore keeps the registry's records in Caddy's storage.
//
// It owns the keys below usher/registry: a record of each service, and the changes made
// last, so that other Caddys with the same storage read only those.
//
// It promises what registry.Store says, as far as the storage does: that Store replaces
// a value as a whole and on stable storage, and that one process at a time has a lock.
// The change is noted before the record is written. So a process that is killed between
// the two leaves a note too many, and never one too few. Others read the record of the
// last note again until its writer must have ended.
//
// It never interprets a record.
package registrystore

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/caddy-usher/usher/registry"
)

const (
	servicesKey = "usher/registry/services"
	changesKey  = "usher/registry/changes.json"
	lockName    = "usher_registry"
	suffix      = ".json"

	changesVersion = 1

	// retryPause is how long a lock that failed is left alone.
	retryPause = 100 * time.Millisecond
)

// limits bound what a store does. Tests have smaller ones.
type limits struct {
	// kept is how many changes a reader may be behind without reading all records.
	kept int

	// lock is how long one try to get the lock lasts. The file storage takes a lock from a
	// process that was killed after 10 s, and looks each second.
	lock time.Duration

	// abandoned is how long the lock must have been refused, without a change by any
	// process, before it is taken by force. In the file storage, a process that has used
	// a lock keeps the next one fresh for its owner, even if that was killed.
	abandoned time.Duration

	// write is how long the storage has for a change, and to give the lock back. It is
	// shorter than settled.
	write time.Duration

	// settled is after how long a change that was noted is written, or never will be.
	settled time.Duration
}

// store is a registry.Store in a certmagic.Storage.
type store struct {
	storage func() (certmagic.Storage, error)
	limits  limits
	self    string        // identifies what this store writes
	turn    chan struct{} // held with the lock

	mu      sync.Mutex
	held    *changes  // what the lock's holder knows; nil: not known, or not locked
	locked  bool      // this store has the lock
	had     string    // identity of the storage in which changes were seen last
	last    int64     // the number of the last change that was seen
	seen    time.Time // when it was first seen
	refused time.Time // since when the lock is refused without any change; zero: it is not
	asOf    int64     // the last change at that time
}

// New returns a store in the storage that the function returns. It is asked for each
// operation: the storage belongs to the configuration in force, and changes with it.
func New(storage func() (certmagic.Storage, error)) registry.Store {
	return newStore(storage, limits{kept: 1024, lock: 20 * time.Second, abandoned: 30 * time.Second, write: 20 * time.Second, settled: 30 * time.Second})
}

func newStore(storage func() (certmagic.Storage, error), l limits) *store {
	return &store{storage: storage, limits: l, self: rand.Text()[:10], turn: make(chan struct{}, 1)}
}

// changes are the changes that were made last.
type changes struct {
	Version int    `json:"version"`
	ID      string `json:"id"`   // of all changes since there are any
	Number  int64  `json:"last"` // of the last one; they count from 1

	// The last ones, oldest first: the writer, a space, the name of the service.
	Recent []string `json:"recent"`

	missing bool // the storage has none
}

func (c *changes) position(number int64) registry.Position {
	return registry.Position(c.ID + " " + strconv.FormatInt(number, 10))
}

// since returns the number that a position has in c, or false if it has none.
func (c *changes) since(p registry.Position) (int64, bool) {
	id, number, _ := strings.Cut(string(p), " ")
	n, err := strconv.ParseInt(number, 10, 64)
	return n, err == nil && id == c.ID && n <= c.Number && n >= c.Number-int64(len(c.Recent))
}

// writer returns who made the last change.
func (c *changes) writer() string {
	if len(c.Recent) == 0 {
		return ""
	}
	writer, _, _ := strings.Cut(c.Recent[len(c.Recent)-1], " ")
	return writer
}

// readChanges reads the changes from the storage. There may be none.
func readChanges(ctx context.Context, storage certmagic.Storage) (*changes, error) {
	b, err := storage.Load(ctx, changesKey)
	if errors.Is(err, fs.ErrNotExist) {
		return &changes{Version: changesVersion, missing: true}, nil
	}
	if err != nil {
		return nil, err
	}
	c := new(changes)
	if json.Unmarshal(b, c) != nil {
		// Without it, readers read all records, and the next change begins a new one.
		return &changes{Version: changesVersion}, nil
	}
	if c.Version > changesVersion {
		return nil, fmt.Errorf("%s was written by a newer Usher (version %d, this one knows %d): run that one", changesKey, c.Version, changesVersion)
	}
	return c, nil
}

func serviceKey(name string) (string, error) {
	if err := registry.CheckName(name); err != nil {
		return "", err
	}
	return path.Join(servicesKey, name+suffix), nil
}

func (s *store) List(ctx context.Context) ([]string, error) {
	storage, err := s.storage()
	if err != nil {
		return nil, err
	}
	keys, err := storage.List(ctx, servicesKey, false)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names := make([]string, 0, len(keys))
	for _, key := range keys {
		// A process that was killed may have left files with other names.
		if name, ok := strings.CutSuffix(path.Base(key), suffix); ok && registry.CheckName(name) == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

func (s *store) Load(ctx context.Context, name string) ([]byte, error) {
	key, err := serviceKey(name)
	if err != nil {
		return nil, err
	}
	storage, err := s.storage()
	if err != nil {
		return nil, err
	}
	b, err := storage.Load(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", registry.ErrNotStored, err)
	}
	return b, err
}

func (s *store) Put(ctx context.Context, name string, record []byte) error {
	return s.write(ctx, name, func(ctx context.Context, storage certmagic.Storage, key string) error {
		return storage.Store(ctx, key, record)
	})
}

func (s *store) Remove(ctx context.Context, name string) error {
	return s.write(ctx, name, func(ctx context.Context, storage certmagic.Storage, key string) error {
		if err := storage.Delete(ctx, key); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// write notes a change, and makes it.
func (s *store) write(ctx context.Context, name string, do func(ctx context.Context, storage certmagic.Storage, key string) error) error {
	key, err := serviceKey(name)
	if err != nil {
		return err
	}
	// Others count on it that a change is written soon after it was noted, and wait for the
	// lock.
	ctx, cancel := context.WithTimeout(ctx, s.limits.write)
	defer cancel()
	storage, err := s.storage()
	if err != nil {
		return err
	}
	s.mu.Lock()
	known := s.held
	s.held = nil
	s.mu.Unlock()
	if known == nil {
		if known, err = readChanges(ctx, storage); err != nil {
			return err
		}
	}
	next := &changes{Version: changesVersion, ID: known.ID, Number: known.Number + 1}
	if next.ID == "" {
		next.ID = rand.Text()[:10]
	}
	next.Recent = append(slices.Clone(known.Recent[max(0, len(known.Recent)-s.limits.kept+1):]), s.self+" "+name)
	b, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := storage.Store(ctx, changesKey, b); err != nil {
		return err
	}
	s.mu.Lock()
	s.had = identity(storage)
	s.mu.Unlock()
	if err := do(ctx, storage, key); err != nil {
		return err
	}
	s.hold(next)
	return nil
}

// hold keeps what the lock's holder knows.
func (s *store) hold(c *changes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locked {
		s.held = c
	}
}

func (s *store) Changes(ctx context.Context, since registry.Position) (registry.Changes, error) {
	storage, err := s.storage()
	if err != nil {
		return registry.Changes{}, err
	}
	c, err := readChanges(ctx, storage)
	if err != nil {
		return registry.Changes{}, err
	}
	if s.lost(storage, c) {
		return registry.Changes{}, errLost
	}
	s.hold(c)
	found := registry.Changes{Next: c.position(s.followed(c))}
	from, ok := c.since(since)
	if !ok {
		found.All = true
		return found, nil
	}
	for _, change := range c.Recent[len(c.Recent)-int(c.Number-from):] {
		writer, name, _ := strings.Cut(change, " ")
		if writer != s.self && !slices.Contains(found.Names, name) {
			found.Names = append(found.Names, name)
		}
	}
	return found, nil
}

// errLost says that a storage has nothing any more of what it had.
var errLost = fmt.Errorf("%s is gone from the storage, and with it maybe all services that were made at run time: see that the storage is there, mounted for instance; those that are known are served on. If it was emptied on purpose, restart Caddy", changesKey)

// lost says whether a storage that had changes has none any more: a directory that is
// not mounted is empty, and that says of no service that it was deleted.
func (s *store) lost(storage certmagic.Storage, c *changes) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.missing {
		return s.had != "" && s.had == identity(storage)
	}
	s.had = identity(storage)
	return false
}

// identity tells storages apart. A reload makes a new value for the same one.
func identity(storage certmagic.Storage) string {
	if named, ok := storage.(fmt.Stringer); ok {
		return named.String()
	}
	return fmt.Sprintf("%T %p", storage, storage)
}

// followed returns up to which change a reader knows all: without the last one while its
// writer may still be at it. With the lock, no writer is.
func (s *store) followed(c *changes) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.Number != s.last {
		s.last, s.seen = c.Number, time.Now()
	}
	if s.locked || c.Number == 0 || c.writer() == s.self || time.Since(s.seen) >= s.limits.settled {
		return c.Number
	}
	return c.Number - 1
}

func (s *store) Lock(ctx context.Context) (unlock func(), err error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	storage, err := s.storage()
	if err == nil {
		err = s.lock(ctx, storage)
	}
	if err != nil {
		<-s.turn
		return nil, err
	}
	s.mu.Lock()
	s.locked, s.held, s.refused = true, nil, time.Time{}
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		s.locked, s.held = false, nil
		s.mu.Unlock()
		// If the storage does not give the lock back, the next try takes it by force.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.limits.write)
		defer cancel()
		_ = storage.Unlock(ctx, lockName)
		<-s.turn
	}, nil
}

// lock gets the storage's lock.
func (s *store) lock(ctx context.Context, storage certmagic.Storage) error {
	err := s.tryLock(ctx, storage)
	if err == nil || ctx.Err() != nil || !s.isAbandoned(ctx, storage) {
		return err
	}
	if err := storage.Unlock(ctx, lockName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the lock %s was abandoned, and cannot be taken: %w", lockName, err)
	}
	return s.tryLock(ctx, storage)
}

func (s *store) tryLock(ctx context.Context, storage certmagic.Storage) error {
	ctx, cancel := context.WithTimeout(ctx, s.limits.lock)
	defer cancel()
	for {
		err := storage.Lock(ctx, lockName)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("another Caddy has the lock %s: %w", lockName, err)
		}
		// The file storage fails if it reads the lock while another process writes it.
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return fmt.Errorf("the lock %s cannot be had: %w", lockName, err)
		}
	}
}

// isAbandoned says whether the lock was refused for so long, while nothing was written,
// that its holder must have ended.
func (s *store) isAbandoned(ctx context.Context, storage certmagic.Storage) bool {
	c, err := readChanges(ctx, storage)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused.IsZero() || c.Number != s.asOf {
		s.refused, s.asOf = time.Now(), c.Number
		return false
	}
	return time.Since(s.refused) >= s.limits.abandoned
}

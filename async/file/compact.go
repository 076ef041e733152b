package file

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
)

// A database never gets smaller by itself: what was removed leaves room for what
// comes. It is written anew when most of it is such room and little is stored, so
// that this takes a moment only.
const (
	compactFrom = 64 << 20 // bytes of the file
	compactMost = 32 << 20 // bytes that are stored
	compactPart = 4        // 1 of so many parts is stored, at most

	// compactPause is from one attempt to the next. It may fail if the disk is full.
	compactPause = time.Hour
)

const compactedName = databaseName + ".new"

// compact writes the database anew, if that is worth it. No call goes on meanwhile.
func (s *Store) compact() error {
	if !s.compactWorth() {
		return nil
	}
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db == nil || s.broken != nil || time.Since(s.compacted) < compactPause && !s.compacted.IsZero() {
		return nil
	}
	s.compacted = time.Now()
	if err := s.replace(); err != nil {
		_ = os.Remove(filepath.Join(s.dir, compactedName)) // or the next Open does
		return fmt.Errorf("%s cannot be made smaller, and stays as it is: %w", s, err)
	}
	return nil
}

func (s *Store) compactWorth() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.db == nil {
		return false
	}
	var size int64
	_ = s.db.View(func(t *bbolt.Tx) error { // it returns what the function does
		size = t.Size()
		return nil
	})
	stored := size - int64(s.db.Stats().FreePageN)*int64(s.db.Info().PageSize)
	return size >= s.compactFrom && stored <= compactMost && stored*compactPart <= size
}

// replace puts a copy of the database in its place. The copy is locked before it
// has the name, so no other process comes between.
func (s *Store) replace() error {
	path := filepath.Join(s.dir, compactedName)
	_ = os.Remove(path) // of an attempt that was cut off
	copied, _, err := openDatabase(path)
	if err != nil {
		return err
	}
	err = bbolt.Compact(copied, s.db, 1<<20)
	if err == nil {
		err = copied.Sync()
	}
	if err == nil {
		err = os.Rename(path, filepath.Join(s.dir, databaseName))
	}
	if err != nil {
		_ = copied.Close()
		return err
	}
	_ = s.db.Close() // it was only read since its last sync
	s.db = copied
	if err := syncDir(s.dir); err != nil {
		// After a power loss the name might lead to the old file.
		s.broken = &brokenError{s, err}
		return err
	}
	return nil
}

package process

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Caddys in several containers can share a data directory. One does not see the
// processes of the other, but each holds the lock on a file beside the records
// for as long as it lives: a lock that is free shows that its Caddy is gone.

const (
	ownerPrefix = "caddy-"
	ownerSuffix = ".lock"
	// lostGrace is for how long a record stays of which the Caddy is gone and
	// the processes cannot be seen. A Caddy that is started anew in the same
	// container finds it for so long.
	lostGrace = time.Hour
)

// ownerLocks are the locks of this Caddy, by directory of records.
type ownerLocks struct {
	mu    sync.Mutex
	files map[string]*os.File
}

var owners ownerLocks

// locksOf is where the lock files for a directory of records are.
func locksOf(dir string) string { return dir + "-locks" }

// lock returns the name of this Caddy's lock file for a directory of records,
// and makes it if it is not there yet.
func (o *ownerLocks) lock(dir string) (name string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if f := o.files[dir]; f != nil {
		return filepath.Base(f.Name()), nil
	}
	locks := locksOf(dir)
	if err := os.MkdirAll(locks, 0o700); err != nil {
		return "", err
	}
	// The lock keeps others from taking the file for one of a dead Caddy.
	unlock, err := lockRecords(locks)
	if err != nil {
		return "", err
	}
	defer unlock()
	name = ownerPrefix + newID() + ownerSuffix
	f, err := os.OpenFile(filepath.Join(locks, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		_ = os.Remove(f.Name())
		return "", os.NewSyscallError("flock", err)
	}
	if o.files == nil {
		o.files = make(map[string]*os.File)
	}
	o.files[dir] = f // open until Caddy ends
	return name, nil
}

// ownerGone tells whether the Caddy that made a lock file is certainly gone.
func ownerGone(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// lost tells whether a record of another container of this machine can go: its
// Caddy is gone and nothing of its instances runs, for all that can be known
// from here.
func (r *record) lost(dir string, own identity, now time.Time) bool {
	if r.Owner.BootID != own.BootID || r.Owner.Namespace == own.Namespace ||
		r.Lock == "" || filepath.Base(r.Lock) != r.Lock || !ownerGone(filepath.Join(locksOf(dir), r.Lock)) {
		return false
	}
	if r.Owner.PID == 1 {
		return true // with PID 1 everything ends that is in the container
	}
	if r.Lost.IsZero() {
		r.Lost = now
		// If that fails it is seen for the first time again.
		_ = r.rewrite(filepath.Join(dir, r.Instance+recordSuffix))
	}
	return now.Sub(r.Lost) >= lostGrace
}

// removeOwnerLocks removes the lock files of Caddys that are gone and that no
// record names.
func removeOwnerLocks(dir string) {
	unlock, err := lockRecords(locksOf(dir))
	if err != nil {
		return
	}
	defer unlock()
	locks, err := os.ReadDir(locksOf(dir))
	if err != nil {
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	named := make(map[string]bool)
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), recordSuffix) {
			r, err := readRecord(filepath.Join(dir, entry.Name()))
			if err != nil {
				return
			}
			named[r.Lock] = true
		}
	}
	for _, entry := range locks {
		name := entry.Name()
		if !strings.HasPrefix(name, ownerPrefix) || !strings.HasSuffix(name, ownerSuffix) || named[name] {
			continue
		}
		if path := filepath.Join(locksOf(dir), name); ownerGone(path) {
			_ = os.Remove(path)
		}
	}
}

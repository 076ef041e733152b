package file

import (
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// fillDisk lets no file of this process be longer than the database is now, and a bit.
// The kernel fails writes beyond that as it does those to a full disk.
func fillDisk(place string) (lift func() error, err error) {
	info, err := os.Stat(filepath.Join(place, databaseName))
	if err != nil {
		return nil, err
	}
	signal.Ignore(syscall.SIGXFSZ)
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		return nil, err
	}
	limit := syscall.Rlimit{Cur: uint64(info.Size()) + 1<<20, Max: before.Max}
	lift = func() error { return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before) }
	return lift, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit)
}

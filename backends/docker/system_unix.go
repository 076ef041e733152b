//go:build unix

package docker

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// fileGroup returns the group of a file.
func fileGroup(info fs.FileInfo) (int, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(st.Gid), true
}

// lock takes the file for this process, for as long as it is open. It returns
// false if another process has it.
func lock(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

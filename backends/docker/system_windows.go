package docker

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

// fileGroup returns the group of a file: here there is none.
func fileGroup(fs.FileInfo) (int, bool) { return 0, false }

// lock takes the file for this process, for as long as it is open. It returns
// false if another process has it.
func lock(f *os.File) (bool, error) {
	// The lock is beyond the text, which others may read.
	at := &windows.Overlapped{OffsetHigh: 1}
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, at)
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return false, nil
	}
	return err == nil, err
}

//go:build unix

package process

import (
	"os"

	"golang.org/x/sys/unix"
)

// checkExecutable tells whether path is a program that Caddy may execute.
func checkExecutable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return errIsDirectory
	}
	// access answers for root too: not if no x bit is set at all.
	if err := unix.Access(path, unix.X_OK); err != nil {
		return &os.PathError{Op: "access", Path: path, Err: err}
	}
	return nil
}

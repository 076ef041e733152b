//go:build unix

package process

import (
	"errors"
	"os"
	"syscall"
)

// readNow reads from a pipe without waiting; it returns 0 or less if nothing
// is there.
func readNow(f *os.File, buf []byte) int {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	_ = conn.Read(func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), buf)
		for errors.Is(err, syscall.EINTR) {
			n, err = syscall.Read(int(fd), buf)
		}
		return true
	})
	return n
}

package process

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// watched waits for a socket through inotify.
type watched struct {
	path string
	file *os.File
}

// watchFor begins to watch for a socket. It is called before the instance is
// started, so that nothing is missed.
func watchFor(path string) appearance {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		// fs.inotify.max_user_instances is small on many machines.
		return newSocketPoller(path)
	}
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		unix.Close(fd)
		return newSocketPoller(path)
	}
	return &watched{path, os.NewFile(uintptr(fd), "inotify")}
}

func (w *watched) wait() bool {
	events := make([]byte, 16*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for !isSocket(w.path) {
		// What happened does not matter, only that something did.
		if _, err := w.file.Read(events); err != nil {
			return false
		}
	}
	return true
}

func (w *watched) close() { w.file.Close() }

//go:build unix

package process

import (
	"os"
	"syscall"
)

// ownedByCaddy tells whether a file belongs to the user that Caddy runs as.
func ownedByCaddy(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// giveDir gives a directory to a user. Caddy's own group may still enter, so
// that Caddy reaches the socket where it is not root.
func giveDir(dir string, a *account) error {
	if err := os.Chown(dir, -1, os.Getegid()); err != nil {
		return err
	}
	// With the group's bit on the directory the socket is of Caddy's group
	// too, whatever group creates it. This comes first: later the directory is
	// not Caddy's any more, and it would take CAP_FOWNER.
	if err := os.Chmod(dir, 0o710|os.ModeSetgid); err != nil {
		return err
	}
	return os.Chown(dir, int(a.UID), -1)
}

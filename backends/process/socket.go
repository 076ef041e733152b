package process

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// maxSocketPath is how long the name of a unix socket may be on the systems
// that allow least, without the final zero (Linux: 107).
const maxSocketPath = 107

// socketName is the name of the socket in the directory of its instance.
const socketName = "s"

// socketBase returns the directory under which instances get theirs, and
// whether it was given to Caddy by a service manager.
func socketBase() (dir string, given bool) {
	// systemd separates several with colons.
	if first, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":"); first != "" {
		return first, true
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("usher-%d", os.Geteuid())), false
}

// socketPath returns where the socket of an instance is.
func socketPath(instance string) string {
	base, _ := socketBase()
	return filepath.Join(base, instance, socketName)
}

// checkSocketLength refuses a base directory whose name is too long.
func checkSocketLength() error {
	path := socketPath(strings.Repeat("x", idLength))
	if len(path) > maxSocketPath {
		return fmt.Errorf("listen unix: the sockets would be named like %s, which is longer than the %d bytes a socket's name may have; set RUNTIME_DIRECTORY or TMPDIR to a shorter directory", path, maxSocketPath)
	}
	return nil
}

// makeSocketDir makes the directory of an instance's socket, in which the user
// that it runs as may create it and that only this user and Caddy can enter.
func makeSocketDir(path string, a *account) *scaler.Failure {
	if err := checkSocketLength(); err != nil {
		return &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "the name of the socket is too long", Err: err}
	}
	base, given := socketBase()
	if !given {
		if err := makeSocketBase(base); err != nil {
			return socketFailure(base, err)
		}
	}
	dir := filepath.Dir(path)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return socketFailure(dir, err)
	}
	if a != nil && !a.Own {
		if err := giveDir(dir, a); err != nil {
			os.Remove(dir)
			return socketFailure(dir, err)
		}
	}
	if err := removeStale(path); err != nil {
		return socketFailure(path, err)
	}
	return nil
}

// makeSocketBase makes the directory under the temporary one, or makes sure
// that the one which is there is Caddy's own: anybody may create names there.
func makeSocketBase(base string) error {
	err := os.Mkdir(base, 0o711)
	switch {
	case err == nil:
		// The umask may have taken away what other users need to pass through.
		return os.Chmod(base, 0o711)
	case !errors.Is(err, os.ErrExist):
		return err
	}
	info, err := os.Lstat(base)
	if err != nil {
		return err
	}
	if !info.IsDir() || !ownedByCaddy(info) {
		return fmt.Errorf("%s belongs to somebody else: remove it, or set RUNTIME_DIRECTORY", base)
	}
	if info.Mode().Perm() != 0o711 {
		return os.Chmod(base, 0o711)
	}
	return nil
}

func socketFailure(path string, err error) *scaler.Failure {
	f := &scaler.Failure{
		Reason: scaler.ReasonForbidden, Short: "no place for the socket",
		Detail: "the socket's directory " + path + " cannot be set up", Err: err,
	}
	if q := quotaFailure(err); q != nil {
		return q
	}
	return f
}

// removeStale removes the file of a socket that nobody serves any more. One
// that answers belongs to somebody.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return nil //nolint:nilerr // nothing there is what is wanted
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s is in the way, and is no socket", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s is served by another program", path)
	}
	// Any other error, a full queue for one, is no proof.
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s may be served by another program: %w", path, err)
	}
	return os.Remove(path)
}

// removeSocket removes a socket that is no longer served, with the directory
// that was made for it.
func removeSocket(path string) {
	if removeStale(path) != nil {
		return
	}
	// Fails, rightly, when the instance left something else there.
	_ = os.Remove(filepath.Dir(path))
}

// isSocket tells whether the file of a socket has appeared.
func isSocket(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&os.ModeSocket != 0
}

// appearance waits for the file of a socket to appear.
type appearance interface {
	// wait returns true when it has appeared, and false after close.
	wait() bool
	close()
}

// The pauses of a wait that cannot be told and has to look.
const (
	firstLook   = time.Millisecond
	longestLook = 20 * time.Millisecond
)

// lookout looks for a socket again and again, where nothing tells when it
// appears.
type lookout struct {
	path   string
	closed chan struct{}
}

func newLookout(path string) *lookout { return &lookout{path, make(chan struct{})} }

func (l *lookout) wait() bool {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for next := firstLook; ; next = min(2*next, longestLook) {
		select {
		case <-l.closed:
			return false
		case <-pause.C:
		}
		if isSocket(l.path) {
			return true
		}
		pause.Reset(next)
	}
}

func (l *lookout) close() { close(l.closed) }

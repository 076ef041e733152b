package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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

// socketPath returns where the socket of an instance is, below a base.
func socketPath(base, instance string) string {
	return filepath.Join(base, instance, socketName)
}

// checkSocketLength refuses a base directory whose name is too long.
func checkSocketLength(base string) error {
	path := socketPath(base, strings.Repeat("x", idLength))
	if len(path) > maxSocketPath {
		return fmt.Errorf("listen unix: the sockets would be named like %s, which is longer than the %d bytes a socket's name may have; set RUNTIME_DIRECTORY or TMPDIR to a shorter directory", path, maxSocketPath)
	}
	return nil
}

// errForeignBase tells that another user has the name of the base directory.
var errForeignBase = errors.New("it belongs to another user")

// readyBase returns the directory under which instances get theirs, and makes
// it if that is up to Caddy. Everybody may create names in the temporary
// directory: if another user has taken that of the base, one with a random name
// stands in for it, and instead tells why.
func readyBase() (base string, f *scaler.Failure, instead error) {
	base, given := socketBase()
	if !given {
		err := makeSocketBase(base)
		if errors.Is(err, errForeignBase) {
			instead = err
			base, err = otherBase(base)
		}
		if err != nil {
			return "", socketFailure(base, err), nil
		}
	}
	if err := checkSocketLength(base); err != nil {
		return "", &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "the name of the socket is too long", Err: err}, nil
	}
	return base, nil, instead
}

// otherBase returns a directory of Caddy's own that stands in for base: one that
// an earlier Caddy has made, or a new one.
func otherBase(base string) (string, error) {
	made, err := filepath.Glob(base + "-*")
	if err != nil {
		return base, err
	}
	for _, dir := range made {
		if makeSocketBase(dir) == nil {
			return dir, nil
		}
	}
	dir, err := os.MkdirTemp(filepath.Dir(base), filepath.Base(base)+"-*")
	if err != nil {
		return base, err
	}
	return dir, makeSocketBase(dir)
}

// makeSocketDir makes the directory of an instance's socket, in which the user
// that it runs as may create it and that only this user and Caddy can enter.
func makeSocketDir(path string, a *account) *scaler.Failure {
	dir := filepath.Dir(path)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return socketFailure(dir, err)
	}
	if a != nil && !a.Own {
		if err := giveDir(dir, a); err != nil {
			os.Remove(dir)
			f := socketFailure(dir, err)
			if errors.Is(err, fs.ErrPermission) {
				f.ForGood = true
				f.Detail = "the socket's directory " + dir + " cannot be given to user " + a.Name + ": run Caddy as root, give it the capability CAP_CHOWN, or use listen tcp"
			}
			return f
		}
	}
	return nil
}

// makeSocketBase makes the directory under the temporary one, or makes sure
// that the one which is there is Caddy's own: any user may create names there.
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
		return fmt.Errorf("%s cannot hold the sockets: %w; remove it, or set RUNTIME_DIRECTORY", base, errForeignBase)
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

// removeSocket removes the directory of an ended instance: the socket and
// everything else in it. It follows no link and connects to nothing.
func removeSocket(path string) error {
	return os.RemoveAll(filepath.Dir(path))
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

// The pauses between the looks of a socketPoller.
const (
	firstLook   = time.Millisecond
	longestLook = 20 * time.Millisecond
)

// socketPoller looks for a socket repeatedly, where the system does not report
// new files.
type socketPoller struct {
	path   string
	closed chan struct{}
}

func newSocketPoller(path string) *socketPoller { return &socketPoller{path, make(chan struct{})} }

func (p *socketPoller) wait() bool {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for next := firstLook; ; next = min(2*next, longestLook) {
		select {
		case <-p.closed:
			return false
		case <-pause.C:
		}
		if isSocket(p.path) {
			return true
		}
		pause.Reset(next)
	}
}

func (p *socketPoller) close() { close(p.closed) }

package process

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// While Caddy runs, it cuts the output files of kept instances. After it was
// stopped or killed, a small shell script does that: a limit on the size of
// files would hold for all files of the program, and a pipe without a reader
// ends or blocks it. The script waits at a pipe that only Caddy holds, and
// begins when Caddy is gone. It empties each file that is larger than the limit,
// once a second, and ends when there are no files, or when the next Caddy has a
// script of its own.

// trimLimit is how large such a file may be. It is more than what a Caddy that
// runs leaves, so the two do not meet.
const trimLimit = 2 * maxOutputFile

// trimMark is the file that names the script which is in charge.
const trimMark = "trim"

// trimScript gets a directory, its own name, and the limit in blocks of 512
// bytes. The pipe is file descriptor 3: a shell takes the standard input away
// from what it puts into the background. That it goes there makes it a child of
// init, which Caddy need not reap.
const trimScript = `(
	while read -r _; do :; done
	while :; do
		set -- "$dir"/*.stdout
		[ -e "$1" ] || exit 0
		owner=
		read -r owner <"$dir/trim"
		[ -z "$owner" ] || [ "$owner" = "$name" ] || exit 0
		find "$dir" -type f \( -name '*.stdout' -o -name '*.stderr' \) -size +"$blocks" | while IFS= read -r file; do
			: >"$file"
		done
		sleep 1
	done
) <&3 3<&- &`

// trimmers are the scripts of this Caddy, by directory.
var trimmers = struct {
	sync.Mutex
	byDir map[string]*trimmer
}{byDir: make(map[string]*trimmer)}

type trimmer struct {
	users int
	life  *os.File // the end of the pipe that only this Caddy holds; nil if the script was not started
}

// joinTrimmer counts one kept instance more in dir. It returns the script if the
// caller has to start it.
func joinTrimmer(dir string) *trimmer {
	trimmers.Lock()
	defer trimmers.Unlock()
	if t := trimmers.byDir[dir]; t != nil {
		t.users++
		return nil
	}
	t := &trimmer{users: 1}
	trimmers.byDir[dir] = t
	return t
}

// start starts the script, unless nothing needs it any more.
func (t *trimmer) start(dir string) error {
	trimmers.Lock()
	defer trimmers.Unlock()
	if trimmers.byDir[dir] != t {
		return nil
	}
	var err error
	t.life, err = startTrimmer(dir, trimLimit)
	return err
}

// trimNoMore tells that a kept instance has ended.
func trimNoMore(dir string) {
	trimmers.Lock()
	defer trimmers.Unlock()
	t := trimmers.byDir[dir]
	if t == nil {
		return
	}
	if t.users--; t.users > 0 {
		return
	}
	delete(trimmers.byDir, dir)
	if t.life != nil {
		t.life.Close()
		_ = os.Remove(filepath.Join(dir, trimMark))
	}
}

// removeTrimMark removes what the script of an earlier Caddy left, if there is
// no output that it could bound.
func removeTrimMark(dir string) {
	trimmers.Lock()
	defer trimmers.Unlock()
	if files, err := filepath.Glob(filepath.Join(dir, "*.stdout")); err == nil && len(files) == 0 && trimmers.byDir[dir] == nil {
		_ = os.Remove(filepath.Join(dir, trimMark))
	}
}

// startTrimmer starts the script. It begins to work when life is closed.
func startTrimmer(dir string, limit int64) (life *os.File, err error) {
	name := newID()
	// On a full disk this fails. The script of an earlier Caddy goes on then,
	// beside this one, which does no harm.
	_ = os.WriteFile(filepath.Join(dir, trimMark), []byte(name+"\n"), 0o600)
	read, life, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		life.Close()
		return nil, err
	}
	defer null.Close()
	// What Caddy itself has inherited, the listeners of socket activation, must
	// not stay open after it.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	process, err := os.StartProcess(passShell, []string{"sh", "-c", trimScript}, &os.ProcAttr{
		Dir: "/",
		Env: []string{
			"PATH=" + defaultPath(), "dir=" + dir, "name=" + name, fmt.Sprintf("blocks=%d", limit/512),
		},
		Files: []*os.File{null, null, null, read},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		life.Close()
		return nil, err
	}
	// It has only to put the rest into the background.
	state, err := process.Wait()
	if err == nil && !state.Success() {
		err = fmt.Errorf("%s: %s", passShell, state)
	}
	if err != nil {
		life.Close()
		return nil, err
	}
	return life, nil
}

// boundOutput keeps the output of a kept instance bounded after this Caddy.
// Each call needs a call of trimNoMore, unless Caddy ends. The instance does not
// wait for the script.
func (r *runner) boundOutput() {
	if os.Getpid() == 1 {
		// The container ends with this Caddy, and everything in it.
		return
	}
	dir := recordDir(r.env.DataDir)
	t := joinTrimmer(dir)
	if t == nil {
		return
	}
	r.life.Go(func() {
		if err := t.start(dir); err != nil {
			r.env.Logger().Warn("nothing bounds what kept instances write while no Caddy runs: a shell script does that, and it cannot be started",
				slog.Any("error", err))
		}
	})
}

package process

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// record is what Usher writes down about a process, so that a later Caddy can
// adopt or end it. A first version without the process is written before the
// fork: whenever a kill comes, USHER_INSTANCE in the environment of the process
// is the name of a record.
type record struct {
	Instance    string    `json:"instance"`
	Service     string    `json:"service"`
	Revision    string    `json:"revision"`
	Fingerprint string    `json:"fingerprint"`
	Network     string    `json:"network"`
	Address     string    `json:"address"`
	Since       time.Time `json:"since"`

	// PID is 0 before the fork.
	PID       int    `json:"pid,omitempty"`
	StartTime uint64 `json:"start_time,omitempty"`

	StopSignal int    `json:"stop_signal"`
	Keep       bool   `json:"keep,omitempty"`
	Socket     string `json:"socket,omitempty"`

	// Ready says that a kept instance was ready at some time.
	Ready bool `json:"ready,omitempty"`

	// Output are the files of a kept instance's output.
	Output []string `json:"output,omitempty"`

	// Lock is the file that the owner has locked for as long as it lives.
	Lock string `json:"lock,omitempty"`

	// Lost is when it was seen first that the owner is gone, from where its
	// processes cannot be seen.
	Lost time.Time `json:"lost,omitzero"`

	// Owner is the Caddy that started the instance, or adopted it. It also says
	// on which boot and in which namespace the pids are meant.
	Owner identity `json:"owner"`

	file *os.File
	size int
}

const (
	recordSuffix = ".json"
	draftSuffix  = ".new"
)

// recordRoom is left at the end of a record for the process, which is known
// only later.
const recordRoom = 128

// create puts a record into place: whole, or not at all. It stays open for
// complete.
func (r *record) create(dir string) error {
	owner, err := ownIdentity()
	if err != nil {
		return fmt.Errorf("finding out the identity of this Caddy: %w", err)
	}
	// Without a lock, on a full disk, say, a Caddy in another container leaves
	// the record alone.
	r.Lock, _ = owners.lock(dir)
	r.Owner = owner
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, r.Instance+recordSuffix)
	draft := path + draftSuffix
	f, err := os.OpenFile(draft, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	// No fsync: after a crash of the machine there is no process to find.
	if _, err = f.Write(padded(text, len(text)+recordRoom)); err == nil {
		err = os.Rename(draft, path)
	}
	if err != nil {
		f.Close()
		_ = os.Remove(draft)
		return err
	}
	r.file, r.size = f, len(text)+recordRoom
	return nil
}

// complete adds the process. It writes over what is there, in one write of the
// same length: to make another file costs more than to fork a process, and a
// kill does not fall into the middle of a write this small.
func (r *record) complete(pid int, startTime uint64) error {
	r.PID, r.StartTime = pid, startTime
	if r.file == nil {
		return nil // that it could not be created was said
	}
	defer r.release()
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = r.file.WriteAt(padded(text, r.size), 0)
	return err
}

// errOwned tells that a Caddy that lives has the record.
var errOwned = errors.New("another Caddy has it")

// takeOver makes this Caddy the owner of an instance whose owner is gone. Of
// several Caddys that try only one succeeds, and the others get errOwned.
func (r *record) takeOver(dir string, own identity, revision string) error {
	unlock, err := lockRecords(dir)
	if err != nil {
		return err
	}
	defer unlock()
	path := filepath.Join(dir, r.Instance+recordSuffix)
	now, err := readRecord(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errOwned // it was, and has been ended
	case err != nil:
		return err
	case !now.orphaned(own) || !now.sameSystem(own):
		return errOwned
	}
	now.Lock, _ = owners.lock(dir)
	now.Owner, now.Revision, now.Lost = own, revision, time.Time{}
	if err := now.rewrite(path); err != nil {
		return err
	}
	*r = *now
	return nil
}

// becameReady adds that the instance is ready.
func (r *record) becameReady(dir string) error {
	r.Ready = true
	return r.rewrite(filepath.Join(dir, r.Instance+recordSuffix))
}

// rewrite writes over a record that is in place, as complete does it: that
// works on a full disk too. One that is gone stays so.
func (r *record) rewrite(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(padded(text, int(info.Size())), 0)
	return err
}

// lockPatience is how long another Caddy may keep the records to itself, which
// takes it far less.
const lockPatience = time.Second

// lockRecords keeps other Caddys from taking records over. The lock is on the
// directory itself, and ends with the process that has it.
func lockRecords(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(5 * time.Millisecond) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		held := errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(deadline)
		if !held && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("locking the records in %s: %w", dir, err)
		}
	}
}

// orphaned tells whether the Caddy that has the record is certainly gone.
func (r *record) orphaned(own identity) bool {
	if r.Owner.BootID != own.BootID {
		// It is of an earlier boot, or of another machine that shares the data
		// directory. What is there may well live.
		return r.Owner.Machine == "" || r.Owner.Machine == own.Machine
	}
	// In another namespace of pids, another container with the same volume,
	// neither the owner nor its processes can be seen. They may well live.
	if r.Owner.Namespace != own.Namespace {
		return false
	}
	if !r.Owner.gone() {
		return false
	}
	// A Caddy that was itself started by that instance is no leftover to end.
	return variable(os.Getpid(), varInstance) != r.Instance
}

// sameSystem tells whether the pids of the record mean something here and now.
func (r *record) sameSystem(own identity) bool {
	return r.Owner.BootID == own.BootID && r.Owner.Namespace == own.Namespace
}

// release closes the file.
func (r *record) release() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

// padded ends a text with spaces and a newline.
func padded(text []byte, size int) []byte {
	return append(append(text, bytes.Repeat([]byte{' '}, max(0, size-len(text)-1))...), '\n')
}

// remove forgets an instance that is gone, and the files of its output.
func (r *record) remove(dir string) error {
	r.release()
	for _, path := range r.Output {
		// The paths come from a file: only files of this instance go.
		if filepath.Dir(path) == dir && strings.HasPrefix(filepath.Base(path), r.Instance+".") {
			_ = os.Remove(path)
		}
	}
	err := os.Remove(filepath.Join(dir, r.Instance+recordSuffix))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// readRecord reads a record and makes sure that it is one. What does not look
// so may be in the middle of a change, and is looked at again.
func readRecord(path string) (r *record, err error) {
	for range 3 {
		if r, err = parseRecord(path); err == nil || errors.Is(err, os.ErrNotExist) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return r, err
}

func parseRecord(path string) (*record, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, err
	}
	if !isInstanceID(r.Instance) || filepath.Base(path) != r.Instance+recordSuffix || r.Owner.PID <= 0 || r.Owner.BootID == "" {
		return nil, errors.New("it is not complete")
	}
	if r.StopSignal <= 0 || r.StopSignal > lastPlainSignal {
		r.StopSignal = int(syscall.SIGTERM)
	}
	return r, nil
}

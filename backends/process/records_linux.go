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
)

// record is what Usher writes down about a process, so that a later Caddy can
// end it when this one was killed. A first version without the process is
// written before the fork: whenever the kill comes, USHER_INSTANCE in the
// environment of the process is the name of a record.
type record struct {
	Instance    string `json:"instance"`
	Service     string `json:"service"`
	Revision    string `json:"revision"`
	Fingerprint string `json:"fingerprint"`
	Network     string `json:"network"`
	Address     string `json:"address"`

	// PID is 0 before the fork.
	PID       int    `json:"pid,omitempty"`
	StartTime uint64 `json:"start_time,omitempty"`

	StopSignal int    `json:"stop_signal"`
	Keep       bool   `json:"keep,omitempty"`
	Socket     string `json:"socket,omitempty"`

	// Output are the files that a kept instance writes to.
	Output []string `json:"output,omitempty"`

	// Owner is the Caddy that started the instance. It also says on which boot
	// and in which namespace the pids are meant.
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

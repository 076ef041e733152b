package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
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
}

const recordSuffix = ".json"

// write puts a record into place: whole, or not at all.
func (r *record) write(dir string) error {
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
	draft := path + ".new"
	// No fsync: after a crash of the machine there is no process to find.
	if err := os.WriteFile(draft, text, 0o600); err != nil {
		// A full disk leaves an empty file behind.
		_ = os.Remove(draft)
		return err
	}
	return os.Rename(draft, path)
}

// remove forgets an instance that is gone, and the files of its output.
func (r *record) remove(dir string) error {
	for _, path := range r.Output {
		// The paths come from a file: only files of this instance go.
		if filepath.Dir(path) == dir && strings.HasPrefix(filepath.Base(path), r.Instance+".") {
			_ = os.Remove(path)
		}
	}
	_ = os.Remove(filepath.Join(dir, r.Instance+recordSuffix+".new"))
	err := os.Remove(filepath.Join(dir, r.Instance+recordSuffix))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// readRecord reads a record and makes sure that it is one.
func readRecord(path string) (*record, error) {
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

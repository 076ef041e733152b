// Package zones finds time zones by name, also in a minimal image that has none.
//
// It owns a compressed copy of the time zone database of IANA, which is in the
// public domain, as the Go distribution has it. time/tzdata has the same, and makes
// the binary larger by four times as much.
//
// What the machine has goes first. The copy is unpacked only when it is needed,
// and is not kept.
package zones

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"
)

//go:generate sh -c "gzip -9nc $(go env GOROOT)/lib/time/zoneinfo.zip > zoneinfo.zip.gz"

//go:embed zoneinfo.zip.gz
var packed []byte

// Load returns the time zone of a name such as Europe/Berlin, or UTC. An empty name
// is UTC, and Local that of the machine, as in time.LoadLocation.
func Load(name string) (*time.Location, error) {
	zone, err := time.LoadLocation(name)
	if err == nil {
		return zone, nil
	}
	data, missing := find(name)
	switch {
	case errors.Is(missing, fs.ErrNotExist):
		return nil, err // of the machine, which says the name
	case missing != nil:
		return nil, fmt.Errorf("reading the time zones in the binary: %w", missing)
	}
	return time.LoadLocationFromTZData(name, data)
}

// find returns what the copy has of a zone, or an error that is fs.ErrNotExist.
func find(name string) ([]byte, error) {
	unpacking, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	all, err := io.ReadAll(unpacking)
	if err != nil {
		return nil, err
	}
	archive, err := zip.NewReader(bytes.NewReader(all), int64(len(all)))
	if err != nil {
		return nil, err
	}
	for _, f := range archive.File {
		if f.Name == name && !f.FileInfo().IsDir() {
			r, err := f.Open()
			if err != nil {
				return nil, err
			}
			defer r.Close()
			return io.ReadAll(r)
		}
	}
	return nil, fs.ErrNotExist
}

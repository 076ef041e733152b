// Package zones finds time zones by name, also in a minimal image that has none.
//
// It owns a compressed copy of the time zone database of IANA, which is in the
// public domain, as the Go distribution has it, from 2020 on: schedules look ahead.
// time/tzdata has all of it, and makes the binary larger by much more.
//
// What the machine has goes first. The copy is unpacked only when it is needed,
// and is not kept.
package zones

import (
	"bufio"
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"
)

//go:generate go run generate.go

// packed has a record for each zone: a line with its names, which are separated by
// spaces, the length of its data in two bytes, and the data.
//
//go:embed zones.gz
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
	unpacked, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	all := bufio.NewReader(unpacked)
	for {
		names, err := all.ReadString('\n')
		if err == io.EOF && names == "" {
			return nil, fs.ErrNotExist
		}
		if err != nil {
			return nil, err
		}
		var length [2]byte
		if _, err := io.ReadFull(all, length[:]); err != nil {
			return nil, err
		}
		data := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(all, data); err != nil {
			return nil, err
		}
		if slices.Contains(strings.Fields(names), name) {
			return data, nil
		}
	}
}

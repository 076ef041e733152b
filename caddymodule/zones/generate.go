//go:build ignore

// Command generate writes zones.gz from the time zones of the Go distribution. What
// they were before 2020 is left out.
package main

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	if err := generate(filepath.Join(os.Getenv("GOROOT"), "lib", "time", "zoneinfo.zip"), "zones.gz"); err != nil {
		log.Fatal(err)
	}
}

func generate(from, to string) error {
	archive, err := zip.OpenReader(from)
	if err != nil {
		return err
	}
	defer archive.Close()
	names := make(map[string][]string) // of the zones with that data
	for _, f := range archive.File {
		if f.FileInfo().IsDir() {
			continue
		}
		data, err := fs.ReadFile(archive, f.Name)
		if err != nil {
			return err
		}
		short, err := trim(data)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		names[short] = append(names[short], f.Name)
	}
	var all []string
	for data := range names {
		all = append(all, data)
	}
	// Zones whose rules for the future are alike compress well side by side,
	// and those rules are at the end.
	slices.SortFunc(all, func(a, b string) int { return bytes.Compare(backwards(a), backwards(b)) })
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	for _, data := range all {
		slices.Sort(names[data])
		record := []byte(strings.Join(names[data], " ") + "\n")
		record = binary.BigEndian.AppendUint16(record, uint16(len(data)))
		if _, err := io.WriteString(w, string(record)+data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(to, packed.Bytes(), 0o644)
}

// first is the time from which on a zone is kept.
var first = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).Unix()

// header is the start of a block of a zone, as RFC 9636 describes it.
type header struct {
	Magic                                       [4]byte
	Version                                     byte
	_                                           [15]byte
	UTCs, Standards, Leaps, Times, Types, Chars uint32
}

// localType is a local time: how far it is from UTC, and where its name begins.
type localType struct {
	Offset      int32
	Summer      bool
	Designation uint8
}

// trim returns a zone without the changes before first, except the last of them.
func trim(data []byte) (string, error) {
	r := bytes.NewReader(data)
	read := func(v any) error { return binary.Read(r, binary.BigEndian, v) }
	var h header
	if err := read(&h); err != nil {
		return "", err
	}
	if string(h.Magic[:]) != "TZif" || h.Version < '2' {
		return "", errors.New("not a zone of version 2 or later")
	}
	// The first block has 32 bits for a time. Nothing reads it.
	if _, err := r.Seek(int64(h.Times*5+h.Types*6+h.Chars+h.Leaps*8+h.Standards+h.UTCs), io.SeekCurrent); err != nil {
		return "", err
	}
	if err := read(&h); err != nil {
		return "", err
	}
	if h.Leaps > 0 {
		return "", errors.New("it has leap seconds")
	}
	times, indexes := make([]int64, h.Times), make([]byte, h.Times)
	types, chars := make([]localType, h.Types), make([]byte, h.Chars)
	for _, v := range []any{times, indexes, types, chars} {
		if err := read(v); err != nil {
			return "", err
		}
	}
	if _, err := r.Seek(int64(h.Standards+h.UTCs), io.SeekCurrent); err != nil {
		return "", err
	}
	rule, err := io.ReadAll(r) // for what comes after the last change
	if err != nil {
		return "", err
	}

	from, _ := slices.BinarySearch(times, first)
	from = max(from-1, 0)
	times, indexes = times[from:], indexes[from:]
	var kept []localType
	var keptChars []byte
	at := make(map[byte]byte) // where a type is among those that are kept
	keep := func(k byte) {
		if _, ok := at[k]; ok {
			return
		}
		at[k] = byte(len(kept))
		t := types[k]
		name, _, _ := bytes.Cut(chars[t.Designation:], []byte{0})
		name = append(bytes.Clone(name), 0)
		begin := bytes.Index(keptChars, name)
		if begin < 0 {
			begin = len(keptChars)
			keptChars = append(keptChars, name...)
		}
		t.Designation = uint8(begin)
		kept = append(kept, t)
	}
	for k, index := range indexes {
		keep(index)
		indexes[k] = at[index]
	}
	if len(indexes) == 0 {
		keep(0)
	}
	empty := header{Magic: h.Magic, Version: h.Version}
	h = header{Magic: h.Magic, Version: h.Version, Times: uint32(len(times)), Types: uint32(len(kept)), Chars: uint32(len(keptChars))}
	var b bytes.Buffer
	for _, v := range []any{empty, h, times, indexes, kept, keptChars, rule} {
		if err := binary.Write(&b, binary.BigEndian, v); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

func backwards(s string) []byte {
	b := []byte(s)
	slices.Reverse(b)
	return b
}

//go:build ignore

// Command generate writes zones.gz from the time zones of the Go distribution.
package main

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
		names[string(data)] = append(names[string(data)], f.Name)
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

func backwards(s string) []byte {
	b := []byte(s)
	slices.Reverse(b)
	return b
}

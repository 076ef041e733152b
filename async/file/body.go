package file

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/caddy-usher/usher/async"
)

// received is a body that was read to its end. It is in memory, or a file that
// is synced.
type received struct {
	part
	inline []byte
	sum    [sha256.Size]byte
}

// receive reads a body to its end. Nil is an empty one.
func (s *Store) receive(body io.Reader) (*received, error) {
	r := new(received)
	if body == nil {
		r.sum = sha256.Sum256(nil)
		return r, nil
	}
	var start bytes.Buffer
	n, err := io.CopyN(&start, body, inlineMost+1)
	switch {
	case errors.Is(err, io.EOF):
		r.inline, r.Size, r.sum = start.Bytes(), n, sha256.Sum256(start.Bytes())
		return r, nil
	case err != nil:
		return nil, &async.BodyError{Err: err}
	}
	if err := s.receiveFile(r, io.MultiReader(&start, body)); err != nil {
		s.discard(r)
		return nil, err
	}
	return r, nil
}

// bodyReader tells errors of the body from those of the disk.
type bodyReader struct {
	r   io.Reader
	err error
}

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = &async.BodyError{Err: err}
		err = b.err
	}
	return n, err
}

func (s *Store) receiveFile(r *received, body io.Reader) error {
	name := hex.EncodeToString(newRandom())
	f, err := os.OpenFile(s.bodyPath(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("%s cannot store a body: %w", s, err)
	}
	defer f.Close()
	r.File = name
	hash := sha256.New()
	source := &bodyReader{r: body}
	r.Size, err = s.copyBody(f, io.TeeReader(source, hash), name)
	if source.err != nil {
		return source.err
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncDir(filepath.Join(s.dir, bodiesName))
	}
	if err != nil {
		return fmt.Errorf("%s cannot store a body: %w", s, err)
	}
	hash.Sum(r.sum[:0])
	return nil
}

func (s *Store) copyBody(f *os.File, body io.Reader, name string) (int64, error) {
	if s.cipher == nil {
		return io.Copy(f, body)
	}
	w := &sealer{c: s.cipher, w: f, file: name}
	n, err := io.Copy(w, body)
	if err == nil {
		err = w.Close()
	}
	return n, err
}

// discard removes what receive has left, if no record names it.
func (s *Store) discard(r *received) {
	if r != nil && r.File != "" {
		_ = os.Remove(s.bodyPath(r.File)) // or the next Open does
	}
}

func (s *Store) bodyPath(name string) string { return filepath.Join(s.dir, bodiesName, name) }

// What a part in bodiesBucket is.
const (
	ofRequest = 'b'
	ofAnswer  = 'r'
)

func partKey(n uint64, kind byte) []byte { return append(number(n), kind) }

// putPart stores a body of the task with that number.
func (t *tx) putPart(n uint64, kind byte, r *received) error {
	if r.File != "" {
		return t.put(filesBucket, []byte(r.File), nil)
	}
	if r.Size == 0 {
		return nil
	}
	key := partKey(n, kind)
	return t.put(bodiesBucket, key, t.store.cipher.seal(r.inline, key))
}

// removePart is the inverse of putPart. The file goes after the commit.
func (t *tx) removePart(n uint64, kind byte, p part) error {
	if p.File != "" {
		t.unused = append(t.unused, p.File)
		return t.remove(filesBucket, []byte(p.File))
	}
	if p.Size == 0 {
		return nil
	}
	return t.remove(bodiesBucket, partKey(n, kind))
}

// openPart returns a body to read. It is good after the transaction, too.
func (t *tx) openPart(n uint64, kind byte, p part) (io.ReadCloser, error) {
	s := t.store
	if p.File != "" {
		f, err := os.Open(s.bodyPath(p.File))
		if err != nil {
			return nil, fmt.Errorf("%s has lost a body: %w", s, err)
		}
		if s.cipher != nil {
			return &opener{c: s.cipher, r: f, file: p.File}, nil
		}
		return f, nil
	}
	var b []byte
	if p.Size > 0 {
		key := partKey(n, kind)
		var err error
		if b, err = s.cipher.open(t.Bucket(bodiesBucket).Get(key), key); err != nil {
			return nil, fmt.Errorf("%s has a damaged body: %w", s, err)
		}
		if int64(len(b)) != p.Size {
			return nil, fmt.Errorf("%s has a body of %d bytes that should have %d", s, len(b), p.Size)
		}
	}
	return io.NopCloser(bytes.NewReader(bytes.Clone(b))), nil
}

// removeStrayFiles removes the files that no record names: their bodies were never
// accepted, or their tasks are gone.
func (s *Store) removeStrayFiles(t *tx) error {
	dir, err := os.Open(filepath.Join(s.dir, bodiesName))
	if err != nil {
		return fmt.Errorf("%s cannot be opened: %w", s, err)
	}
	defer dir.Close()
	named := t.Bucket(filesBucket)
	for {
		names, err := dir.Readdirnames(1000)
		for _, name := range names {
			if k, _ := named.Cursor().Seek([]byte(name)); string(k) != name {
				_ = os.Remove(s.bodyPath(name)) // or the next Open does
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s cannot be opened: %w", s, err)
		}
	}
}

// syncDir lets the names in a directory survive a power loss.
func syncDir(path string) error {
	if runtime.GOOS == "windows" {
		return nil // which does that by itself, and cannot be asked for it
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

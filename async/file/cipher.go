package file

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// cipherKeys encrypts with AES-256-GCM. A nil one leaves everything as it is.
type cipherKeys struct {
	aead  cipher.AEAD
	names [32]byte // for hashes
}

func newCipher(key string, salt []byte) (*cipherKeys, error) {
	secret, err := hkdf.Key(sha256.New, []byte(key), salt, "usher store of tasks", 64)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(secret[:32])
	if err != nil {
		return nil, err
	}
	c := new(cipherKeys)
	copy(c.names[:], secret[32:])
	c.aead, err = cipher.NewGCMWithRandomNonce(block)
	return c, err
}

// seal encrypts b. name is where it is stored: it is good for nothing elsewhere.
func (c *cipherKeys) seal(b, name []byte) []byte {
	if c == nil {
		return b
	}
	return c.aead.Seal(nil, nil, b, name) //nolint:gosec // the nonce is random, and part of the result
}

func (c *cipherKeys) open(b, name []byte) ([]byte, error) {
	if c == nil {
		return b, nil
	}
	return c.aead.Open(nil, nil, b, name)
}

// An encrypted file is made of chunks, each with its length before it. Each is bound
// to the name of the file, its position, and whether it is the last.

const chunkSize = 64 << 10

func chunkName(file string, position uint64, last bool) []byte {
	b := binary.BigEndian.AppendUint64([]byte(file), position)
	if last {
		return append(b, 1)
	}
	return append(b, 0)
}

// sealer writes an encrypted file. Close ends it, and leaves w open.
type sealer struct {
	c        *cipherKeys
	w        io.Writer
	file     string
	pending  []byte
	position uint64
}

func (s *sealer) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		if len(s.pending) == chunkSize {
			if err := s.flush(false); err != nil {
				return n, err
			}
		}
		k := min(len(b), chunkSize-len(s.pending))
		s.pending = append(s.pending, b[:k]...)
		b, n = b[k:], n+k
	}
	return n, nil
}

func (s *sealer) flush(last bool) error {
	sealed := s.c.seal(s.pending, chunkName(s.file, s.position, last))
	s.position++
	s.pending = s.pending[:0]
	if _, err := s.w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(sealed)))); err != nil {
		return err
	}
	_, err := s.w.Write(sealed)
	return err
}

func (s *sealer) Close() error { return s.flush(true) }

// opener reads what a sealer has written.
type opener struct {
	c        *cipherKeys
	r        io.ReadCloser
	file     string
	pending  []byte
	position uint64
	last     bool
}

func (o *opener) Read(b []byte) (int, error) {
	for len(o.pending) == 0 {
		if o.last {
			return 0, io.EOF
		}
		if err := o.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, o.pending)
	o.pending = o.pending[n:]
	return n, nil
}

func (o *opener) next() error {
	var length [4]byte
	if _, err := io.ReadFull(o.r, length[:]); err != nil {
		return fmt.Errorf("the file %s ends too early: %w", o.file, err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > chunkSize+64 {
		return fmt.Errorf("the file %s is damaged", o.file)
	}
	sealed := make([]byte, n)
	if _, err := io.ReadFull(o.r, sealed); err != nil {
		return fmt.Errorf("the file %s ends too early: %w", o.file, err)
	}
	for _, last := range []bool{false, true} {
		plain, err := o.c.open(sealed, chunkName(o.file, o.position, last))
		if err == nil {
			o.pending, o.last = plain, last
			o.position++
			return nil
		}
	}
	return errors.New("the file " + o.file + " is damaged")
}

func (o *opener) Close() error { return o.r.Close() }

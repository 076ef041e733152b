package tasks

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
)

// secrets hide what is stored. Without an AEAD everything but hashes is as it is.
type secrets struct {
	aead  cipher.AEAD
	names []byte // the key of hashes
}

// newSecrets derives them from the operator's key, which may be empty, and the salt of
// the store.
func newSecrets(key string, salt []byte) (*secrets, error) {
	secret, err := hkdf.Key(sha256.New, []byte(key), salt, "usher store of tasks in PostgreSQL", 64)
	if err != nil {
		return nil, err
	}
	s := &secrets{names: secret[32:]}
	if key == "" {
		return s, nil
	}
	block, err := aes.NewCipher(secret[:32])
	if err != nil {
		return nil, err
	}
	s.aead, err = cipher.NewGCMWithRandomNonce(block)
	return s, err
}

// seal encrypts b. name is where it is stored: it is good for nothing elsewhere.
func (s *secrets) seal(b []byte, name string) []byte {
	if s.aead == nil {
		return b
	}
	return s.aead.Seal(nil, nil, b, []byte(name)) //nolint:gosec // the nonce is random, and part of the result
}

func (s *secrets) open(b []byte, name string) ([]byte, error) {
	if s.aead == nil {
		return b, nil
	}
	return s.aead.Open(nil, nil, b, []byte(name))
}

// hash stands for what may be long, or must not be read from the database.
func (s *secrets) hash(parts ...string) []byte {
	h := hmac.New(sha256.New, s.names)
	for _, p := range parts {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		h.Write([]byte(p))
	}
	return h.Sum(nil)
}

// number is hash as the number of a lock or a group. If two things have the same one,
// they wait for each other without need.
func (s *secrets) number(parts ...string) int64 {
	return int64(binary.BigEndian.Uint64(s.hash(parts...)))
}

// proof tells a wrong key. It is empty for a store that is not encrypted.
func (s *secrets) proof() []byte {
	if s.aead == nil {
		return nil
	}
	return s.hash("proof")
}

package hub

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// seal hides what a cookie says and proves that a Caddy with the same key has
// said it. Each message is encrypted under its own authentication code, which
// gives equal messages equal forms and needs no randomness.
type seal struct {
	mac   []byte
	block cipher.Block
}

// macSize is the size of an authentication code in a cookie.
const macSize = aes.BlockSize

func newSeal(key []byte) *seal {
	derive := func(use string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(use))
		return h.Sum(nil)
	}
	block, err := aes.NewCipher(derive("encryption"))
	if err != nil {
		panic(err) // the key has the right size
	}
	return &seal{mac: derive("authentication"), block: block}
}

func (s *seal) code(context string, message []byte) []byte {
	h := hmac.New(sha256.New, s.mac)
	h.Write([]byte(context))
	h.Write([]byte{0})
	h.Write(message)
	return h.Sum(nil)[:macSize]
}

// seal returns the form of a message that open can read in the same context.
func (s *seal) seal(context string, message []byte) []byte {
	sealed := append(s.code(context, message), message...)
	cipher.NewCTR(s.block, sealed[:macSize]).XORKeyStream(sealed[macSize:], sealed[macSize:])
	return sealed
}

// open returns the message; false if no seal of the same key made it in the
// same context.
func (s *seal) open(context string, sealed []byte) ([]byte, bool) {
	if len(sealed) < macSize {
		return nil, false
	}
	message := make([]byte, len(sealed)-macSize)
	cipher.NewCTR(s.block, sealed[:macSize]).XORKeyStream(message, sealed[macSize:])
	if !hmac.Equal(s.code(context, message), sealed[:macSize]) {
		return nil, false
	}
	return message, true
}

// sealedCookies seals the cookies of one service.
type sealedCookies struct {
	seal    *seal
	service string

	// What cookies without a time of issue say: there is one for each instance,
	// and requests bring it again and again.
	mu     sync.RWMutex
	values map[uint64]string
	opened map[string]uint64
}

// A cookie says which instance it names, and when it was issued, in seconds
// since 1970; 0 if that does not matter.
const cookieSize = 8 + 4

var cookieEncoding = base64.RawURLEncoding.Strict()

var cookieLength = cookieEncoding.EncodedLen(macSize + cookieSize)

// cookiesKnown is of how many instances the cookies are kept.
const cookiesKnown = 4096

func newSealedCookies(s *seal, service string) *sealedCookies {
	return &sealedCookies{seal: s, service: service, values: make(map[uint64]string), opened: make(map[string]uint64)}
}

// sealed returns the cookie that names an instance. issued may be zero.
func (c *sealedCookies) sealed(instance uint64, issued time.Time) string {
	if issued.IsZero() {
		c.mu.RLock()
		v, ok := c.values[instance]
		c.mu.RUnlock()
		if ok {
			return v
		}
	}
	message := binary.BigEndian.AppendUint64(make([]byte, 0, cookieSize), instance)
	if issued.IsZero() {
		message = binary.BigEndian.AppendUint32(message, 0)
	} else {
		message = binary.BigEndian.AppendUint32(message, uint32(issued.Unix()))
	}
	v := cookieEncoding.EncodeToString(c.seal.seal(c.service, message))
	if issued.IsZero() {
		c.keep(v, instance)
	}
	return v
}

// open returns which instance a cookie names; false if it is none of ours.
func (c *sealedCookies) open(v string) (instance uint64, issued time.Time, ok bool) {
	if len(v) != cookieLength {
		return 0, time.Time{}, false
	}
	c.mu.RLock()
	instance, ok = c.opened[v]
	c.mu.RUnlock()
	if ok {
		return instance, time.Time{}, true
	}
	b, err := cookieEncoding.DecodeString(v)
	if err != nil {
		return 0, time.Time{}, false
	}
	message, ok := c.seal.open(c.service, b)
	if !ok {
		return 0, time.Time{}, false
	}
	instance = binary.BigEndian.Uint64(message)
	if seconds := binary.BigEndian.Uint32(message[8:]); seconds != 0 {
		return instance, time.Unix(int64(seconds), 0), true
	}
	c.keep(v, instance)
	return instance, time.Time{}, true
}

func (c *sealedCookies) keep(v string, instance uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.values) >= cookiesKnown {
		clear(c.values)
		clear(c.opened)
	}
	c.values[instance], c.opened[v] = v, instance
}

// The key of cookies is kept in Caddy's storage: cookies hold over restarts, and
// for all Caddys of a cluster.
const (
	sealKeyName = "usher/affinity/key"
	sealKeyLock = "usher_affinity_key"
	sealKeySize = 32
)

// loadSeal reads the key of cookies when the first service with such cookies
// comes. The hub's lock is not held: a storage can take its time.
func (h *Hub) loadSeal(g *Generation) {
	needed := false
	for _, d := range g.Definitions {
		needed = needed || d.Service.Affinity != nil && d.Service.Affinity.Cookie != nil
	}
	if !needed || h.seal.Load() != nil {
		return
	}
	if g.Cluster != nil && g.Cluster.sealKey != nil {
		// So it is the same on all Caddys, whatever storages they have.
		h.seal.CompareAndSwap(nil, newSeal(g.Cluster.sealKey))
		return
	}
	key, err := sealKeyOf(g.Storage)
	if err != nil {
		g.Logger.Error("the key of session cookies cannot be had from the storage: cookies that are set now are worth nothing to another Caddy, nor after a restart", zap.Error(err))
		key = newSealKey()
	}
	h.seal.CompareAndSwap(nil, newSeal(key))
}

func newSealKey() []byte {
	key := make([]byte, sealKeySize)
	_, _ = rand.Read(key) // it never fails
	return key
}

// sealKeyOf returns the key that the storage has. It is made if there is none.
func sealKeyOf(storage certmagic.Storage) (key []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	if key, err = readSealKey(ctx, storage); key != nil || err != nil {
		return key, err
	}
	// Another Caddy may be about to make it.
	if err := storage.Lock(ctx, sealKeyLock); err != nil {
		return nil, fmt.Errorf("locking %s: %w", sealKeyName, err)
	}
	defer func() {
		if unlock := storage.Unlock(context.WithoutCancel(ctx), sealKeyLock); err == nil && unlock != nil {
			err = fmt.Errorf("unlocking %s: %w", sealKeyName, unlock)
		}
	}()
	if key, err = readSealKey(ctx, storage); key != nil || err != nil {
		return key, err
	}
	key = newSealKey()
	if err := storage.Store(ctx, sealKeyName, key); err != nil {
		return nil, fmt.Errorf("storing %s: %w", sealKeyName, err)
	}
	return key, nil
}

// readSealKey returns nil if the storage has no key.
func readSealKey(ctx context.Context, storage certmagic.Storage) ([]byte, error) {
	key, err := storage.Load(ctx, sealKeyName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading %s: %w", sealKeyName, err)
	case len(key) != sealKeySize:
		return nil, fmt.Errorf("reading %s: it has %d bytes instead of %d: remove it, and the next start makes another one", sealKeyName, len(key), sealKeySize)
	}
	return key, nil
}

package file

import (
	"bytes"
	"crypto/aes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/caddy-usher/usher/async"
)

// phase says why a pending task can begin now or not.
type phase uint8

const (
	ready   phase = iota + 1 // it can
	delayed                  // its time has not come
	behind                   // it is not the first of its group
)

// record is a task in the database.
type record struct {
	Number    uint64        `json:"number"`
	Random    []byte        `json:"random"` // of its id
	Place     uint64        `json:"place"`
	Queue     string        `json:"queue"`
	Request   async.Request `json:"request"`
	Client    string        `json:"client,omitempty"`
	Group     string        `json:"group,omitempty"`
	Exclusive string        `json:"exclusive,omitempty"`
	Key       string        `json:"key,omitempty"`
	Print     []byte        `json:"print,omitempty"` // of the request and its body, if there is a key
	Callback  string        `json:"callback,omitempty"`
	Keep      time.Duration `json:"keep,omitempty"`

	State      async.State `json:"state"`
	Phase      phase       `json:"phase,omitempty"` // of a pending one
	Attempt    int         `json:"attempt,omitempty"`
	Counted    int         `json:"counted,omitempty"`
	Owner      string      `json:"owner,omitempty"`
	Boot       string      `json:"boot,omitempty"` // of the opening that has claimed it
	Cancelling bool        `json:"cancelling,omitempty"`
	Reason     string      `json:"reason,omitempty"`

	Body   part        `json:"body,omitzero"`
	Status int         `json:"status,omitempty"`
	Header http.Header `json:"header,omitempty"`
	Result part        `json:"result,omitzero"`

	// Stamps. Expires is 0 after the first attempt has begun.
	Accepted  uint64 `json:"accepted"`
	Due       uint64 `json:"due,omitempty"`
	Started   uint64 `json:"started,omitempty"`
	Expires   uint64 `json:"expires,omitempty"`
	Ended     uint64 `json:"ended,omitempty"`
	KeptUntil uint64 `json:"kept_until,omitempty"`
}

// part is a body or an answer. It is in bodiesBucket, or in a file.
type part struct {
	Size int64  `json:"size,omitempty"`
	File string `json:"file,omitempty"`
}

// stamp is a time as a number that sorts.
func stamp(t time.Time) uint64 { return uint64(max(0, t.UnixNano())) }

func fromStamp(n uint64) time.Time { return time.Unix(0, int64(n)) }

func timeOf(n uint64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return fromStamp(n)
}

// after adds a duration to a stamp. Both are not negative.
func after(n uint64, d time.Duration) uint64 { return min(n+uint64(max(0, d)), 1<<63-1) }

// task returns r as others see it.
func (s *Store) task(r *record) async.Task {
	t := async.Task{
		ID: s.id(r.Number, r.Random), Queue: r.Queue, Request: r.Request, Client: r.Client, Group: r.Group,
		Exclusive: r.Exclusive, Key: r.Key, Callback: r.Callback, Keep: r.Keep, BodySize: r.Body.Size,
		State: r.State, Attempt: r.Attempt, Counted: r.Counted, Owner: r.Owner, Cancelling: r.Cancelling,
		Progress: -1, Reason: r.Reason, Status: r.Status, ResultSize: r.Result.Size,
		Accepted: fromStamp(r.Accepted), Due: timeOf(r.Due), Started: timeOf(r.Started), Expires: timeOf(r.Expires), Ended: timeOf(r.Ended),
	}
	if r.State == async.Running {
		s.ownMu.Lock()
		if o := s.own[t.ID]; o != nil && o.attempt == r.Attempt {
			t.Progress = o.progress
		}
		s.ownMu.Unlock()
	}
	return t
}

// An id is 16 random bytes, and the number of the task, which is hidden by them.
// So a task is found by its number, new tasks stand side by side in the database,
// and an id tells nothing about how many there are.
const randomSize = 16

func (s *Store) id(n uint64, random []byte) string {
	return hex.EncodeToString(binary.BigEndian.AppendUint64(bytes.Clone(random), n^s.mask(random)))
}

// numberOf is the inverse of id. The caller compares the random bytes.
func (s *Store) numberOf(id string) (n uint64, random []byte, ok bool) {
	b, err := hex.DecodeString(id)
	if err != nil || len(b) != randomSize+8 {
		return 0, nil, false
	}
	random = b[:randomSize]
	return binary.BigEndian.Uint64(b[randomSize:]) ^ s.mask(random), random, true
}

func (s *Store) mask(random []byte) uint64 {
	block, err := aes.NewCipher(s.secret)
	if err != nil {
		panic(err) // the secret has 32 bytes
	}
	var out [aes.BlockSize]byte
	block.Encrypt(out[:], random)
	return binary.BigEndian.Uint64(out[:8])
}

func newRandom() []byte {
	b := make([]byte, randomSize)
	rand.Read(b)
	return b
}

// load returns the record with a number, or nil.
func (t *tx) load(n uint64) (*record, error) {
	b := t.Bucket(tasksBucket).Get(number(n))
	if b == nil {
		return nil, nil
	}
	b, err := t.store.cipher.open(b, number(n))
	if err != nil {
		return nil, failed(fmt.Errorf("the record of task number %d is damaged: %w", n, err))
	}
	r := new(record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, failed(fmt.Errorf("the record of task number %d is damaged: %w", n, err))
	}
	return r, nil
}

// find returns the record with an id, or ErrNotFound.
func (t *tx) find(id string) (*record, error) {
	n, random, ok := t.store.numberOf(id)
	if !ok {
		return nil, async.ErrNotFound
	}
	r, err := t.load(n)
	if err != nil {
		return nil, err
	}
	if r == nil || subtle.ConstantTimeCompare(r.Random, random) == 0 {
		return nil, async.ErrNotFound
	}
	return r, nil
}

// save writes r.
func (t *tx) save(r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return failed(err)
	}
	return t.put(tasksBucket, number(r.Number), t.store.cipher.seal(b, number(r.Number)))
}

// Keys of several parts. Strings have their length before them, or are hashed, so
// that no key is the beginning of another one's parts.

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func readyPrefix(queue, exclusive string) []byte {
	return appendString(appendString(nil, queue), exclusive)
}

func (r *record) readyKey() []byte {
	return binary.BigEndian.AppendUint64(readyPrefix(r.Queue, r.Exclusive), r.Place)
}

func (r *record) delayedKey() []byte {
	return append(appendString(nil, r.Queue), timeAndNumber(r.Due, r.Place)...)
}

func (s *Store) groupPrefix(r *record) []byte {
	return append(appendString(nil, r.Queue), s.hash("group", r.Group)...)
}

func (s *Store) groupKey(r *record) []byte {
	return binary.BigEndian.AppendUint64(s.groupPrefix(r), r.Place)
}

func (s *Store) keyKey(queue, key string) []byte { return s.hash(queue, key) }

func statesPrefix(queue string, state async.State) []byte {
	return append(appendString(nil, queue), byte(state))
}

func (r *record) stateKey() []byte {
	return binary.BigEndian.AppendUint64(statesPrefix(r.Queue, r.State), r.Number)
}

func timeAndNumber(at, n uint64) []byte { return append(number(at), number(n)...) }

// hash makes a key of what may be long, or must not be read from the disk.
func (s *Store) hash(parts ...string) []byte {
	h := sha256.New()
	h.Write(s.secret)
	if s.cipher != nil {
		h.Write(s.cipher.names[:])
	}
	for _, p := range parts {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		h.Write([]byte(p))
	}
	return h.Sum(nil)
}

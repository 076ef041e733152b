package tasks

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/caddy-usher/usher/async"
)

const (
	// chunkSize is that of the parts in which bodies are stored, in bytes.
	chunkSize = 256 << 10

	// memoryMost is how many bytes of a body are held in memory. A larger one goes
	// through a file, which no other process can open.
	memoryMost = 1 << 20
)

// What a body in parts is.
const (
	ofRequest = "b"
	ofAnswer  = "r"
)

// body is a body that was read to its end, in sealed chunks.
type body struct {
	size int64
	sum  [sha256.Size]byte

	memory [][]byte
	file   *os.File
	ends   []int64 // of the chunks in the file
}

func chunkName(id, kind string, n int) string { return id + " " + kind + " " + strconv.Itoa(n) }

// receive reads a body to its end. Nil is an empty one.
func receive(r io.Reader, secrets *secrets, id, kind string) (*body, error) {
	b := new(body)
	h := sha256.New()
	for n := 0; r != nil; n++ {
		chunk, err := io.ReadAll(io.LimitReader(r, chunkSize))
		if err != nil {
			b.close()
			return nil, &async.BodyError{Err: err}
		}
		if len(chunk) == 0 {
			break
		}
		h.Write(chunk)
		b.size += int64(len(chunk))
		if err := b.add(secrets.seal(chunk, chunkName(id, kind, n))); err != nil {
			b.close()
			return nil, fmt.Errorf("a body cannot be read into a file: %w", err)
		}
	}
	h.Sum(b.sum[:0])
	return b, nil
}

// add adds a sealed chunk.
func (b *body) add(chunk []byte) error {
	if b.file == nil {
		if len(b.memory) < memoryMost/chunkSize {
			b.memory = append(b.memory, chunk)
			return nil
		}
		f, err := os.CreateTemp("", "usher-body-")
		if err != nil {
			return err
		}
		// Its name is of no use. It goes with the process.
		_ = os.Remove(f.Name())
		b.file = f
		for _, c := range b.memory {
			if err := b.append(c); err != nil {
				return err
			}
		}
		b.memory = nil
	}
	return b.append(chunk)
}

func (b *body) append(chunk []byte) error {
	_, err := b.file.Write(chunk)
	b.ends = append(b.ends, b.end()+int64(len(chunk)))
	return err
}

func (b *body) end() int64 {
	if len(b.ends) == 0 {
		return 0
	}
	return b.ends[len(b.ends)-1]
}

func (b *body) chunks() int { return max(len(b.memory), len(b.ends)) }

func (b *body) chunk(n int) ([]byte, error) {
	if b.file == nil {
		return b.memory[n], nil
	}
	from := int64(0)
	if n > 0 {
		from = b.ends[n-1]
	}
	chunk := make([]byte, b.ends[n]-from)
	_, err := b.file.ReadAt(chunk, from)
	return chunk, err
}

func (b *body) close() {
	if b != nil && b.file != nil {
		b.file.Close()
	}
}

// putBody stores a body of the task with a number.
func (t *tx) putBody(number int64, kind string, b *body) error {
	for n := range b.chunks() {
		chunk, err := b.chunk(n)
		if err != nil {
			return fmt.Errorf("a body cannot be read from its file: %w", err)
		}
		t.queue(`INSERT INTO parts (number, kind, chunk, data) VALUES ($1, $2, $3, $4)`, number, kind, n, chunk)
		if n%(memoryMost/chunkSize) == memoryMost/chunkSize-1 {
			if err := t.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// reader returns a stored body. It is good after the transaction, too.
func reader(ctx context.Context, q pgx.Tx, secrets *secrets, r *record, kind string, size int64) (io.ReadCloser, error) {
	b := &body{size: size}
	rows, err := q.Query(ctx, `SELECT data FROM parts WHERE number = $1 AND kind = $2 ORDER BY chunk`, r.number, kind)
	if err != nil {
		return nil, err
	}
	var chunk []byte
	_, err = pgx.ForEachRow(rows, []any{&chunk}, func() error {
		err := b.add(chunk)
		chunk = nil
		return err
	})
	if err != nil {
		b.close()
		return nil, err
	}
	return &bodyReader{b: b, secrets: secrets, id: r.id, kind: kind, left: size}, nil
}

// bodyReader reads a body, and checks that it is whole.
type bodyReader struct {
	b        *body
	secrets  *secrets
	id, kind string
	next     int
	plain    []byte
	left     int64
}

func (r *bodyReader) Read(p []byte) (int, error) {
	for len(r.plain) == 0 {
		if r.next == r.b.chunks() {
			if r.left != 0 {
				return 0, fmt.Errorf("the body of task %s has another length than it should have", r.id)
			}
			return 0, io.EOF
		}
		chunk, err := r.b.chunk(r.next)
		if err == nil {
			r.plain, err = r.secrets.open(chunk, chunkName(r.id, r.kind, r.next))
		}
		if err != nil {
			return 0, fmt.Errorf("the body of task %s is damaged: %w", r.id, err)
		}
		r.next++
		r.left -= int64(len(r.plain))
	}
	n := copy(p, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

func (r *bodyReader) Close() error {
	r.b.close()
	return nil
}

package chaos

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// A task is what a client asks for, and what it expects.
type task struct {
	what, method, path string
	send               int64 // bytes of the body
	chunked            bool
	socket             bool
	messages           int
	every              time.Duration
	want               func(body io.Reader) error
}

// draw returns the next task of the client.
func (c *client) draw() task {
	r := c.rng
	switch n := r.IntN(100); {
	case n < 35:
		return task{what: "short", method: http.MethodGet, path: "/", want: startsWith("instance ")}
	case n < 50:
		return sleeper(r, http.MethodGet, 1200*time.Millisecond)
	case n < 65:
		t := sleeper(r, http.MethodPost, 300*time.Millisecond)
		t.send, t.chunked = 1+r.Int64N(2000), r.IntN(3) == 0
		return t
	case n < 75:
		events, every := 1+r.IntN(25), time.Duration(1+r.IntN(40))*time.Millisecond
		return task{
			what: fmt.Sprintf("a stream of %d events, %s each", events, every), method: http.MethodGet,
			path: fmt.Sprintf("/sse?n=%d&d=%s", events, every), want: ticks(events),
		}
	case n < 84:
		return task{
			what: "a websocket", method: http.MethodGet, path: "/ws", socket: true,
			messages: 1 + r.IntN(20), every: time.Duration(r.IntN(60)) * time.Millisecond,
		}
	case n < 92:
		size := 1 + r.Int64N(3<<20)
		return task{
			what: fmt.Sprintf("%d bytes down", size), method: http.MethodGet,
			path: fmt.Sprintf("/bulk?n=%d", size), want: bytesOf(size),
		}
	default:
		size := 1 + r.Int64N(2<<20)
		return task{
			what: fmt.Sprintf("%d bytes up and down", size), method: http.MethodPost,
			path: "/echo", send: size, chunked: r.IntN(3) == 0, want: bytesOf(size),
		}
	}
}

func sleeper(r *rand.Rand, method string, most time.Duration) task {
	d := time.Duration(1+r.IntN(int(most/time.Millisecond))) * time.Millisecond
	return task{what: "takes " + d.String(), method: method, path: "/sleep?d=" + d.String(), want: startsWith("instance ")}
}

func startsWith(prefix string) func(io.Reader) error {
	return func(body io.Reader) error {
		all, err := io.ReadAll(body)
		if err == nil && !strings.HasPrefix(string(all), prefix) {
			err = &wrongAnswer{fmt.Sprintf("got %.100q", all)}
		}
		return err
	}
}

// ticks expects so many events, in their order.
func ticks(n int) func(io.Reader) error {
	return func(body io.Reader) error {
		lines, next := bufio.NewScanner(body), 0
		for lines.Scan() {
			data, ok := strings.CutPrefix(lines.Text(), "data: ")
			if !ok {
				continue
			}
			if data != fmt.Sprint(next) {
				return &wrongAnswer{fmt.Sprintf("got event %s instead of %d", data, next)}
			}
			next++
		}
		if err := lines.Err(); err != nil {
			return err
		}
		if next != n {
			return &wrongAnswer{fmt.Sprintf("%d of %d events, and then the end", next, n)}
		}
		return nil
	}
}

// bytesOf expects so many bytes of the pattern.
func bytesOf(n int64) func(io.Reader) error {
	return func(body io.Reader) error {
		got, want := make([]byte, 16<<10), make([]byte, 16<<10)
		p := &pattern{left: n}
		for {
			k, err := body.Read(got)
			m, _ := io.ReadFull(p, want[:k])
			if string(got[:k]) != string(want[:m]) {
				return &wrongAnswer{fmt.Sprintf("other bytes before byte %d of %d", n-p.left, n)}
			}
			if err == io.EOF && p.left > 0 {
				return &wrongAnswer{fmt.Sprintf("%d of %d bytes, and then the end", n-p.left, n)}
			}
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
		}
	}
}

// pattern is what bodies are made of: each byte tells its place, as the low
// byte of its offset plus the number of its block of 256.
type pattern struct{ at, left int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.left))
	for k := range n {
		b[k] = byte(p.at + p.at/256)
		p.at++
	}
	p.left -= int64(n)
	return n, nil
}

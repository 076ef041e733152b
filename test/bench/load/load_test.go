package load

import (
	"errors"
	"net"
	"testing"
	"time"
)

// stalling answers at once, except that the first request takes a while.
type stalling struct {
	stall time.Duration
	asked int
}

func (s *stalling) Ask() error {
	if s.asked++; s.asked == 1 {
		time.Sleep(s.stall)
	}
	return nil
}

func (*stalling) Close() {}

func TestConstantCountsTheRequestsThatAStallKeptFromBeingSent(t *testing.T) {
	const stall = 200 * time.Millisecond
	r, err := Constant(100, 400*time.Millisecond, 1, func() (Asker, error) { return &stalling{stall: stall}, nil })
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Latencies) != 40 {
		t.Errorf("%d requests, want 40", len(r.Latencies))
	}
	// Half of the requests were due during the stall; they waited for half of
	// it in the mean. Only one was under way.
	if late := r.Quantile(0.75); late < stall/4 {
		t.Errorf("three quarters of the requests took %s or less, as if only one had been late", late)
	}
}

type failing struct{}

func (failing) Ask() error { return errors.New("broken") }
func (failing) Close()     {}

func TestFailuresAreNoMeasurements(t *testing.T) {
	if _, err := Closed(time.Millisecond, 2, func() (Asker, error) { return failing{}, nil }); err == nil {
		t.Error("no error although every request failed")
	}
}

func TestConnReadsAnswersThatFollowEachOther(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		request := make([]byte, 1024)
		for _, answer := range []string{
			"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nX: y\r\n\r\nok",
			"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
		} {
			if _, err := conn.Read(request); err != nil {
				return
			}
			_, _ = conn.Write([]byte(answer))
		}
	}()
	c, err := Dial(ln.Addr().String(), "/")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 {
		if err := c.Ask(); err != nil {
			t.Error(err)
		}
	}
	if err := c.Ask(); err == nil {
		t.Error("a 503 counts as an answer")
	}
}

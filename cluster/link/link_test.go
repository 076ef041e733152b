package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

func TestBothSidesKnowEachOther(t *testing.T) {
	a, b := start(t, "a", "127.0.0.1:0"), start(t, "b", "127.0.0.1:0")
	here, there := a.dial(t, b)
	if got, want := here.Peer(), (Hello{Version: Version, Cluster: "test", ID: "b", Boot: "b-1", Address: b.address}); got != want {
		t.Errorf("a knows %+v, want %+v", got, want)
	}
	if got, want := there.Peer(), (Hello{Version: Version, Cluster: "test", ID: "a", Boot: "a-1", Address: a.address, Purpose: "test"}); got != want {
		t.Errorf("b knows %+v, want %+v", got, want)
	}
}

func TestFramesArriveWholeAndInTheirOrder(t *testing.T) {
	a, b := start(t, "a", "127.0.0.1:0"), start(t, "b", "127.0.0.1:0")
	here, there := a.dial(t, b)
	const senders, each = 4, 500
	var sending sync.WaitGroup
	for s := range senders {
		sending.Go(func() {
			for n := range each {
				frame := binary.BigEndian.AppendUint32(nil, uint32(s))
				frame = binary.BigEndian.AppendUint32(frame, uint32(n))
				if err := here.Send(append(frame, bytes.Repeat([]byte{byte(n)}, n)...)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	next := make([]int, senders)
	for range senders * each {
		b, err := there.Receive()
		if err != nil {
			t.Fatal(err)
		}
		s, n := binary.BigEndian.Uint32(b), int(binary.BigEndian.Uint32(b[4:]))
		if n != next[s] {
			t.Fatalf("sender %d: frame %d came after frame %d", s, n, next[s]-1)
		}
		if next[s]++; !bytes.Equal(b[8:], bytes.Repeat([]byte{byte(n)}, n)) {
			t.Fatalf("sender %d: frame %d is not what was sent", s, n)
		}
	}
	sending.Wait()
}

func TestTheLargestFrameArrivesAndALargerOneIsRefused(t *testing.T) {
	a, b := start(t, "a", "127.0.0.1:0"), start(t, "b", "127.0.0.1:0")
	here, there := a.dial(t, b)
	for _, size := range []int{0, MaxFrame + 1} {
		if err := here.Send(make([]byte, size)); err == nil {
			t.Errorf("a frame of %d bytes was accepted", size)
		}
	}
	if err := here.Send(make([]byte, MaxFrame)); err != nil {
		t.Fatal(err)
	}
	if got, err := there.Receive(); err != nil || len(got) != MaxFrame {
		t.Fatalf("%d bytes arrived: %v", len(got), err)
	}
}

func TestAPeerThatDoesNotReadLosesItsConnection(t *testing.T) {
	a, b := start(t, "a", "127.0.0.1:0"), start(t, "b", "127.0.0.1:0")
	here, _ := a.dial(t, b)
	var err error
	for range 4 * MaxQueued / MaxFrame { // the kernel takes some, too
		if err = here.Send(make([]byte, MaxFrame)); err != nil {
			break
		}
	}
	if err == nil || !strings.Contains(err.Error(), "member b at "+b.address+" does not read") {
		t.Fatalf("the error is %v", err)
	}
	if again := here.Send([]byte("x")); again == nil || again.Error() != err.Error() {
		t.Errorf("the next frame gets %v, want %v", again, err)
	}
}

func TestAnEndIsNoticedByBothSides(t *testing.T) {
	a, b := start(t, "a", "127.0.0.1:0"), start(t, "b", "127.0.0.1:0")
	here, there := a.dial(t, b)
	if err := here.Send([]byte("last")); err != nil {
		t.Fatal(err)
	}
	if got, err := there.Receive(); err != nil || string(got) != "last" {
		t.Fatalf("%q, %v", got, err)
	}
	here.Close()
	if _, err := there.Receive(); err != io.EOF {
		t.Errorf("the other side reads %v, want io.EOF", err)
	}
	if _, err := here.Receive(); err != ErrClosed {
		t.Errorf("this side reads %v, want ErrClosed", err)
	}
	if err := here.Send([]byte("x")); err != ErrClosed {
		t.Errorf("this side sends, and gets %v, want ErrClosed", err)
	}
}

func TestACloseEndsAllConnections(t *testing.T) {
	a, b := start(t, "a", "127.0.0.1:0"), start(t, "b", "127.0.0.1:0")
	here, there := a.dial(t, b)
	b.Close()
	if _, err := here.Receive(); err != io.EOF {
		t.Errorf("the side that goes on reads %v, want io.EOF", err)
	}
	if _, err := there.Receive(); err != ErrClosed {
		t.Errorf("the side that was closed reads %v, want ErrClosed", err)
	}
	if _, err := a.Dial(t.Context(), b.address, "b", "test"); err == nil {
		t.Error("a closed link takes connections")
	}
}

func TestASilentPeerLosesItsConnection(t *testing.T) {
	short := with(func(c *Config) { c.Silence = 100 * time.Millisecond })
	a, b := start(t, "a", "127.0.0.1:0", short), start(t, "b", "127.0.0.1:0", short)
	w := wire(t, b.address)
	here, err := a.Dial(t.Context(), w.address, "b", "test")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	there := <-b.came
	// While both live, silence alone ends nothing.
	read := make(chan error, 1)
	go func() { _, err := here.Receive(); read <- err }()
	select {
	case err := <-read:
		t.Fatalf("the connection ended by itself: %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	w.cut()
	if err := <-read; err == nil || !strings.Contains(err.Error(), "was silent for 100ms") {
		t.Errorf("this side reads %v", err)
	}
	if _, err := there.Receive(); err == nil || !strings.Contains(err.Error(), "was silent for 100ms") {
		t.Errorf("the other side reads %v", err)
	}
}

func TestAConnectionThatIsNotWantedSaysWhyOnBothSides(t *testing.T) {
	other, err := FromSecret("another secret, long enough")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change      func(*Config)
		here, there string
	}{
		"another secret": {
			func(c *Config) { c.Identity = other },
			"it has another secret", "the other side did not accept this one: its secret is another one",
		},
		"another cluster": {
			func(c *Config) { c.Cluster = "prod" },
			"the clusters differ: a belongs to 'prod', b to 'test'", "the clusters differ: b belongs to 'test', a to 'prod'",
		},
		"the same name": {
			func(c *Config) { c.ID = "b" },
			"two Caddys call themselves b", "two Caddys call themselves b",
		},
		"no address": {
			func(c *Config) { c.Address = "" },
			"a hello needs an id, a boot id and an address", "a hello needs an id, a boot id and an address",
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := start(t, "a", "127.0.0.1:0", c.change), start(t, "b", "127.0.0.1:0")
			_, err := a.Dial(t.Context(), b.address, "b", "test")
			if err == nil || !strings.Contains(err.Error(), c.here) {
				t.Errorf("the dialing side says %v, want %s", err, c.here)
			}
			harness.Eventually(t, patience, func() bool { return strings.Contains(b.log.String(), c.there) },
				"the accepting side logs %s", c.there)
		})
	}
}

func TestAnotherVersionIsRefusedWithWords(t *testing.T) {
	b := start(t, "b", "127.0.0.1:0")
	conn, in := speak(t, b.address)
	if err := sayHello(conn, Hello{Version: Version + 1, Cluster: "test", ID: "a", Boot: "1", Address: "127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	if h, err := hearHello(in); err != nil || h.ID != "b" {
		t.Fatalf("the hello is %+v: %v", h, err)
	}
	const want = "the versions of the protocol differ: b has 2, a has 3; use the same Usher on all Caddys of a cluster"
	if h, err := hearHello(in); err != nil || h.Refused != want {
		t.Errorf("the verdict is %+v: %v", h, err)
	}
}

func TestRubbishEndsTheConnectionAndNothingElse(t *testing.T) {
	b := start(t, "b", "127.0.0.1:0")
	t.Run("no TLS", func(t *testing.T) {
		raw, err := net.Dial("tcp", b.address)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		fmt.Fprint(raw, "GET / HTTP/1.1\r\n\r\n")
		_, _ = io.Copy(io.Discard, raw)
		harness.Eventually(t, patience, func() bool { return strings.Contains(b.log.String(), "does not look like a TLS handshake") }, "the log says so")
	})
	t.Run("no hello", func(t *testing.T) {
		conn, in := speak(t, b.address)
		_, _ = conn.Write(appendFrame(nil, []byte("hello")))
		_, _ = io.Copy(io.Discard, in)
		harness.Eventually(t, patience, func() bool { return strings.Contains(b.log.String(), "does not speak Usher's protocol") }, "the log says so")
	})
	t.Run("a frame of 4 GiB", func(t *testing.T) {
		conn, in := speak(t, b.address)
		_ = sayHello(conn, Hello{Version: Version, Cluster: "test", ID: "a", Boot: "1", Address: "127.0.0.1:1"})
		_ = sayHello(conn, Hello{})
		_, _ = hearHello(in)
		there := <-b.came
		_, _ = conn.Write([]byte{255, 255, 255, 255})
		if _, err := there.Receive(); err == nil || !strings.Contains(err.Error(), "a frame of 4294967295 bytes is announced") {
			t.Errorf("the error is %v", err)
		}
	})
	a := start(t, "a", "127.0.0.1:0")
	a.dial(t, b)
}

func TestAStrangerIsLoggedOnce(t *testing.T) {
	other, _ := FromSecret("another secret, long enough")
	a, b := start(t, "a", "127.0.0.1:0", func(c *Config) { c.Identity = other }), start(t, "b", "127.0.0.1:0")
	for range 5 {
		if _, err := a.Dial(t.Context(), b.address, "b", "test"); err == nil {
			t.Fatal("a stranger was let in")
		}
	}
	b.Close()
	if n := strings.Count(b.log.String(), "was refused"); n != 1 {
		t.Errorf("the log has it %d times:\n%s", n, b.log)
	}
}

func TestAnotherMemberAtTheAddressIsAnError(t *testing.T) {
	a, b := start(t, "a", "127.0.0.1:0"), start(t, "b", "127.0.0.1:0")
	_, err := a.Dial(t.Context(), b.address, "c", "test")
	if err == nil || !strings.Contains(err.Error(), "of member c is answered by member b: check 'advertise' of both") {
		t.Errorf("the error is %v", err)
	}
}

func TestADialEndsWithItsContext(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	a := start(t, "a", "127.0.0.1:0")
	ctx, cancel := context.WithCancel(t.Context())
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := silent.Accept(); err == nil {
			accepted <- c
			cancel()
		}
	}()
	if _, err := a.Dial(ctx, silent.Addr().String(), "b", "test"); err == nil {
		t.Error("it connected to what does not speak")
	}
	(<-accepted).Close()
}

// BenchmarkRoundTrip is a frame of 32 bytes to another Caddy and back.
func BenchmarkRoundTrip(b *testing.B) {
	x, y := start(b, "x", "127.0.0.1:0"), start(b, "y", "127.0.0.1:0")
	here, there := x.dial(b, y)
	go func() {
		for {
			got, err := there.Receive()
			if err != nil || there.Send(got) != nil {
				return
			}
		}
	}()
	frame := make([]byte, 32)
	for b.Loop() {
		if err := here.Send(frame); err != nil {
			b.Fatal(err)
		}
		if _, err := here.Receive(); err != nil && !errors.Is(err, ErrClosed) {
			b.Fatal(err)
		}
	}
}

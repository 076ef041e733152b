package load

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// patience bounds every wait for an answer.
const patience = 30 * time.Second

// Conn is a connection that speaks just enough HTTP/1.1 to ask for the same
// thing again and again, at a fraction of what net/http costs: the machine
// is shared with what is measured.
type Conn struct {
	conn    net.Conn
	reader  *bufio.Reader
	request []byte
	want    []byte // how the answer begins
}

// Dial connects to an address to ask for a path.
func Dial(address, path string) (*Conn, error) {
	return dial(address, "GET "+path+" HTTP/1.1\r\nHost: "+address+"\r\nUser-Agent: bench\r\n\r\n", http.StatusOK)
}

func dial(address, request string, status int) (*Conn, error) {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return nil, err
	}
	return &Conn{
		conn:    conn,
		reader:  bufio.NewReaderSize(conn, 1<<10),
		request: []byte(request),
		want:    fmt.Appendf(nil, "HTTP/1.1 %d ", status),
	}, nil
}

// Store makes connections to an address that hand in a request with a body of so
// many bytes, again and again, to be executed later.
func Store(address, path string, size int) func() (Asker, error) {
	request := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nPrefer: respond-async\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s",
		path, address, size, strings.Repeat("b", size))
	return func() (Asker, error) { return dial(address, request, http.StatusAccepted) }
}

// HTTP1 makes connections to an address that ask for a path.
func HTTP1(address, path string) func() (Asker, error) {
	return func() (Asker, error) { return Dial(address, path) }
}

// Ask implements Asker.
func (c *Conn) Ask() error {
	if err := c.Send(); err != nil {
		return err
	}
	return c.Receive(patience)
}

// Send sends the request.
func (c *Conn) Send() error {
	_, err := c.conn.Write(c.request)
	return err
}

var lengthField = []byte("content-length:")

// Receive reads the answer, which must have the expected status and a length.
func (c *Conn) Receive(timeout time.Duration) error {
	if err := c.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	status, err := c.reader.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(status, c.want) {
		return fmt.Errorf("answer %q", bytes.TrimSpace(status))
	}
	length := -1
	for {
		line, err := c.reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) <= 2 {
			break
		}
		if len(line) > len(lengthField) && bytes.EqualFold(line[:len(lengthField)], lengthField) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[len(lengthField):]))); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return fmt.Errorf("an answer without a length")
	}
	_, err = c.reader.Discard(length)
	return err
}

// Close implements Asker.
func (c *Conn) Close() { c.conn.Close() }

// h2 is one connection of HTTP/2 without TLS.
type h2 struct {
	transport *http.Transport
	request   *http.Request
}

// H2 makes connections of HTTP/2 to an address that ask for a path: each its
// own, with one stream at a time.
func H2(address, path string) func() (Asker, error) {
	return func() (Asker, error) {
		protocols := new(http.Protocols)
		protocols.SetUnencryptedHTTP2(true)
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+address+path, nil)
		if err != nil {
			return nil, err
		}
		return &h2{&http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{}, DisableCompression: true}, req}, nil
	}
}

// Ask implements Asker.
func (c *h2) Ask() error {
	resp, err := c.transport.RoundTrip(c.request)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answer %s", resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// Close implements Asker.
func (c *h2) Close() { c.transport.CloseIdleConnections() }

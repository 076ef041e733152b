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
}

// Dial connects to an address to ask for a path.
func Dial(address, path string) (*Conn, error) {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return nil, err
	}
	return &Conn{
		conn:    conn,
		reader:  bufio.NewReaderSize(conn, 1<<10),
		request: []byte("GET " + path + " HTTP/1.1\r\nHost: " + address + "\r\nUser-Agent: bench\r\n\r\n"),
	}, nil
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

// Receive reads the answer, which must be a 200 with a length.
func (c *Conn) Receive(timeout time.Duration) error {
	if err := c.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	status, err := c.reader.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
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

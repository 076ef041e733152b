package caddymodule

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawH2 is a connection of HTTP/2 that shows each frame.
type rawH2 struct {
	t      *testing.T
	conn   net.Conn
	framer *http2.Framer
	header bytes.Buffer
	enc    *hpack.Encoder
}

// dialH2 serves the configuration over cleartext HTTP/2 and connects to it.
func (c *config) dialH2() *rawH2 {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	server := &http.Server{Handler: c.server, Protocols: new(http.Protocols), ReadHeaderTimeout: patience}
	server.Protocols.SetUnencryptedHTTP2(true)
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	c.t.Cleanup(func() { _ = server.Close(); <-served })
	conn, err := new(net.Dialer).DialContext(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * patience))
	r := &rawH2{t: c.t, conn: conn, framer: http2.NewFramer(conn, conn)}
	r.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	r.enc = hpack.NewEncoder(&r.header)
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		c.t.Fatal(err)
	}
	if err := r.framer.WriteSettings(); err != nil {
		c.t.Fatal(err)
	}
	return r
}

// send opens a stream.
func (r *rawH2) send(stream uint32, end bool, fields ...string) {
	r.t.Helper()
	r.header.Reset()
	for k := 0; k+1 < len(fields); k += 2 {
		if err := r.enc.WriteField(hpack.HeaderField{Name: fields[k], Value: fields[k+1]}); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := r.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: bytes.Clone(r.header.Bytes()), EndStream: end, EndHeaders: true,
	}); err != nil {
		r.t.Fatal(err)
	}
}

// frames reads the frames of a stream until enough says so.
func (r *rawH2) frames(stream uint32, enough func(http2.Frame) bool) []http2.Frame {
	r.t.Helper()
	var all []http2.Frame
	for {
		f, err := r.framer.ReadFrame()
		if err != nil {
			r.t.Fatalf("after %v: %v", all, err)
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = r.framer.WriteSettingsAck()
			}
		case *http2.GoAwayFrame:
			r.t.Fatalf("the server goes away: %v %s", f.ErrCode, f.DebugData())
		}
		if f.Header().StreamID != stream {
			continue
		}
		all = append(all, f)
		if enough(f) {
			return all
		}
	}
}

// fieldsOf returns the fields of a HEADERS frame.
func fieldsOf(f *http2.MetaHeadersFrame) map[string][]string {
	all := make(map[string][]string)
	for _, h := range f.Fields {
		all[h.Name] = append(all[h.Name], h.Value)
	}
	return all
}

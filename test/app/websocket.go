package main

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// websocket answers the opening handshake of RFC 6455 and then sends every
// message back. It knows only what tests need: whole text and binary frames
// of at most 64 KiB, and close.
func websocket(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Sec-WebSocket-Key")
	if r.Header.Get("Upgrade") != "websocket" || key == "" {
		http.Error(w, "not a websocket handshake", http.StatusUpgradeRequired)
		return
	}
	// A body comes before the first frame.
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(buf, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	_ = w.Header().Write(buf)
	_, _ = buf.WriteString("\r\n")
	if buf.Flush() != nil {
		return
	}
	for {
		opcode, payload, err := readFrame(buf.Reader)
		if err != nil {
			return
		}
		frame := binary.BigEndian.AppendUint16([]byte{0x80 | opcode, 126}, uint16(len(payload)))
		if len(payload) < 126 {
			frame = []byte{0x80 | opcode, byte(len(payload))}
		}
		if _, err := conn.Write(append(frame, payload...)); err != nil || opcode == 8 {
			return
		}
	}
}

// readFrame reads one masked frame.
func readFrame(r *bufio.Reader) (opcode byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := int(head[1] & 0x7f)
	switch size {
	case 126:
		var ext [2]byte
		if _, err := io.ReadFull(r, ext[:]); err != nil {
			return 0, nil, err
		}
		size = int(binary.BigEndian.Uint16(ext[:]))
	case 127:
		return 0, nil, errors.New("frame too large")
	}
	if head[1]&0x80 == 0 {
		return 0, nil, errors.New("frame of a client without a mask")
	}
	var mask [4]byte
	if _, err := io.ReadFull(r, mask[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, size)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, err
	}
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return head[0] & 0x0f, payload, nil
}

package harness

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
)

// A block is a run of neighbouring local ports that belongs to one Caddy for
// the time of a test. All lie below the range from which the kernel takes
// the ports of outgoing connections, so nothing takes them by chance.
type block struct {
	claim net.Listener // on the first port: what other test processes see
	base  int
}

const (
	blockSize   = 64
	portAdmin   = 1
	portHTTP    = 2
	portTLS     = 3
	portSpare   = 4 // a second site, or a foreign listener
	portProcess = 8 // from here to the end: for processes
)

var blocks struct {
	sync.Mutex
	next int
}

// claimBlock finds a free block. A listener on its first port is the claim,
// so several test processes on one machine do not meet.
func claimBlock() (*block, error) {
	blocks.Lock()
	defer blocks.Unlock()
	if blocks.next == 0 {
		// Start in different places, so that processes do not run after
		// each other through the ports that were just left.
		blocks.next = os.Getpid() % 250
	}
	for range 250 {
		base := 10000 + blocks.next%250*blockSize
		blocks.next++
		if base >= 20992 {
			base += 5120 // leave out the default range of Usher itself
		}
		claim, err := net.Listen("tcp", local(base))
		if err != nil {
			continue
		}
		if free(base+1, base+blockSize-1) {
			return &block{claim: claim, base: base}, nil
		}
		claim.Close()
	}
	return nil, errors.New("no free block of local ports")
}

func (b *block) release() { b.claim.Close() }

func free(from, to int) bool {
	for port := from; port <= to; port++ {
		ln, err := net.Listen("tcp", local(port))
		if err != nil {
			return false
		}
		ln.Close()
	}
	return true
}

// Listening tells whether a socket listens on an address of 127.0.0.1.
func Listening(addr string) bool {
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	return listeners(n) > 0
}

// listeners counts the sockets that listen on a port of 127.0.0.1.
func listeners(port int) int {
	table, _ := os.ReadFile("/proc/net/tcp")
	n := 0
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		const listen = "0A"
		if len(fields) > 3 && fields[1] == fmt.Sprintf("0100007F:%04X", port) && fields[3] == listen {
			n++
		}
	}
	return n
}

// ListeningIn returns the ports of a range of 127.0.0.1 on which a socket
// listens.
func ListeningIn(from, to int) []int {
	table, _ := os.ReadFile("/proc/net/tcp")
	var ports []int
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		const listen = "0A"
		if len(fields) < 4 || fields[3] != listen {
			continue
		}
		hex, ok := strings.CutPrefix(fields[1], "0100007F:")
		port, err := strconv.ParseUint(hex, 16, 16)
		if ok && err == nil && from <= int(port) && int(port) <= to {
			ports = append(ports, int(port))
		}
	}
	return ports
}

func local(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

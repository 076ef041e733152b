// Command origin is what stands behind the proxies of the benchmark: a server
// that does next to nothing, so that what is measured is the proxy.
//
//	origin <host> <first port> <number of ports>
//
// It answers GET requests of HTTP/1.1 without bodies: /slow/<duration> after
// that time, /never when a line comes on the standard input, and everything
// else at once. It ends with its standard input.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

var answer = []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 14\r\n\r\nHello, world!\n")

// gate lets those go that ask for /never.
type gate struct {
	mu   sync.Mutex
	open chan struct{}
}

func (g *gate) wait() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

// swing opens the gate for waiting requests, and shuts it for later ones.
func (g *gate) swing() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.open)
	g.open = make(chan struct{})
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 4 {
		log.Fatal("usage: origin <host> <first port> <number of ports>")
	}
	first, err1 := strconv.Atoi(os.Args[2])
	n, err2 := strconv.Atoi(os.Args[3])
	if err1 != nil || err2 != nil {
		log.Fatal("the ports must be numbers")
	}
	g := &gate{open: make(chan struct{})}
	for i := range n {
		ln, err := net.Listen("tcp", net.JoinHostPort(os.Args[1], strconv.Itoa(first+i)))
		if err != nil {
			log.Fatal(err)
		}
		go accept(ln, g)
	}
	fmt.Println("listening")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		g.swing()
	}
}

func accept(ln net.Listener, g *gate) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			log.Print(err)
			return
		}
		go serve(conn, g)
	}
}

func serve(conn net.Conn, g *gate) {
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 4<<10)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		_, path, _ := bytes.Cut(line, []byte(" "))
		path, _, _ = bytes.Cut(path, []byte(" "))
		var pause time.Duration
		never := false
		if len(path) > 1 {
			// Not for the plain path: the copy is for the others.
			where := string(path)
			never = where == "/never"
			if d, slow := strings.CutPrefix(where, "/slow/"); slow {
				pause, _ = time.ParseDuration(d)
			}
		}
		for len(line) > 2 {
			if line, err = r.ReadSlice('\n'); err != nil {
				return
			}
		}
		switch {
		case never:
			<-g.wait()
		case pause > 0:
			time.Sleep(pause)
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

//go:build linux && amd64

// Command otherclock is the Caddy of the tests, in a machine whose wall clock is
// wrong: it is ahead by what the file says that OTHERCLOCK names, a duration
// such as 1h or -1h, and jumps when the file changes. The monotonic clock is
// right.
//
// Go asks the kernel for the time by a function that the kernel maps into each
// process. This program puts one of its own in front of it, which takes
//
//	go build -ldflags=-checklinkname=0
package main

import (
	"os"
	"sync/atomic"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-usher/usher"
)

// ahead is how many seconds the wall clock is ahead.
var ahead atomic.Int64

// wrong stands in for the kernel's clock_gettime, which original is.
func wrong() //nolint:unused // install uses it

var original uintptr //nolint:unused // wrong uses it

// install has Go call wrong from now on.
func install()

func main() {
	read := func() {
		text, _ := os.ReadFile(os.Getenv("OTHERCLOCK"))
		if d, err := time.ParseDuration(string(text)); err == nil {
			ahead.Store(int64(d / time.Second))
		}
	}
	read()
	install()
	go func() {
		for {
			time.Sleep(20 * time.Millisecond)
			read()
		}
	}()
	caddycmd.Main()
}

//go:build unix

package process

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler"
)

// roles are what the test binary can be as an instance.
var roles = map[string]func(args []string) int{
	// serves HTTP at its own port
	"serve": func([]string) int {
		return serveOn(net.Listen("tcp", net.JoinHostPort(os.Getenv("HOST"), os.Getenv("PORT"))))
	},

	// serves HTTP at a socket, after a pause
	"serve-unix": func(args []string) int {
		if len(args) > 1 {
			pause, _ := time.ParseDuration(args[1])
			time.Sleep(pause)
		}
		return serveOn(net.Listen("unix", args[0]))
	},

	// takes the listener of systemd's protocol, and accepts nothing before
	// the file exists
	"serve-fd": func(args []string) int {
		if os.Getenv("LISTEN_PID") != fmt.Sprint(os.Getpid()) || os.Getenv("LISTEN_FDS") != "1" || os.Getenv("LISTEN_FDNAMES") != os.Getenv("USHER_SERVICE") {
			fmt.Println("wrong variables:", strings.Join(os.Environ(), " "))
			return 3
		}
		for _, err := os.Stat(args[0]); err != nil; _, err = os.Stat(args[0]) {
			time.Sleep(time.Millisecond)
		}
		return serveOn(net.FileListener(os.NewFile(3, "listener")))
	},

	// does not mind TERM
	"stubborn": func([]string) int {
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		select {}
	},

	// writes its environment
	"environment": func([]string) int {
		fmt.Println(strings.Join(os.Environ(), "\n"))
		select {}
	},

	// a Caddy that starts one instance and waits to be killed
	"caddy": func(args []string) int {
		dataDir, keep, script := args[0], args[1] == "keep", args[2]
		b := shell(script)
		if len(args) > 3 {
			b.User = args[3]
		}
		if err := b.Provision(caddy.Context{}); err != nil {
			fmt.Println(err)
			return 1
		}
		s, err := b.Open(scaler.Env{
			Service: "web", Revision: "r1", Logger: quiet,
			Host: &scaler.Host{DataDir: dataDir, Local: func() scaler.LocalOptions {
				return scaler.LocalOptions{PortFrom: 26000, PortTo: 26999, Keep: keep}
			}},
			Report: func(scaler.Report) {},
		})
		if err == nil {
			err = s.Scale(context.Background(), scaler.Order{Instances: 1})
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println("started", s.(*runner).instances[0].child.pid)
		select {}
	},
}

func serveOn(ln net.Listener, err error) int {
	if err != nil {
		fmt.Println(err)
		return 1
	}
	_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	return 0
}

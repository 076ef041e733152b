// Command app is the instance that the black-box tests let Usher start. It
// is a small web server that can be told to behave badly in every way in
// which a real one does, and it keeps a journal from which a test learns
// afterwards what happened inside: how many instances started, how many
// requests were inside at once, and in which order they came.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// untrusted returns a configuration with a certificate of no known authority.
func untrusted() *tls.Config {
	srv := httptest.NewTLSServer(nil)
	defer srv.Close()
	return &tls.Config{Certificates: srv.TLS.Certificates}
}

// options are what the command line asks of this instance.
type options struct {
	addr          string
	socket        string
	gate          string
	delay         time.Duration
	exitCode      int
	exitAfter     time.Duration
	exitWhile     string
	slowWhile     string
	neverListen   bool
	status        int
	failHealth    string
	ignoreTerm    bool
	fork          bool
	daemonize     bool
	dieAfterReady time.Duration
	tls           bool
	print         string
	printLines    int
}

func parseOptions() options {
	var o options
	flag.StringVar(&o.addr, "addr", "", "address to listen on; default $HOST:$PORT")
	flag.StringVar(&o.socket, "socket", "", "unix socket to listen on")
	flag.StringVar(&o.gate, "gate", "", "listen only once this file exists")
	flag.DurationVar(&o.delay, "delay", 0, "pause before listening")
	flag.IntVar(&o.exitCode, "exit-code", -1, "exit with this status instead of listening")
	flag.DurationVar(&o.exitAfter, "exit-after", 0, "pause before -exit-code")
	flag.StringVar(&o.exitWhile, "exit-while", "", "exit instead of listening while this file exists, with the status that stands in it, or 3")
	flag.StringVar(&o.slowWhile, "slow-while", "", "answer every request half a second later while this file exists")
	flag.BoolVar(&o.neverListen, "never-listen", false, "run, but never listen")
	flag.IntVar(&o.status, "status", 0, "answer every request with this status")
	flag.StringVar(&o.failHealth, "fail-health", "", "answer /healthz with 503 until this file exists")
	flag.BoolVar(&o.ignoreTerm, "ignore-term", false, "ignore SIGTERM")
	flag.BoolVar(&o.fork, "fork", false, "start a child in a session of its own that outlives this process")
	flag.BoolVar(&o.daemonize, "daemonize", false, "leave the serving to a child in a session of its own, and exit")
	flag.DurationVar(&o.dieAfterReady, "die-after-ready", 0, "exit with status 4 so long after the start of listening")
	flag.BoolVar(&o.tls, "tls", false, "speak TLS, with an untrusted certificate")
	flag.StringVar(&o.print, "print", "", "line to write to the standard output at the start")
	flag.IntVar(&o.printLines, "print-lines", 1, "how often to write the line of -print")
	flag.Parse()
	return o
}

func main() {
	log.SetFlags(0)
	o := parseOptions()
	journal.open()
	journal.write(entry{Event: "start", Mark: os.Getenv("APP_MARK")})
	for range o.printLines {
		if o.print != "" {
			fmt.Println(o.print)
		}
	}
	os.Exit(run(o))
}

// run is the life of the instance; it returns its exit status.
func run(o options) int {
	terminated := watchSignals(o.ignoreTerm)

	if o.fork {
		spawn("-never-listen")
	}
	if o.daemonize {
		spawn(withoutFlag(os.Args[1:], "-daemonize")...)
		return 0
	}
	if o.exitWhile != "" {
		if _, err := os.Stat(o.exitWhile); err == nil {
			text, _ := os.ReadFile(o.exitWhile)
			if code, err := strconv.Atoi(string(text)); err == nil {
				return exit(code)
			}
			return exit(3)
		}
	}
	if o.exitCode >= 0 {
		return exitAfter(terminated, o.exitAfter, o.exitCode)
	}
	if !pause(terminated, o.delay) || !await(terminated, o.gate) {
		return exit(0)
	}
	if o.neverListen {
		<-terminated
		return exit(0)
	}

	ln, err := listen(o)
	if err != nil {
		log.Print(err)
		return exit(2)
	}
	if o.tls {
		ln = tls.NewListener(ln, untrusted())
	}
	deaf := make(chan struct{})
	deafen := sync.OnceFunc(func() {
		close(deaf)
		ln.Close()
	})
	misbehaveOnSignals(deafen)
	srv := &http.Server{Handler: newHandler(o, deafen)}
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	journal.write(entry{Event: "listen", Path: ln.Addr().String()})
	if o.dieAfterReady > 0 {
		time.AfterFunc(o.dieAfterReady, func() { os.Exit(exit(4)) })
	}

	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	select {
	case err := <-served:
		select {
		case <-deaf:
			// It runs on, and refuses connections.
			<-terminated
		default:
			log.Print(err)
			return exit(1)
		}
	case <-terminated:
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		return exit(1)
	}
	return exit(0)
}

// listen opens the socket that the surroundings ask for: a passed one, a
// unix socket, or a TCP port.
func listen(o options) (net.Listener, error) {
	if os.Getenv("LISTEN_FDS") != "" {
		if got, want := os.Getenv("LISTEN_PID"), strconv.Itoa(os.Getpid()); got != want {
			return nil, fmt.Errorf("LISTEN_PID is %q, and this is process %s", got, want)
		}
		return net.FileListener(os.NewFile(3, "LISTEN_FD"))
	}
	if o.socket != "" {
		return net.Listen("unix", o.socket)
	}
	addr := o.addr
	if addr == "" {
		if os.Getenv("PORT") == "" {
			return nil, errors.New("nothing to listen on: no PORT, no LISTEN_FDS, no -socket")
		}
		addr = net.JoinHostPort(os.Getenv("HOST"), os.Getenv("PORT"))
	}
	return net.Listen("tcp", addr)
}

// watchSignals returns a channel that is closed at SIGTERM or SIGINT.
func watchSignals(ignore bool) <-chan struct{} {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	terminated := make(chan struct{})
	go func() {
		done := false
		for sig := range signals {
			journal.write(entry{Event: "term", Path: sig.String()})
			if !ignore && !done {
				done = true
				close(terminated)
			}
		}
	}()
	return terminated
}

// misbehaveOnSignals lets a test choose, by its pid, the instance that goes
// wrong: USR1 closes its listener, so that it refuses connections while it
// answers on those that it has, and USR2 makes it exit with status 0 at once.
func misbehaveOnSignals(deafen func()) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		for sig := range signals {
			if sig == syscall.SIGUSR2 {
				os.Exit(exit(0))
			}
			journal.write(entry{Event: "deaf"})
			deafen()
		}
	}()
}

// spawn starts a child of this program that leaves the process group and the
// session. It keeps the standard output, as careless daemons do.
func spawn(args ...string) {
	self, err := os.Executable()
	if err != nil {
		log.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		log.Fatal(err)
	}
	journal.write(entry{Event: "fork", Path: strconv.Itoa(cmd.Process.Pid)})
}

func withoutFlag(args []string, flag string) []string {
	var kept []string
	for _, arg := range args {
		if arg != flag {
			kept = append(kept, arg)
		}
	}
	return kept
}

func exit(code int) int {
	journal.write(entry{Event: "exit", Status: code})
	return code
}

func exitAfter(terminated <-chan struct{}, d time.Duration, code int) int {
	if !pause(terminated, d) {
		return exit(0)
	}
	return exit(code)
}

// pause waits for d; it returns false when the process is told to end.
func pause(terminated <-chan struct{}, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	select {
	case <-time.After(d):
		return true
	case <-terminated:
		return false
	}
}

// await waits until the file exists; it returns false when the process is
// told to end. A test opens such a gate when all is set, so that no test
// has to guess how long something takes.
func await(terminated <-chan struct{}, file string) bool {
	if file == "" {
		return true
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(file); err == nil {
			return true
		}
		select {
		case <-tick.C:
		case <-terminated:
			return false
		}
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const host = "127.0.0.1"

func at(port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// firstPort is where ports are looked for: below those that the kernel gives
// to outgoing connections, so that no client takes one by chance.
const (
	firstPort = 2048
	lastPort  = 9999
)

// freePorts finds n neighbouring ports without a listener. Each call
// begins behind what the last one has found.
func (b *bench) freePorts(n int) (int, error) {
	if b.nextPort == 0 {
		b.nextPort = firstPort + os.Getpid()%16*64
	}
	for range lastPort - firstPort {
		base := b.nextPort
		if base+n > lastPort {
			base = firstPort
		}
		b.nextPort = base + n
		if allFree(base, n) {
			return base, nil
		}
	}
	return 0, fmt.Errorf("no %d free ports in a row between %d and %d", n, firstPort, lastPort)
}

func allFree(base, n int) bool {
	for port := base; port < base+n; port++ {
		ln, err := net.Listen("tcp", at(port))
		if err != nil {
			return false
		}
		ln.Close()
	}
	return true
}

// A process is one that the benchmark has started.
type process struct {
	cmd   *exec.Cmd
	input io.WriteCloser
	log   string // the file with what it writes
	done  chan struct{}
}

// start starts a program. It is stopped at the end of the part at the latest.
func (b *bench) start(name, path string, args ...string) (*process, error) {
	home, err := os.MkdirTemp(b.dir, name+"-*")
	if err != nil {
		return nil, err
	}
	return b.startIn(home, endWithParent(), name, path, args...)
}

// startIn starts a program that keeps what it has in a given directory.
func (b *bench) startIn(home string, attr *syscall.SysProcAttr, name, path string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(path, args...), done: make(chan struct{})}
	out, err := os.Create(filepath.Join(home, "log"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.log = out.Name()
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+home, "XDG_CONFIG_HOME="+home, "HOME="+home)
	p.cmd.SysProcAttr = attr
	if p.input, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
	}()
	b.running = append(b.running, p)
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop asks the process to end, and ends it if it does not.
func (p *process) stop() {
	p.input.Close()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(15 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// kill ends the process at once.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// output is the end of what the process wrote.
func (p *process) output() string {
	data, _ := os.ReadFile(p.log)
	return string(data[max(0, len(data)-2000):])
}

// await polls until the condition holds.
func await(timeout time.Duration, what string, cond func() bool) error {
	for deadline := time.Now().Add(timeout); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %s", timeout, what)
		}
	}
	return nil
}

func answers(address string) bool {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// A server is a proxy under test, at an address.
type server struct {
	*process
	address string
	admin   string // of a Caddy
}

// caddy starts a Caddy with a site in the syntax of a Caddyfile. Global
// options may be given.
func (b *bench) caddy(site, global string) (*server, error) {
	home, err := os.MkdirTemp(b.dir, "caddy-*")
	if err != nil {
		return nil, err
	}
	return b.caddyIn(home, b.binaries.caddy, site, global)
}

// caddyIn starts a Caddy, of that program, with what is in a directory of its own.
func (b *bench) caddyIn(home, program, site, global string) (*server, error) {
	port, err := b.freePorts(2)
	if err != nil {
		return nil, err
	}
	s := &server{address: at(port), admin: at(port + 1)}
	file := filepath.Join(b.dir, fmt.Sprintf("Caddyfile-%d", port))
	if err := os.WriteFile(file, []byte(s.caddyfile(site, global)), 0o644); err != nil {
		return nil, err
	}
	s.process, err = b.startIn(home, endWithParent(), "caddy", program, "run", "--config", file, "--adapter", "caddyfile")
	if err != nil {
		return nil, err
	}
	if err := await(30*time.Second, "caddy listens", func() bool { return s.ended() || answers(s.address) }); err != nil || s.ended() {
		return nil, fmt.Errorf("caddy does not come up: %w\n%s", cmpErr(err), s.output())
	}
	return s, nil
}

func (s *server) caddyfile(site, global string) string {
	return fmt.Sprintf("{\nadmin %s\nauto_https off\ngrace_period 1s\nlog default {\nlevel WARN\n}\nservers {\nprotocols h1 h2c\n}\n%s\n}\nhttp://%s {\n%s\n}\n",
		s.admin, global, s.address, site)
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func cmpErr(err error) error {
	if err == nil {
		return errors.New("it has ended")
	}
	return err
}

// haproxy starts HAProxy before the given servers.
func (b *bench) haproxy(upstreams []string, perServer int) (*server, error) {
	port, err := b.freePorts(1)
	if err != nil {
		return nil, err
	}
	s := &server{address: at(port)}
	var text strings.Builder
	fmt.Fprintf(&text, "global\n maxconn 9500\n nbthread %d\ndefaults\n mode http\n timeout connect 5s\n timeout client 600s\n timeout server 600s\n timeout queue 600s\n http-reuse always\n balance leastconn\n", b.cores)
	fmt.Fprintf(&text, "frontend f\n bind %s\n default_backend b\nbackend b\n fullconn 9500\n", s.address)
	for i, u := range upstreams {
		fmt.Fprintf(&text, " server s%d %s", i, u)
		if perServer > 0 {
			fmt.Fprintf(&text, " maxconn %d", perServer)
		}
		text.WriteString("\n")
	}
	file := filepath.Join(b.dir, fmt.Sprintf("haproxy-%d.cfg", port))
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		return nil, err
	}
	if s.process, err = b.start("haproxy", b.binaries.haproxy, "-db", "-f", file); err != nil {
		return nil, err
	}
	if err := await(10*time.Second, "haproxy listens", func() bool { return s.ended() || answers(s.address) }); err != nil || s.ended() {
		return nil, fmt.Errorf("haproxy does not come up: %w\n%s", cmpErr(err), s.output())
	}
	return s, nil
}

// An origin is what the proxies stand before.
type origin struct {
	*process
	port, n int
}

// origin starts a server on n ports.
func (b *bench) origin(n int) (*origin, error) {
	port, err := b.freePorts(n)
	if err != nil {
		return nil, err
	}
	p, err := b.start("origin", b.binaries.origin, host, strconv.Itoa(port), strconv.Itoa(n))
	if err != nil {
		return nil, err
	}
	o := &origin{p, port, n}
	return o, await(10*time.Second, "the origin listens", func() bool { return answers(at(port + n - 1)) })
}

// release answers those that ask for /never.
func (o *origin) release() error {
	_, err := io.WriteString(o.input, "\n")
	return err
}

func (o *origin) addresses() []string {
	var all []string
	for i := range o.n {
		all = append(all, at(o.port+i))
	}
	return all
}

// askAdmin makes a call of Caddy's admin API.
func (s *server) askAdmin(method, path, kind string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.admin+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
		// The same configuration is loaded all the same.
		req.Header.Set("Cache-Control", "must-revalidate")
	}
	// A reload replaces the admin server, and with it its connections.
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(answer))
	}
	return answer, err
}

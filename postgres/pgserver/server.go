//go:build linux

// Package pgserver runs real PostgreSQL servers for tests: each on a port of the
// loopback and in a directory of its own, and no longer than the test. Debian has
// the programs in its package postgresql.
//
// USHER_TEST_POSTGRES=required makes a test fail where there is no PostgreSQL,
// instead of skipping it.
package pgserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/caddy-usher/usher/test/harness"
)

const (
	variable = "USHER_TEST_POSTGRES"
	required = "required"
)

// The first user of a server, who may do everything, and its password.
const (
	User     = "root of the database"
	Password = "s3cret/of:the@database"
)

// soon is how long a test waits for a server.
var soon = harness.Slow(30 * time.Second)

// A Server is one PostgreSQL.
type Server struct {
	// Address is where it listens, as host:port.
	Address string

	t       testing.TB
	program string
	args    []string
	log     string
	disk    string // where it is mounted; empty without
	as      *syscall.Credential

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has ended
}

// Options of a server.
type Options struct {
	// Settings are those of postgresql.conf, such as fsync=off.
	Settings []string

	// Disk is the size in bytes of a disk of its own for the data, which Fill fills. Its
	// log of transactions is on another one. The test is skipped if it may mount no disk.
	// 0: there is none.
	Disk int64
}

// Start starts a server, or skips the test if there is no PostgreSQL. It has ended
// when the test has.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	programs, err := find()
	switch {
	case err == nil:
	case os.Getenv(variable) == required:
		t.Fatal(err)
	default:
		t.Skipf("no PostgreSQL is installed (Debian: postgresql): %v", err)
	}
	// The directories of the test belong to its user alone.
	dir, err := os.MkdirTemp("", "usher-postgres-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &Server{t: t, program: filepath.Join(programs, "postgres"), log: filepath.Join(dir, "log")}
	if s.as, err = other(); err != nil {
		t.Fatal(err)
	}
	if s.as != nil {
		if err := os.Chown(dir, int(s.as.Uid), int(s.as.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	s.Address = claim(t)
	data := filepath.Join(dir, "data")
	var more []string
	if o.Disk > 0 {
		s.mount(filepath.Join(dir, "disk"), o.Disk)
		data = filepath.Join(s.disk, "data")
		more = []string{"--waldir", filepath.Join(dir, "wal")}
	}
	s.initialize(filepath.Join(programs, "initdb"), dir, data, more...)
	_, port, _ := net.SplitHostPort(s.Address)
	s.args = []string{"-D", data}
	for _, setting := range append([]string{
		"listen_addresses=127.0.0.1", "port=" + port, "unix_socket_directories=", "max_connections=60",
		"shared_buffers=32MB", "max_wal_size=256MB", "dynamic_shared_memory_type=mmap",
	}, o.Settings...) {
		s.args = append(s.args, "-c", setting)
	}
	t.Cleanup(s.Stop)
	s.Start()
	return s
}

// find returns the directory of the programs of the server. They are in no path of
// Debian's.
func find() (string, error) {
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path), nil
		}
	}
	all, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(all) == 0 {
		return "", exec.ErrNotFound
	}
	return filepath.Dir(slices.Max(all)), nil
}

// other is who runs the server, if the test runs as root: PostgreSQL refuses that.
func other() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("there is no user postgres or nobody to run PostgreSQL")
}

// mount makes a disk that is full when so many bytes are on it.
func (s *Server) mount(dir string, size int64) {
	s.t.Helper()
	if s.as == nil {
		s.t.Skip("only root may mount a small disk for the data of PostgreSQL")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	options := fmt.Sprintf("size=%d,mode=0700,uid=%d,gid=%d", size, s.as.Uid, s.as.Gid)
	switch err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); {
	case errors.Is(err, syscall.EPERM):
		s.t.Skipf("this root may not mount a small disk for the data of PostgreSQL: %v", err)
	case err != nil:
		s.t.Fatal(err)
	}
	s.disk = dir
	s.t.Cleanup(func() {
		// The server has ended by then.
		if err := syscall.Unmount(dir, 0); err != nil {
			s.t.Error(err)
		}
	})
}

// Fill fills the disk, but for so many bytes. Empty takes that back.
func (s *Server) Fill(left int64) {
	s.t.Helper()
	var now syscall.Statfs_t
	if err := syscall.Statfs(s.disk, &now); err != nil {
		s.t.Fatal(err)
	}
	f, err := os.Create(s.filler())
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if size := int64(now.Bavail)*now.Bsize - left; size > 0 {
		if err := syscall.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
			s.t.Fatal(err)
		}
	}
}

// Empty makes room on the disk again.
func (s *Server) Empty() {
	s.t.Helper()
	if err := os.Remove(s.filler()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) filler() string { return filepath.Join(s.disk, "filler") }

func (s *Server) initialize(program, dir, data string, more ...string) {
	s.t.Helper()
	secret := filepath.Join(dir, "password")
	if err := os.WriteFile(secret, []byte(Password), 0o644); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(program, "-D", data, "-U", User, "-A", "scram-sha-256", "--pwfile", secret, "-E", "UTF8", "--no-locale", "--no-sync")
	cmd.Args = append(cmd.Args, more...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as}
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("initdb: %v: %s", err, out)
	}
}

// claim returns a free address below the ports that the kernel takes for outgoing
// connections: a server that is started again finds its own free.
func claim(t testing.TB) string {
	t.Helper()
	for range 1000 {
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(31200+rand.IntN(1500)))
		if err != nil {
			continue
		}
		address := l.Addr().String()
		_ = l.Close()
		return address
	}
	t.Fatal("too few ports are free")
	return ""
}

// DSN leads to the server.
func (s *Server) DSN() string { return DSN(s.Address) }

// DSN leads to a server at another address, such as that of a proxy.
func DSN(address string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(User, Password), Host: address, Path: "postgres"}
	return u.String()
}

// Start starts the server again, with the data that it had, and returns when it is
// of use.
func (s *Server) Start() {
	s.t.Helper()
	s.launch()
	for end := time.Now().Add(soon); ; time.Sleep(20 * time.Millisecond) {
		err := s.try(`SELECT 1`)
		if err == nil {
			return
		}
		select {
		case <-s.ended:
		default:
			if time.Now().Before(end) {
				continue
			}
		}
		log, _ := os.ReadFile(s.log)
		s.t.Fatalf("PostgreSQL does not start: %v: %s", err, log)
	}
}

func (s *Server) launch() {
	s.t.Helper()
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(s.program, s.args...)
	cmd.Dir = filepath.Dir(s.log)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT, Credential: s.as}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		// The signal on the death of the parent belongs to the thread that forks.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.cmd, s.ended = cmd, ended
	s.mu.Unlock()
}

func (s *Server) try(sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, s.DSN())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(ctx) }()
	_, err = c.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// Exec executes SQL statements as the first user.
func (s *Server) Exec(sql string) {
	s.t.Helper()
	if err := s.try(sql); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

// Stop ends the server at once, as a crash does. What it had confirmed it has when
// it is started again. If it does not run, nothing happens.
func (s *Server) Stop() { s.end(syscall.SIGQUIT) }

// Shutdown ends the server in order: transactions are rolled back, and clients are
// told.
func (s *Server) Shutdown() { s.end(syscall.SIGINT) }

func (s *Server) end(signal syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	for _, p := range s.processes() {
		_ = p.Signal(syscall.SIGCONT) // it may be frozen
	}
	_ = s.cmd.Process.Signal(signal)
	select {
	case <-s.ended:
	case <-time.After(soon):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
	s.cmd = nil
}

// Freeze stops all processes of the server: connections stay, and nothing is
// answered.
func (s *Server) Freeze() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		s.t.Fatal("the server does not run")
	}
	// The first one forks the others.
	if err := harness.Freeze(s.cmd.Process); err != nil {
		s.t.Fatal(err)
	}
	children := s.processes()[1:]
	for _, p := range children {
		_ = p.Signal(syscall.SIGSTOP) // it may have ended
	}
	for _, p := range children {
		if !harness.WaitFor(soon, func() bool { return still(p) }) {
			s.t.Fatalf("process %d does not stand still", p.Pid)
		}
	}
}

// Thaw lets a frozen server go on.
func (s *Server) Thaw() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	all := s.processes()
	slices.Reverse(all)
	for _, p := range all {
		_ = harness.Thaw(p)
	}
}

// processes are those of the server, the first one first.
func (s *Server) processes() []*os.Process {
	all := []*os.Process{s.cmd.Process}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// The state and the parent follow the name, which is in brackets.
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest)
		if len(f) < 2 || f[1] != strconv.Itoa(s.cmd.Process.Pid) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if err != nil {
			continue
		}
		if p, err := os.FindProcess(pid); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// still reports whether a process stands still or has ended. The first process cannot
// be told of that while it stands still, too.
func still(p *os.Process) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid))
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "T") || strings.HasPrefix(state, "Z")
}

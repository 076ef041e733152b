//go:build linux

// Package etcdserver runs real etcd servers for tests: each on a port of the
// loopback and in a directory of its own, and no longer than the test. Debian
// has the program in its package etcd-server.
//
// USHER_TEST_ETCD=required makes a test fail where there is no etcd, instead of
// skipping it.
package etcdserver

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/addr"
	"github.com/caddy-usher/usher/test/harness"
)

const (
	variable = "USHER_TEST_ETCD"
	required = "required"
)

// soon is how long a test waits for a server.
var soon = harness.Slow(30 * time.Second)

// A Server is one etcd.
type Server struct {
	// Address is where clients connect to, as host:port.
	Address string

	// URL is the same with the scheme.
	URL string

	t       testing.TB
	program string
	args    []string
	data    string // a directory
	health  string // an address that says whether it is of use
	log     string

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has ended
}

// Options of a server.
type Options struct {
	// CertFile and KeyFile make it serve TLS. With ClientCAFile clients need a
	// certificate.
	CertFile, KeyFile, ClientCAFile string
}

// Start starts a server on its own, or skips the test if there is no etcd. It
// has ended when the test has.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	return StartCluster(t, 1, o)[0]
}

// StartCluster starts servers that are members of one cluster.
func StartCluster(t testing.TB, n int, o Options) []*Server {
	t.Helper()
	program, err := exec.LookPath("etcd")
	switch {
	case err == nil:
	case os.Getenv(variable) == required:
		t.Fatal(err)
	default:
		t.Skipf("no etcd is installed (Debian: etcd-server): %v", err)
	}
	scheme := "http"
	if o.CertFile != "" {
		scheme = "https"
	}
	dir := t.TempDir()
	var all []*Server
	addresses := claim(t, 3*n)
	var peers, cluster []string
	for k := range n {
		peers = append(peers, "http://"+addresses[3*k])
		cluster = append(cluster, fmt.Sprintf("m%d=%s", k, peers[k]))
	}
	for k := range n {
		name := "m" + strconv.Itoa(k)
		s := &Server{Address: addresses[3*k+1], t: t, program: program, health: addresses[3*k+2], data: filepath.Join(dir, name), log: filepath.Join(dir, name+".log")}
		s.URL = scheme + "://" + s.Address
		s.args = []string{
			"--name", name, "--data-dir", s.data, "--logger", "zap", "--log-outputs", "stderr", "--log-level", "warn",
			"--listen-client-urls", s.URL, "--advertise-client-urls", s.URL, "--listen-metrics-urls", "http://" + s.health,
			"--listen-peer-urls", peers[k], "--initial-advertise-peer-urls", peers[k],
			"--initial-cluster", strings.Join(cluster, ","), "--initial-cluster-token", dir,
		}
		if o.CertFile != "" {
			s.args = append(s.args, "--cert-file", o.CertFile, "--key-file", o.KeyFile)
		}
		if o.ClientCAFile != "" {
			s.args = append(s.args, "--client-cert-auth", "--trusted-ca-file", o.ClientCAFile)
		}
		t.Cleanup(s.Stop)
		all = append(all, s)
	}
	for _, s := range all {
		s.launch()
	}
	for _, s := range all {
		s.await()
	}
	return all
}

// claim returns so many addresses that nothing uses: a server that is started again
// finds its own free.
func claim(t testing.TB, n int) []string {
	t.Helper()
	var all []string
	for range n {
		all = append(all, addr.Free(t).String())
	}
	return all
}

// Start starts the server again, with the data that it had, and returns when
// it is of use.
func (s *Server) Start() {
	s.t.Helper()
	s.launch()
	s.await()
}

func (s *Server) launch() {
	s.t.Helper()
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(s.program, s.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
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

// await waits until the server answers, with a quorum.
func (s *Server) await() {
	s.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	healthy := func() bool {
		res, err := client.Get("http://" + s.health + "/health")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		return res.StatusCode == http.StatusOK
	}
	for end := time.Now().Add(soon); !healthy(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-s.ended:
		default:
			if time.Now().Before(end) {
				continue
			}
		}
		log, _ := os.ReadFile(s.log)
		s.t.Fatalf("etcd does not start: %s", log)
	}
}

// Stop ends the server at once, as a crash does. What it had confirmed it has
// when it is started again. If it does not run, nothing happens.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		<-s.ended
		s.cmd = nil
	}
}

// Backup returns a copy of the data, for Restore. The server is away meanwhile.
func (s *Server) Backup() (dir string) {
	s.t.Helper()
	dir = s.t.TempDir()
	s.Stop()
	if err := os.CopyFS(dir, os.DirFS(s.data)); err != nil {
		s.t.Fatal(err)
	}
	s.Start()
	return dir
}

// Restore starts the server again with the data of a backup: what was written
// since is forgotten.
func (s *Server) Restore(backup string) {
	s.t.Helper()
	s.Stop()
	err := os.RemoveAll(s.data)
	if err == nil {
		err = os.CopyFS(s.data, os.DirFS(backup))
	}
	if err == nil {
		err = os.Chmod(s.data, 0o700) // etcd wants it for itself
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.Start()
}

// Freeze stops the process of the server: connections stay, and nothing is
// answered.
func (s *Server) Freeze() { s.process(harness.Freeze) }

// Thaw lets a frozen server go on.
func (s *Server) Thaw() { s.process(harness.Thaw) }

func (s *Server) process(do func(*os.Process) error) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		s.t.Fatal("the server does not run")
	}
	if err := do(s.cmd.Process); err != nil {
		s.t.Fatal(err)
	}
}

// Call asks the JSON interface of a server without TLS, such as
// /v3/auth/user/add. The header token is for a server with users; it may be
// empty.
func (s *Server) Call(path, token string, in, out any) {
	s.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.URL+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", token)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: soon}
	res, err := client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %s: %s, error %v", path, res.Status, answer, err)
	}
	if out != nil {
		if err := json.Unmarshal(answer, out); err != nil {
			s.t.Fatalf("%s: %s: %v", path, answer, err)
		}
	}
}

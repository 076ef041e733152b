//go:build linux

package cluster

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/cluster/link"
	"github.com/caddy-usher/usher/test/harness"
)

// told waits until a Caddy has said something in its log.
func (w *town) told(k int, words ...string) {
	w.t.Helper()
	harness.Eventually(w.t, soon, func() bool {
		log := w.caddys[k].RawLog()
		for _, word := range words {
			if !strings.Contains(log, word) {
				return false
			}
		}
		return true
	}, "Caddy %d says %q", k, words)
}

// waits checks that a request to a Caddy waits: it has no part in the cluster.
func (w *town) waits(k int) {
	w.t.Helper()
	p := w.caddys[k].Send(harness.Request{Path: "/"})
	harness.Throughout(w.t, 2*lease, func() bool { return !p.Done() }, "a request waits at Caddy %d", k)
	p.Cancel()
	out, status := w.caddys[k].Run("usher", "cluster", "--address", w.caddys[k].AdminAddr)
	if status != 0 || !strings.Contains(out, "LEASE         none") {
		w.t.Errorf("Caddy %d shows, with status %d:\n%s", k, status, out)
	}
}

// Two clusters with one name and one etcd, by mistake: one of them works, the
// other says why it does not, until the first one has ended or an operator says
// so.
func TestG14TwoClustersWithOneName(t *testing.T) {
	w := newTown(t, 4, short, "instances 1 1", "concurrency 1", "scale queue")
	w.tune = func(k int, cfg *harness.Config) {
		if k >= 2 {
			cfg.Usher = strings.Replace(cfg.Usher, w.secret, `secret "what the others know"`, 1)
		}
	}
	w.start()
	ours, theirs := []int{0, 1}, []int{2, 3}
	if w.leader() >= 2 {
		ours, theirs = theirs, ours
	}
	for _, k := range ours {
		wantAllOK(t, []harness.Response{w.caddys[k].Get("/")})
	}
	for _, k := range theirs {
		w.told(k, "the leader cannot be reached", "it has another secret")
		w.waits(k)
	}
	w.told(w.leader(), "its secret is another one")

	// They are killed, which these cannot find out: they never knew them.
	for _, k := range ours {
		w.kill(k)
	}
	w.waits(theirs[0])
	for _, k := range ours {
		if out, status := w.caddys[theirs[0]].Run("usher", "cluster", "forget", w.peers[k], "--address", w.caddys[theirs[0]].AdminAddr); status != 0 {
			t.Errorf("forget %s: status %d:\n%s", w.peers[k], status, out)
		}
	}
	for _, k := range theirs {
		wantAllOK(t, []harness.Response{w.caddys[k].Get("/")})
	}
	w.wantNoMoreThan(1)
}

// authority issues certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, file: t.TempDir() + "/ca.pem"}
	a.cert, a.key = a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, nil, nil)
	a.write(a.file, "CERTIFICATE", a.cert.Raw)
	return a
}

// sign makes a certificate with a key of its own; without a parent it signs
// itself.
func (a *authority) sign(c, parent *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if parent == nil {
		parent, key = c, own
	}
	raw, err := x509.CreateCertificate(rand.Reader, c, parent, own.Public(), key)
	if err != nil {
		a.t.Fatal(err)
	}
	made, err := x509.ParseCertificate(raw)
	if err != nil {
		a.t.Fatal(err)
	}
	return made, own
}

func (a *authority) write(file, kind string, raw []byte) {
	a.t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// issue returns the files of a certificate that is valid for so long.
func (a *authority) issue(valid time.Duration) (cert, key string) {
	a.t.Helper()
	dir := a.t.TempDir()
	c, k := a.sign(&x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(valid)}, a.cert, a.key)
	raw, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(dir+"/cert.pem", "CERTIFICATE", c.Raw)
	a.write(dir+"/key.pem", "EC PRIVATE KEY", raw)
	return dir + "/cert.pem", dir + "/key.pem"
}

// Certificates in place of a secret: one that has expired or is of another
// authority keeps its Caddy out, and a newer one at the same place lets it in.
func TestG14CertificatesThatAreNotValid(t *testing.T) {
	ours, foreign := newAuthority(t), newAuthority(t)
	w := newTown(t, 3, short, "instances 1 1", "concurrency 1", "scale queue")
	cert, key := ours.issue(time.Hour)
	expired, expiredKey := ours.issue(-time.Hour)
	other, otherKey := foreign.issue(time.Hour)
	files := [][2]string{{cert, key}, {expired, expiredKey}, {other, otherKey}}
	w.tune = func(k int, cfg *harness.Config) {
		cfg.Usher = strings.Replace(cfg.Usher, w.secret, fmt.Sprintf("tls %s %s %s", files[k][0], files[k][1], ours.file), 1)
	}
	w.startOne(0)
	wantAllOK(t, []harness.Response{w.caddys[0].Get("/")})
	for k, words := range map[int]string{1: "certificate has expired", 2: "certificate signed by unknown authority"} {
		w.startOne(k)
		w.told(k, "the leader cannot be reached", "did not accept this one's certificate")
		w.told(0, words)
		w.waits(k)
	}
	for k := 1; k <= 2; k++ {
		newer, newerKey := ours.issue(time.Hour)
		for _, f := range [][2]string{{newer, files[k][0]}, {newerKey, files[k][1]}} {
			if err := os.Rename(f[0], f[1]); err != nil {
				t.Fatal(err)
			}
		}
		w.told(k, "the leader can be reached again")
	}
	w.awaitAll(0, 1, 2)
	wantAllOK(t, w.each("/"))
	w.wantNoMoreThan(1)
}

// A Caddy of another version is refused by both sides, with words.
func TestG14AnotherVersionOfTheProtocol(t *testing.T) {
	ours := newAuthority(t)
	w := newTown(t, 1, short, "instances 1 1", "concurrency 1", "scale queue")
	cert, key := ours.issue(time.Hour)
	w.secret = fmt.Sprintf("tls %s %s %s", cert, key, ours.file)
	w.start()
	wantAllOK(t, w.each("/"))

	pair, err := tls.LoadX509KeyPair(ours.issue(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", w.listens[0], &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(soon))
	in := bufio.NewReader(conn)
	hello, _ := json.Marshal(map[string]any{"version": link.Version + 1, "cluster": "usher", "id": "127.0.0.1:1", "boot": "x", "address": "127.0.0.1:1", "purpose": "session"})
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(hello))), hello...)); err != nil {
		t.Fatal(err)
	}
	const words = "the versions of the protocol differ"
	for range 2 { // its hello, and what it says to this one
		head := make([]byte, 4)
		if _, err := io.ReadFull(in, head); err != nil {
			t.Fatal(err)
		}
		text := make([]byte, binary.BigEndian.Uint32(head))
		if _, err := io.ReadFull(in, text); err != nil {
			t.Fatal(err)
		}
		hello = text
	}
	if !strings.Contains(string(hello), words) {
		t.Errorf("it says %s", hello)
	}
	conn.Close()
	w.told(0, words)
	wantAllOK(t, w.each("/"))
}

// The others cannot reach a member at the address that it advertises: they say
// so, and its slots are used after lost_after only, since its end is not proven.
// Once they can reach it, it is.
func TestG14AnAddressThatTheOthersCannotReach(t *testing.T) {
	w := newTown(t, 2, short, "instances 1 1", "concurrency 1", "scale queue")
	w.startOne(0)
	wantAllOK(t, []harness.Response{w.caddys[0].Get("/")})
	ends := func() (took time.Duration) {
		w.hold(1)
		w.caddys[1].Kill()
		w.doors[1].lock()
		began := time.Now()
		wantAllOK(t, []harness.Response{w.caddys[0].Get("/")})
		return time.Since(began)
	}
	w.caddys[1].Start(w.config(1)) // its door stays closed
	wantAllOK(t, w.each("/"))
	w.told(0, "another member cannot be reached where it says it can", w.peers[1])
	if d := ends(); d < lostAfter {
		t.Errorf("its slot was used after %s, and its end was proven by nothing", d)
	}
	w.caddys[1].Start(w.config(1))
	wantAllOK(t, w.each("/"))
	w.doors[1].unlock(t)
	w.told(0, "the member can be reached where it says it can")
	if d := ends(); d > harness.Slow(time.Second) {
		t.Errorf("its slot was used after %s only, and its end could be proven", d)
	}

	// And if it is the leader, no other one gets in.
	w.stop(0)
	w.caddys[0].Start(w.config(0))
	wantAllOK(t, []harness.Response{w.caddys[0].Get("/")})
	w.startOne(1)
	w.told(1, "the leader cannot be reached", w.peers[0])
	w.waits(1)
	wantAllOK(t, []harness.Response{w.caddys[0].Get("/")})
}

// Two Caddys that advertise the same address: what is wrong is said.
func TestG14TwoThatAdvertiseTheSameAddress(t *testing.T) {
	for _, leads := range []bool{true, false} {
		t.Run(map[bool]string{true: "that of the leader", false: "that of a member"}[leads], func(t *testing.T) {
			w := newTown(t, 3, short, "instances 1 1", "concurrency 1", "scale queue")
			copied := 1
			if leads {
				copied = 0
			}
			w.tune = func(k int, cfg *harness.Config) {
				if k == 2 {
					cfg.Usher = strings.Replace(cfg.Usher, "advertise "+w.peers[2], "advertise "+w.peers[copied], 1)
				}
			}
			for k := range 2 {
				w.startOne(k)
				wantAllOK(t, []harness.Response{w.caddys[k].Get("/")})
			}
			w.startOne(2)
			if leads {
				w.told(2, "two Caddys call themselves "+w.peers[0])
			} else {
				w.told(0, "another process answers")
			}
			for range 3 {
				for k := range 2 {
					wantAllOK(t, []harness.Response{w.caddys[k].Get("/sleep?d=10ms")})
				}
			}
			w.wantNoMoreThan(1)
		})
	}
}

func TestLostAfterBelowTheLeaseIsRefused(t *testing.T) {
	w := newTown(t, 1, "\tlease 3s\n\tlost_after 2s", "instances 1 1")
	out, status := w.caddys[0].RunConfig(w.config(0), "validate")
	if status == 0 || !strings.Contains(out, "lost_after is 2s, which is shorter than the lease of 3s") {
		t.Errorf("status %d:\n%s", status, out)
	}
}

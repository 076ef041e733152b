package etcd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/test/etcdserver"
)

// withUsers adds the users root and usher, who may use one key only, and has
// the server ask for them.
func withUsers(server *etcdserver.Server, key string) {
	type m = map[string]any
	call := func(path string, in any) { server.Call(path, "", in, nil) }
	call("/v3/auth/user/add", m{"name": "root", "password": "r"})
	call("/v3/auth/user/grant", m{"user": "root", "role": "root"})
	call("/v3/auth/role/add", m{"name": "usher"})
	call("/v3/auth/role/grant", m{"name": "usher", "perm": m{"permType": "READWRITE", "key": []byte(key)}})
	call("/v3/auth/user/add", m{"name": "usher", "password": "right"})
	call("/v3/auth/user/grant", m{"user": "usher", "role": "usher"})
}

func TestUserAndPassword(t *testing.T) {
	server := etcdserver.Start(t, etcdserver.Options{})
	c := Coordinator{URLs: []string{server.URL}, User: "usher", Password: "right", Prefix: "/allowed"}
	s := closed(t, opened(t, &c))
	// Without users etcd wants no password, and it may want one later.
	wantPut(t, s, "1", "")
	withUsers(server, s.key)
	server.Call("/v3/auth/enable", "", struct{}{}, nil)
	one := get(t, s, "1")
	wantPut(t, s, "2", one)

	// A token does not outlive the server.
	server.Stop()
	server.Start()
	wantPut(t, s, "3", get(t, s, "2"))
	if s.token == "" {
		t.Fatal("there is no token")
	}
	s.token = "worn out.1"
	revision := get(t, s, "3")
	s.token = "worn out.2"
	wantPut(t, s, "4", revision)

	wrong, elsewhere, without := c, c, c
	wrong.Password = "wrong"
	elsewhere.Prefix = "/forbidden"
	without.User, without.Password = "", ""
	for _, refused := range []struct {
		c     Coordinator
		words string
	}{
		{wrong, "authentication failed, invalid user ID or password"},
		{elsewhere, "permission denied"},
		{without, "user name is empty"},
	} {
		s := closed(t, opened(t, &refused.c))
		_, _, err := s.Get(within(t, patience))
		wantWords(t, err, server.URL, refused.words)
		result, err := put(t, s, "5", "")
		wantWords(t, err, server.URL, refused.words)
		if result != cluster.Failed {
			t.Errorf("%s: result %d, want failed", refused.words, result)
		}
	}
	get(t, s, "4")
}

// authority is a certificate authority in a directory.
type authority struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert, a.key = a.issue("ca", template)
	return a
}

// issue writes <name>.crt and <name>.key.
func (a *authority) issue(name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for suffix, block := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(a.path(name+suffix), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) leaf(name string) {
	a.t.Helper()
	a.issue(name, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

func TestCertificates(t *testing.T) {
	ours, foreign := newAuthority(t), newAuthority(t)
	ours.leaf("server")
	ours.leaf("client")
	foreign.leaf("client")
	server := etcdserver.Start(t, etcdserver.Options{
		CertFile: ours.path("server.crt"), KeyFile: ours.path("server.key"), ClientCAFile: ours.path("ca.crt"),
	})
	c := Coordinator{
		URLs: []string{server.URL}, CAFile: ours.path("ca.crt"),
		CertFile: ours.path("client.crt"), KeyFile: ours.path("client.key"), Prefix: "/tls",
	}
	s := closed(t, opened(t, &c))
	wantPut(t, s, "1", "")
	get(t, s, "1")

	mistrusts, without, unknown := c, c, c
	mistrusts.CAFile = foreign.path("ca.crt")
	without.CertFile, without.KeyFile = "", ""
	unknown.CertFile, unknown.KeyFile = foreign.path("client.crt"), foreign.path("client.key")
	for _, refused := range []Coordinator{mistrusts, without, unknown} {
		s := closed(t, opened(t, &refused))
		if _, _, err := s.Get(within(t, brief)); err == nil {
			t.Errorf("%+v may read", refused)
		}
	}
	_, _, err := closed(t, opened(t, &mistrusts)).Get(within(t, patience))
	wantWords(t, err, "certificate signed by unknown authority")

	// A certificate that is replaced is used for the next connection.
	for _, name := range []string{"client.crt", "client.key"} {
		data, err := os.ReadFile(foreign.path(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(ours.path(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server.Stop()
	server.Start()
	if _, _, err := s.Get(within(t, brief)); err == nil {
		t.Error("the old certificate is still used")
	}
	ours.leaf("client")
	end := time.Now().Add(patience)
	for {
		if _, _, err := s.Get(within(t, brief)); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

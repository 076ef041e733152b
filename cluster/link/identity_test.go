package link

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"
)

func TestAShortSecretIsRefused(t *testing.T) {
	if _, err := FromSecret("123456789012345"); err == nil || !strings.Contains(err.Error(), "has 15 bytes: use at least 16") {
		t.Errorf("the error is %v", err)
	}
}

// issued is an authority of the test, and certificates that it signed.
type issued struct {
	t    *testing.T
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func authority(t *testing.T) *issued {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issued{t: t, key: key, pool: x509.NewCertPool()}
	now := time.Now()
	raw, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotBefore: now.Add(-48 * time.Hour), NotAfter: now.Add(time.Hour),
	}, &x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if i.ca, err = x509.ParseCertificate(raw); err != nil {
		t.Fatal(err)
	}
	i.pool.AddCert(i.ca)
	return i
}

// identity is one whose certificate is valid for so long from now.
func (i *issued) identity(valid time.Duration, trusts *x509.CertPool) *Identity {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	now := time.Now()
	raw, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(valid),
	}, i.ca, key.Public(), i.key)
	if err != nil {
		i.t.Fatal(err)
	}
	return FromCertificates(
		func() (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, nil
		},
		func() (*x509.CertPool, error) { return trusts, nil })
}

func TestCertificatesOfOneAuthorityConnect(t *testing.T) {
	own, foreign := authority(t), authority(t)
	good := func(c *Config) { c.Identity = own.identity(time.Hour, own.pool) }
	for name, c := range map[string]struct {
		theirs *Identity
		want   string
	}{
		"valid":   {own.identity(time.Hour, own.pool), ""},
		"expired": {own.identity(-time.Hour, own.pool), "expired"},
		"foreign": {foreign.identity(time.Hour, own.pool), "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, "a", "127.0.0.1:0", good)
			b := start(t, "b", "127.0.0.1:0", func(cfg *Config) { cfg.Identity = c.theirs })
			_, err := a.Dial(t.Context(), b.address, "b", "test")
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("connecting to it: %v, want %q", err, c.want)
			}
			_, err = b.Dial(t.Context(), a.address, "a", "test")
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), "did not accept this one's certificate")) {
				t.Errorf("it connects: %v", err)
			}
		})
	}
}

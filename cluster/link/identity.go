package link

import (
	"crypto"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// MinSecret is how many bytes a secret has at least. An attacker who records a handshake
// could try short ones out.
const MinSecret = 16

// Identity is what a Caddy shows to the others, and by what it knows them.
type Identity struct {
	certificate func() (*tls.Certificate, error)
	authority   func() (*x509.CertPool, error)
	secret      bool
}

// FromSecret derives an identity from a secret that all Caddys of a cluster
// have. The key of their common authority comes from the secret, and each
// process makes a key and a certificate of its own. They never expire: a clock
// that is wrong must not keep a Caddy out, and who has the secret can make new
// ones at any time. It returns an error for a secret shorter than [MinSecret].
func FromSecret(secret string) (*Identity, error) {
	if len(secret) < MinSecret {
		return nil, fmt.Errorf("the secret has %d bytes: use at least %d, for example the output of 'openssl rand -hex 32'", len(secret), MinSecret)
	}
	seed, err := hkdf.Key(sha256.New, []byte(secret), nil, "usher cluster authority, version 1", ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("deriving a key from the secret: %w", err)
	}
	key := ed25519.NewKeyFromSeed(seed)
	authority := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "Usher cluster"},
		NotBefore:             time.Unix(0, 0),
		NotAfter:              noExpiry,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	authority, _, err = sign(authority, authority, key.Public(), key)
	if err != nil {
		return nil, err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	_, raw, err := sign(&x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "Usher"},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     noExpiry,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, authority, public, key)
	if err != nil {
		return nil, err
	}
	own := &tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: private}
	pool := x509.NewCertPool()
	pool.AddCert(authority)
	return &Identity{
		certificate: func() (*tls.Certificate, error) { return own, nil },
		authority:   func() (*x509.CertPool, error) { return pool, nil },
		secret:      true,
	}, nil
}

// noExpiry is the date that RFC 5280, section 4.1.2.5, has for certificates
// without an end.
var noExpiry = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

func sign(c, authority *x509.Certificate, public crypto.PublicKey, key ed25519.PrivateKey) (*x509.Certificate, []byte, error) {
	raw, err := x509.CreateCertificate(rand.Reader, c, authority, public, key)
	if err != nil {
		return nil, nil, fmt.Errorf("making a certificate: %w", err)
	}
	made, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the certificate that was made: %w", err)
	}
	return made, raw, nil
}

// FromCertificates makes an identity of certificates that something else
// renews: both functions are called at each handshake. Every certificate of
// the authority makes its owner a member, whatever names it has, so the
// authority must be for this cluster alone.
func FromCertificates(certificate func() (*tls.Certificate, error), authority func() (*x509.CertPool, error)) *Identity {
	return &Identity{certificate: certificate, authority: authority}
}

// config is for one handshake. Names and addresses are not compared: the
// authority vouches for the cluster, and the hello says who it is.
func (id *Identity) config() (*tls.Config, error) {
	own, err := id.certificate()
	if err != nil {
		return nil, fmt.Errorf("this Caddy's own certificate: %w", err)
	}
	pool, err := id.authority()
	if err != nil {
		return nil, fmt.Errorf("the certificates of the cluster's authority: %w", err)
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{*own},
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, //nolint:gosec // VerifyConnection checks the chain
		SessionTicketsDisabled: true, // a resumed session is not checked
		VerifyConnection: func(s tls.ConnectionState) error {
			return id.verify(s.PeerCertificates, pool)
		},
	}, nil
}

func (id *Identity) verify(chain []*x509.Certificate, pool *x509.CertPool) error {
	if len(chain) == 0 {
		return errors.New("it shows no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	options := x509.VerifyOptions{Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if id.secret {
		options.CurrentTime = time.Unix(1, 0) // nothing expires, and clocks may be wrong
	}
	_, err := chain[0].Verify(options)
	switch {
	case err == nil:
		return nil
	case id.secret:
		return &StrangerError{"it has another secret", err}
	default:
		return &StrangerError{"its certificate is not valid here", err}
	}
}

// StrangerError says that another Caddy does not belong to this cluster.
type StrangerError struct {
	What string
	err  error
}

func (e *StrangerError) Error() string { return e.What + ": " + e.err.Error() }

// Unwrap returns what the check of the certificate said.
func (e *StrangerError) Unwrap() error { return e.err }

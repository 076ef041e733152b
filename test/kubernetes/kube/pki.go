//go:build linux

package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// An authority signs the certificates of one kind.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// makePKI writes every key and certificate that the components ask for.
func makePKI(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	ca, err := newAuthority(dir, "ca")
	if err != nil {
		return err
	}
	proxyCA, err := newAuthority(dir, "front-proxy-ca")
	if err != nil {
		return err
	}
	server := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(apiIP), net.ParseIP(serviceIP)},
	}
	if err := ca.issue(dir, "apiserver", server); err != nil {
		return err
	}
	kubelet := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "apiserver-kubelet-client", Organization: []string{"system:masters"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if err := ca.issue(dir, "kubelet-client", kubelet); err != nil {
		return err
	}
	proxy := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "front-proxy"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if err := proxyCA.issue(dir, "front-proxy", proxy); err != nil {
		return err
	}
	return serviceAccountKey(dir)
}

func newAuthority(dir, name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	a := &authority{cert: cert, key: key}
	return a, a.write(dir, name, cert, key)
}

func (a *authority) issue(dir, name string, cert *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	cert.KeyUsage = x509.KeyUsageDigitalSignature
	return a.write(dir, name, cert, key)
}

func (a *authority) write(dir, name string, cert *x509.Certificate, key *ecdsa.PrivateKey) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	cert.SerialNumber = serial
	cert.NotBefore = time.Now().Add(-time.Hour)
	cert.NotAfter = time.Now().Add(48 * time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, name+".crt"), "CERTIFICATE", der); err != nil {
		return err
	}
	return writeKey(filepath.Join(dir, name+".key"), key)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "EC PRIVATE KEY", der)
}

// serviceAccountKey is the pair with which the tokens of pods are signed.
func serviceAccountKey(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, "sa.key"), key); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, "sa.pub"), "PUBLIC KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// makeUsers gives every user a token and a kubeconfig. groups may be empty.
func makeUsers(dir string, users map[string]string) error {
	var tokens []byte
	for user, groups := range users {
		token := rand.Text()
		tokens = fmt.Appendf(tokens, "%s,%s,%s,%q\n", token, user, user, groups)
		config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: kube, cluster: {server: "https://%s", certificate-authority: %s}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: c, context: {cluster: kube, user: u}}]
current-context: c
`, apiIP, filepath.Join(dir, "pki", "ca.crt"), token)
		if err := os.WriteFile(kubeconfig(dir, user), []byte(config), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "pki", "tokens.csv"), tokens, 0o600)
}

func kubeconfig(dir, user string) string { return filepath.Join(dir, "etc", user+".kubeconfig") }

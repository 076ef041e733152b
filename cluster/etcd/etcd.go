package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/cluster/coordinator"
)

func init() {
	caddy.RegisterModule(new(Coordinator))
}

// Coordinator keeps what the Caddys of a cluster agree on under one key of an
// etcd, version 3.4 or later.
//
// `{env.*}` and `{file.*}` are resolved when the configuration is loaded.
type Coordinator struct {
	// The members of the etcd cluster, e.g. `http://10.0.0.1:2379`. If one cannot
	// be reached, the next one is asked. All have to be members of the same
	// cluster. Default port: 2379.
	URLs []string `json:"urls,omitempty"`

	// The user, if etcd asks for one.
	User string `json:"user,omitempty"`

	// The password of the user.
	Password string `json:"password,omitempty"`

	// A file with the PEM certificate that Caddy shows to etcd. It may hold
	// intermediate certificates, too. It is read anew for every connection.
	CertFile string `json:"cert_file,omitempty"`

	// A file with the PEM key of the certificate.
	KeyFile string `json:"key_file,omitempty"`

	// A file with the PEM certificates that those of the members are checked
	// against, instead of the system's.
	CAFile string `json:"ca_file,omitempty"`

	// What the key begins with; it ends in `/view`. Default: `/usher/` and the
	// name of the cluster. If etcd has users, this one needs to read and write
	// the key.
	Prefix string `json:"prefix,omitempty"`

	plan *plan
}

// plan is a configuration after Provision.
type plan struct {
	access
	certFile, keyFile, caFile string
	prefix                    string
}

// CaddyModule returns the Caddy module information.
func (*Coordinator) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  coordinator.Namespace + ".etcd",
		New: func() caddy.Module { return new(Coordinator) },
	}
}

// Provision resolves and checks the configuration. It reads no file and calls
// no server.
func (c *Coordinator) Provision(caddy.Context) error {
	p := new(plan)
	resolve := caddy.NewReplacer()
	for _, f := range []struct {
		name, value string
		to          *string
	}{
		{"user", c.User, &p.user},
		{"password", c.Password, &p.password},
		{"cert_file", c.CertFile, &p.certFile},
		{"key_file", c.KeyFile, &p.keyFile},
		{"ca_file", c.CAFile, &p.caFile},
		{"prefix", c.Prefix, &p.prefix},
	} {
		var err error
		if *f.to, err = resolve.ReplaceOrErr(f.value, true, true); err != nil {
			return fmt.Errorf("etcd: %s: %w", f.name, err)
		}
	}
	for _, u := range c.URLs {
		text, err := resolve.ReplaceOrErr(u, true, true)
		if err != nil {
			return fmt.Errorf("etcd: url: %w", err)
		}
		e, err := parseEndpoint(text)
		if err != nil {
			return fmt.Errorf("etcd: %w", err)
		}
		if !slices.Contains(p.endpoints, e) {
			p.endpoints = append(p.endpoints, e)
		}
	}
	if err := p.check(); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	c.plan = p
	return nil
}

func (p *plan) check() error {
	secure := slices.ContainsFunc(p.endpoints, func(e endpoint) bool { return e.tls })
	switch {
	case len(p.endpoints) == 0:
		return errors.New("the URL of a member of the etcd cluster is required, e.g. http://10.0.0.1:2379")
	case p.password != "" && p.user == "":
		return errors.New("a password needs a user")
	case p.user != "" && p.password == "":
		return fmt.Errorf("the user %s needs a password; for a user that etcd takes from the certificate give the certificate alone", p.user)
	case (p.certFile == "") != (p.keyFile == ""):
		return errors.New("cert_file and key_file go together")
	case !secure && (p.certFile != "" || p.caFile != ""):
		return errors.New("certificates are of no use without an https URL")
	}
	return nil
}

// parseEndpoint reads the URL of a member.
func parseEndpoint(text string) (endpoint, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		// The error of url.Parse holds the text, which may hold a password.
		return endpoint{}, errors.New("url: this is no URL of an etcd; give it as http://host:2379")
	case u.User != nil:
		return endpoint{}, fmt.Errorf("url %s: credentials do not belong into a URL; use user", u.Redacted())
	case u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "":
		return endpoint{}, fmt.Errorf("url %q is no URL of an etcd; give it as http://host:2379", text)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return endpoint{}, fmt.Errorf("url %q: give the scheme, host and port alone", text)
	}
	port := u.Port()
	if port == "" {
		port = "2379"
	}
	host := net.JoinHostPort(u.Hostname(), port)
	return endpoint{url: u.Scheme + "://" + host, host: host, tls: u.Scheme == "https"}, nil
}

// Open makes the coordinator of a cluster. It reads the files, and connects
// with the first call.
func (c *Coordinator) Open(cluster string) (coordinator.Coordinator, error) {
	s, err := c.OpenStore(cluster)
	if err != nil {
		return nil, err
	}
	return coordinator.Over(cluster, s), nil
}

// OpenStore makes what is below the coordinator, for the conformance suite.
func (c *Coordinator) OpenStore(cluster string) (coordinator.Store, error) {
	p := c.plan
	switch {
	case p == nil:
		return nil, errors.New("etcd: the coordinator was opened before it was provisioned")
	case cluster == "":
		return nil, errors.New("etcd: the cluster has no name")
	}
	a := p.access
	a.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	if p.caFile != "" {
		pem, err := os.ReadFile(p.caFile)
		if err != nil {
			return nil, fmt.Errorf("etcd: ca_file: %w", err)
		}
		a.tls.RootCAs = x509.NewCertPool()
		if !a.tls.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd: ca_file %s holds no PEM certificate", p.caFile)
		}
	}
	if p.certFile != "" {
		read := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(p.certFile, p.keyFile)
			if err != nil {
				return nil, fmt.Errorf("cert_file %s, key_file %s: %w", p.certFile, p.keyFile, err)
			}
			return &pair, nil
		}
		if _, err := read(); err != nil {
			return nil, fmt.Errorf("etcd: %w", err)
		}
		a.tls.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return read() }
	}
	prefix := p.prefix
	if prefix == "" {
		prefix = "/usher/" + cluster
	}
	return open(a, strings.TrimRight(prefix, "/")+"/view"), nil
}

// Interface guards.
var (
	_ caddy.Module       = (*Coordinator)(nil)
	_ caddy.Provisioner  = (*Coordinator)(nil)
	_ coordinator.Opener = (*Coordinator)(nil)
)

package hub

import (
	"cmp"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/coordinator"
	"github.com/caddy-usher/usher/cluster/link"
)

// ClusterConfig says how this Caddy shares instances with others. It has to be
// the same on all of them, but for `listen` and `advertise`, and it does not
// change while Caddy runs.
type ClusterConfig struct {
	// The name of the cluster. Default: `usher`.
	Name string `json:"name,omitempty"`

	// Where the one object lies on which the Caddys agree: who leads, and who the
	// members are.
	CoordinatorRaw json.RawMessage `json:"coordinator,omitempty" caddy:"namespace=usher.coordinators inline_key=type"`

	// The TCP address at which the other Caddys connect. Default: `:7443`.
	Listen string `json:"listen,omitempty"`

	// The host and port at which the others reach this Caddy, directly: what
	// refuses connections there is taken for its end. It is also the name of this
	// member. Placeholders are replaced, such as `{env.POD_IP}:7443`. Default: that
	// of `listen`, if it names a host.
	Advertise string `json:"advertise,omitempty"`

	// What all members know and no one else, of at least 16 bytes. The
	// certificates for the connections between them are derived from it.
	// Placeholders are replaced, such as `{env.SECRET}`.
	Secret string `json:"secret,omitempty"`

	// Certificates in place of a secret. All of one authority are members.
	TLS *ClusterTLS `json:"tls,omitempty"`

	// For how long a Caddy may serve without a word from the leader, and the
	// leader without the coordinator and the others. Default: 5s.
	Lease caddy.Duration `json:"lease,omitempty"`

	// For how long after the end of its lease a Caddy may have requests inside:
	// then it ends them, and the others use the slots. Default: 1m.
	LostAfter caddy.Duration `json:"lost_after,omitempty"`

	// True if the slots of a lost Caddy are used again only when its end is proven
	// or its instances were replaced. It ends no requests. Default: false.
	Replace bool `json:"replace,omitempty"`

	// What a Caddy does that has lost its lease: `stop` lets requests wait, `keep`
	// goes on, and the limits of instances may be passed. Default: `stop`.
	Isolated string `json:"isolated,omitempty"`

	// How much longer a request has to wait than those of another Caddy before a
	// slot that the other needs is moved. Default: 100ms.
	Fair caddy.Duration `json:"fair,omitempty"`
}

// ClusterTLS names the files of a certificate, which are read again for each
// connection.
type ClusterTLS struct {
	// The certificate of this Caddy, with those between, in PEM.
	Certificate string `json:"certificate,omitempty"`
	// Its key, in PEM.
	Key string `json:"key,omitempty"`
	// The certificates of the authority, in PEM.
	Authority string `json:"authority,omitempty"`
}

// ErrNoCluster says that this Caddy is in no cluster.
var ErrNoCluster = errors.New("this Caddy is in no cluster: see the global option 'cluster'")

// What holds for the options of a cluster that are not given.
const (
	DefaultClusterName   = "usher"
	DefaultClusterListen = ":7443"

	IsolatedStop = "stop"
	IsolatedKeep = "keep"
)

// Cluster is the provisioned form of a ClusterConfig.
type Cluster struct {
	config   ClusterConfig // every option set; without the raw module
	opener   coordinator.Opener
	identity *link.Identity
	given    ClusterConfig // to tell whether two are the same
	sealKey  []byte        // of cookies, from the secret; nil without one
}

// NewCluster checks c and loads its module.
func NewCluster(ctx caddy.Context, c ClusterConfig) (*Cluster, error) {
	out := &Cluster{given: c}
	replacer := caddy.NewReplacer()
	c.Name, c.Listen = cmp.Or(c.Name, DefaultClusterName), cmp.Or(c.Listen, DefaultClusterListen)
	c.Advertise, c.Secret = replacer.ReplaceAll(c.Advertise, ""), replacer.ReplaceAll(c.Secret, "")
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	var err error
	if out.identity, err = c.identity(); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	if c.Secret != "" {
		if out.sealKey, err = hkdf.Key(sha256.New, []byte(c.Secret), nil, "usher session cookies, version 1", sealKeySize); err != nil {
			return nil, fmt.Errorf("cluster: deriving the key of cookies from the secret: %w", err)
		}
	}
	kind := InlineKey(c.CoordinatorRaw, "type")
	mod, err := ctx.LoadModule(&c, "CoordinatorRaw")
	if err != nil {
		return nil, fmt.Errorf("cluster: coordinator %s: %w", kind, err)
	}
	var ok bool
	if out.opener, ok = mod.(coordinator.Opener); !ok {
		return nil, fmt.Errorf("cluster: the module usher.coordinators.%s is a %T, which is not a coordinator", kind, mod)
	}
	out.config = c
	return out, nil
}

func (c *ClusterConfig) check() error {
	switch {
	case len(c.CoordinatorRaw) == 0:
		return errors.New("it has no coordinator: use 'coordinator kubernetes', 'coordinator etcd <url>' or 'coordinator postgres <dsn>'")
	case c.Isolated != "" && c.Isolated != IsolatedStop && c.Isolated != IsolatedKeep:
		return fmt.Errorf("isolated '%s' is unknown: use stop or keep", c.Isolated)
	case c.Lease < 0 || c.LostAfter < 0 || c.Fair < 0:
		return errors.New("lease, lost_after and fair cannot be negative")
	}
	o := c.options()
	if o.Lease < minLease {
		return fmt.Errorf("lease is %s, but is at least %s: a heartbeat has to arrive within a fifth of it", o.Lease, minLease)
	}
	if !o.Replace && o.LostAfter < o.Lease {
		return fmt.Errorf("lost_after is %s, which is shorter than the lease of %s: a Caddy would have to end its requests as soon as it hesitates", o.LostAfter, o.Lease)
	}
	if c.Advertise == "" {
		host, _, err := net.SplitHostPort(c.Listen)
		if ip := net.ParseIP(host); err != nil || host == "" || ip != nil && ip.IsUnspecified() {
			return fmt.Errorf("listen %s does not say where the others reach this Caddy: add 'advertise <host>:<port>', for example 'advertise {env.POD_IP}:7443'", c.Listen)
		}
		c.Advertise = c.Listen
	}
	if host, port, err := net.SplitHostPort(c.Advertise); err != nil || host == "" || port == "" || port == "0" {
		return fmt.Errorf("advertise '%s' is not a host and a port", c.Advertise)
	}
	return nil
}

// minLease keeps a short hesitation of a busy machine from ending a lease.
const minLease = 500 * time.Millisecond

func (c *ClusterConfig) options() cluster.Options {
	return cluster.Options{
		Lease: time.Duration(c.Lease), LostAfter: time.Duration(c.LostAfter), Replace: c.Replace,
		KeepServing: c.Isolated == IsolatedKeep, Fair: time.Duration(c.Fair),
	}.WithDefaults()
}

func (c *ClusterConfig) identity() (*link.Identity, error) {
	switch {
	case c.Secret != "" && c.TLS != nil:
		return nil, errors.New("it has a secret and tls: use one of them")
	case c.Secret != "":
		return link.FromSecret(c.Secret)
	case c.TLS == nil:
		return nil, errors.New("it has no secret, or the secret is empty: set 'secret {env.SECRET}', for example, to what all Caddys of the cluster know and no one else, or 'tls <cert> <key> <ca>'")
	}
	t := *c.TLS
	certificate := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(t.Certificate, t.Key)
		return &pair, err
	}
	authority := func() (*x509.CertPool, error) {
		pem, err := os.ReadFile(t.Authority)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", t.Authority)
		}
		return pool, nil
	}
	if _, err := certificate(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	if _, err := authority(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return link.FromCertificates(certificate, authority), nil
}

// identifier names the cluster to those outside: its name, and where it agrees.
func (c *Cluster) identifier() string {
	sum := sha256.Sum256(c.given.CoordinatorRaw)
	return c.config.Name + "/" + hex.EncodeToString(sum[:4])
}

// self is this Caddy, as the others are to know it.
func (c *Cluster) self() cluster.Peer {
	return cluster.Peer{ID: c.config.Advertise, Boot: rand.Text(), Address: c.config.Advertise}
}

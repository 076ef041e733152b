package link

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/caddy-usher/usher/test/harness"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

const secret = "a secret of the tests, long enough"

// caddy is one end of the links of a test.
type caddy struct {
	*Link
	id, address string
	came        chan *Conn // connections that others opened, while they last
	log         *logs
	listener    net.Listener
}

// logs keeps what was logged.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start starts a Caddy at address; options change its configuration.
func start(t testing.TB, id, address string, options ...func(*Config)) *caddy {
	t.Helper()
	identity, err := FromSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	var listener net.Listener
	harness.Eventually(t, patience, func() bool {
		listener, err = net.Listen("tcp", address)
		return err == nil
	}, "listening at %s", address)
	k := &caddy{id: id, address: listener.Addr().String(), came: make(chan *Conn, 10), log: new(logs), listener: listener}
	c := Config{
		Identity: identity, Cluster: "test", ID: id, Boot: id + "-1", Address: k.address,
		Logger: slog.New(slog.NewTextHandler(k.log, nil)),
		Accept: func(ctx context.Context, conn *Conn) {
			k.came <- conn
			<-ctx.Done()
		},
	}
	for _, o := range options {
		o(&c)
	}
	k.Link = Listen(listener, c)
	t.Cleanup(k.Close)
	return k
}

// with changes the configuration.
func with(change func(*Config)) func(*Config) { return change }

// boot is another start of the process.
func boot(id string) func(*Config) { return func(c *Config) { c.Boot = id } }

// dial connects k to other, and returns both ends.
func (k *caddy) dial(t testing.TB, other *caddy) (here, there *Conn) {
	t.Helper()
	here, err := k.Dial(t.Context(), other.address, other.id, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(here.Close)
	select {
	case there = <-other.came:
	case <-time.After(patience):
		t.Fatal("the connection does not arrive")
	}
	return here, there
}

package etcd

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"
)

// connectTimeout bounds one attempt to connect, if the call does not.
const connectTimeout = 3 * time.Second

// retryDelays are the pauses between attempts to connect, while calls fail at
// once. An etcd that is back should be found soon.
var retryDelays = backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}

// conn returns the connection to an endpoint. gRPC connects with the first
// call, and again after a loss.
func (s *store) conn(at int) (*grpc.ClientConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, context.Cause(s.ctx)
	}
	if c := s.conns[at]; c != nil {
		return c, nil
	}
	e := s.endpoints[at]
	creds := insecure.NewCredentials()
	if e.tls {
		creds = credentials.NewTLS(s.tls)
	}
	c, err := grpc.NewClient("passthrough:///"+e.host,
		grpc.WithTransportCredentials(creds),
		// With a dialer of its own gRPC uses no HTTP proxy.
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retryDelays, MinConnectTimeout: connectTimeout}),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{})),
		grpc.WithStatsHandler(marker{}),
		// What may have been sent is not sent again.
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(),
		grpc.WithUserAgent("usher"),
	)
	if err != nil {
		return nil, err
	}
	s.conns[at] = c
	return c, nil
}

// drop gives up a connection that has gone silent: if its packets get lost it
// would take TCP a quarter of an hour to notice.
func (s *store) drop(at int, c *grpc.ClientConn) {
	s.mu.Lock()
	known := s.conns[at] == c
	if known {
		s.conns[at] = nil
	}
	s.mu.Unlock()
	if known {
		_ = c.Close()
	}
}

// A mark says whether a call may have left this machine.
type mark struct{ set atomic.Bool }

type markKey struct{}

func (m *mark) on(ctx context.Context) context.Context { return context.WithValue(ctx, markKey{}, m) }

func (m *mark) is() bool { return m.set.Load() }

// marker marks calls of which gRPC has begun to send something.
type marker struct{}

// TagRPC implements stats.Handler.
func (marker) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements stats.Handler.
func (marker) HandleRPC(ctx context.Context, s stats.RPCStats) {
	switch s.(type) {
	case *stats.OutHeader, *stats.OutPayload:
		if m, ok := ctx.Value(markKey{}).(*mark); ok {
			m.set.Store(true)
		}
	}
}

// TagConn implements stats.Handler.
func (marker) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (marker) HandleConn(context.Context, stats.ConnStats) {}

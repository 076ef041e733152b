package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/coordinator"
)

// The calls.
const (
	rangeMethod        = "/etcdserverpb.KV/Range"
	txnMethod          = "/etcdserverpb.KV/Txn"
	authenticateMethod = "/etcdserverpb.Auth/Authenticate"
)

// callTimeout bounds calls whose context has no deadline.
const callTimeout = 10 * time.Second

// access is what it takes to talk to an etcd cluster.
type access struct {
	endpoints      []endpoint
	user, password string
	tls            *tls.Config // for the endpoints with TLS
}

// An endpoint is one member of the etcd cluster.
type endpoint struct {
	url  string // for people
	host string // host:port
	tls  bool
}

// store is one key.
type store struct {
	access
	key string

	ctx   context.Context // ends with Close
	close context.CancelCauseFunc

	mu    sync.Mutex
	conns []*grpc.ClientConn // of the endpoints; nil where there is none yet
	first int                // the endpoint that is asked first
	token string             // what Authenticate has given
	plain bool               // there is a user, and etcd wants none
}

func open(a access, key string) *store {
	s := &store{access: a, key: key, conns: make([]*grpc.ClientConn, len(a.endpoints))}
	s.ctx, s.close = context.WithCancelCause(context.Background())
	return s
}

// String names the object for people.
func (s *store) String() string {
	urls := make([]string, 0, len(s.endpoints))
	for _, e := range s.endpoints {
		urls = append(urls, e.url)
	}
	return "the key " + s.key + " of etcd at " + strings.Join(urls, ", ")
}

// Get implements coordinator.Store.
func (s *store) Get(ctx context.Context) (value []byte, revision string, err error) {
	answer, _, err := s.call(ctx, rangeMethod, rangeRequest(s.key))
	if err != nil {
		return nil, "", err
	}
	kv, err := rangeResponse(answer)
	if err != nil || kv.revision == 0 {
		return nil, "", err
	}
	return kv.value, strconv.FormatUint(kv.revision, 10), nil
}

// Put implements coordinator.Store.
func (s *store) Put(ctx context.Context, value []byte, revision string) (cluster.SwapResult, error) {
	var number uint64
	if revision != "" {
		var err error
		if number, err = strconv.ParseUint(revision, 10, 64); err != nil {
			return cluster.Failed, err
		}
	}
	answer, certain, err := s.call(ctx, txnMethod, txnRequest(s.key, value, number))
	switch {
	case err != nil && certain:
		return cluster.Failed, err
	case err != nil:
		return cluster.Unknown, err
	}
	succeeded, err := txnResponse(answer)
	switch {
	case err != nil:
		return cluster.Unknown, err
	case !succeeded:
		return cluster.Conflict, nil
	}
	return cluster.Swapped, nil
}

// Close implements coordinator.Store. Calls end with their connections.
func (s *store) Close() error {
	s.close(errClosed)
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, c := range s.conns {
		s.conns[k] = nil
		if c != nil {
			_ = c.Close()
		}
	}
	return nil
}

var errClosed = errors.New("the coordinator is closed")

// call asks the endpoints in turn, until one has answered. With an error it
// says whether it is certain that no endpoint has done, or will do, what was
// asked.
func (s *store) call(ctx context.Context, method string, request []byte) (answer []byte, certain bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := s.over(ctx); err != nil {
		return nil, true, err
	}
	s.mu.Lock()
	first := s.first
	s.mu.Unlock()
	var failed []string
	for k := range s.endpoints {
		at := (first + k) % len(s.endpoints)
		a := s.attempt(ctx, at, method, request, len(s.endpoints)-k)
		if a.err == nil {
			s.prefer(at)
			return a.answer, false, nil
		}
		failed = append(failed, s.endpoints[at].url+": "+status.Convert(a.err).Message())
		if over := s.over(ctx); over != nil {
			s.prefer(at + 1)
			return nil, a.certain, fmt.Errorf("%s: %w", strings.Join(failed, "; "), over)
		}
		if a.refused || !a.certain && method == txnMethod {
			if !a.refused {
				s.prefer(at + 1)
			}
			return nil, a.certain, errors.New(failed[len(failed)-1])
		}
	}
	// Every endpoint has failed, and a write was sent to none.
	return nil, true, errors.New(strings.Join(failed, "; "))
}

// over returns why no more is to be tried, if that is so.
func (s *store) over(ctx context.Context) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	return context.Cause(ctx)
}

// prefer has the next call begin with an endpoint.
func (s *store) prefer(at int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.first = at % len(s.endpoints)
}

// attempt is what one endpoint has made of a call.
type attempt struct {
	answer  []byte
	err     error
	certain bool // with err: the call was not carried out and never will be
	refused bool // with err: no other endpoint would say anything else
}

// attempt asks one endpoint. If there are others left, it has its share of the
// time only; a write that was sent has all of it, because it cannot be tried
// elsewhere.
func (s *store) attempt(ctx context.Context, at int, method string, request []byte, left int) attempt {
	share, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sent := new(mark)
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		patience := time.AfterFunc(time.Until(deadline)/time.Duration(left), func() {
			if method != txnMethod || !sent.is() {
				cancel(errNoAnswer)
			}
		})
		defer patience.Stop()
	}
	for again := false; ; again = true {
		a := s.authorized(share, at, method, request, sent)
		// The token may have run out, or the server was started again.
		if again || a.err == nil || !a.certain || !s.renewable(a.err) {
			return a
		}
	}
}

// authorized makes a call with a token, if there is a user.
func (s *store) authorized(ctx context.Context, at int, method string, request []byte, sent *mark) attempt {
	s.mu.Lock()
	token, plain := s.token, s.plain
	s.mu.Unlock()
	if s.user != "" && token == "" && !plain {
		a := s.invoke(ctx, at, authenticateMethod, authenticateRequest(s.user, s.password), "", new(mark))
		// Nothing that a token was asked for has been sent yet.
		a.certain = true
		switch {
		case a.err == nil:
			if token, a.err = authenticateResponse(a.answer); a.err != nil {
				return a
			}
		case status.Code(a.err) == codes.FailedPrecondition && strings.Contains(a.err.Error(), "authentication is not enabled"):
			plain = true
		default:
			return a
		}
		s.mu.Lock()
		s.token, s.plain = token, plain
		s.mu.Unlock()
	}
	return s.invoke(ctx, at, method, request, token, sent)
}

// renewable reports whether the error means that another token may help, and
// forgets the one that there is.
func (s *store) renewable(err error) bool {
	message := status.Convert(err).Message()
	if s.user == "" || !strings.Contains(message, "invalid auth token") && !strings.Contains(message, "revision of auth store is old") &&
		!strings.Contains(message, "user name is empty") {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token, s.plain = "", false
	return true
}

// invoke makes one call on one connection.
func (s *store) invoke(ctx context.Context, at int, method string, request []byte, token string, sent *mark) attempt {
	conn, err := s.conn(at)
	if err != nil {
		return attempt{err: err, certain: true}
	}
	// A member that has lost the others says so, instead of waiting for them.
	pairs := []string{"hasleader", "true"}
	if token != "" {
		pairs = append(pairs, "token", token)
	}
	var answer []byte
	err = conn.Invoke(metadata.AppendToOutgoingContext(sent.on(ctx), pairs...), method, request, &answer)
	if err == nil {
		return attempt{answer: answer}
	}
	a := attempt{err: err}
	a.certain, a.refused = verdict(err)
	a.certain = a.certain || !sent.is()
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errNoAnswer), errors.Is(cause, context.DeadlineExceeded):
		a.err = errNoAnswer
		if sent.is() {
			s.drop(at, conn)
		}
	}
	return a
}

var errNoAnswer = errors.New("no answer in time")

// verdict says what an error of etcd means: whether the call was certainly not
// carried out, and whether every endpoint would say the same.
func verdict(err error) (certain, refused bool) {
	s := status.Convert(err)
	switch s.Code() {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.FailedPrecondition:
		return true, true
	case codes.Unimplemented: // this is no etcd, or one that is too old
		return true, false
	case codes.ResourceExhausted:
		// gRPC has the same code for an answer that is too large, which comes
		// after the deed.
		refused := strings.HasPrefix(s.Message(), "etcdserver: ")
		return refused, refused
	case codes.Unavailable:
		// Before it looks at the call, a member says whether it has a leader, and
		// whether it takes calls at all.
		return s.Message() == "etcdserver: no leader" || s.Message() == "etcdserver: rpc not supported for learner", false
	}
	return false, false
}

var _ coordinator.Store = (*store)(nil)

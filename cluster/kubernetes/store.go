package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/klog/v2"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/coordinator"
	"github.com/caddy-usher/usher/kubeaccess"
)

// callTimeout bounds calls whose context has no deadline.
const callTimeout = 10 * time.Second

// renewAfter is the least time between two readings of the credentials.
const renewAfter = time.Second

// entry is the key in the ConfigMap.
const entry = "view"

var configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}

// store is one ConfigMap.
type store struct {
	plan

	ctx   context.Context // ends with Close
	close context.CancelCauseFunc
	conns connections

	mu      sync.Mutex
	client  kubeaccess.Objects
	renewed time.Time // when the credentials were read last
}

func open(p plan) (*store, error) {
	s := &store{plan: p}
	s.ctx, s.close = context.WithCancelCause(context.Background())
	return s, s.connect()
}

// connect makes the client, from the credentials as they are now. It makes no
// call.
func (s *store) connect() error {
	config, space, err := kubeaccess.Load(s.kubeconfig, s.context)
	if err != nil {
		return err
	}
	config.QPS = -1 // a call a second needs no limit
	config.Dial = s.conns.dial
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return onlyOnce{kubeaccess.TellBreaks(next)} })
	client, err := kubeaccess.NewClient(config)
	if err != nil {
		return err
	}
	if s.namespace == "" {
		s.namespace = space
	}
	s.client = client.Objects(configMaps, s.namespace)
	s.renewed = time.Now()
	return nil
}

// String names the object for people.
func (s *store) String() string {
	return "the ConfigMap " + s.namespace + "/" + s.name + " of Kubernetes"
}

// Get implements coordinator.Store. The revision is the whole ConfigMap, as it
// was read: what Put puts back with another view.
func (s *store) Get(ctx context.Context) (value []byte, revision string, err error) {
	var found *unstructured.Unstructured
	_, err = s.call(ctx, func(ctx context.Context, client kubeaccess.Objects) (err error) {
		// Without a resource version the answer comes from etcd, by a majority.
		found, err = client.Get(ctx, s.name)
		return err
	})
	switch {
	case s.missing(err):
		return nil, "", nil
	case err != nil:
		return nil, "", err
	}
	text, ok, err := unstructured.NestedString(found.Object, "data", entry)
	switch {
	case found.GetName() != s.name || found.GetResourceVersion() == "":
		return nil, "", errors.New("the answer is no ConfigMap")
	case err != nil:
		return nil, "", err
	case !ok:
		text = "" // no view of Usher's, and not missing either
	}
	whole, err := found.MarshalJSON()
	if err != nil {
		return nil, "", err
	}
	return []byte(text), string(whole), nil
}

// missing reports whether the API server has said that there is no ConfigMap.
// client-go makes an error of the same kind of any other server's status 404,
// but without the name.
func (s *store) missing(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !errors.As(err, &status) {
		return false
	}
	details := status.Status().Details
	return details != nil && details.Name == s.name && details.Kind == configMaps.Resource
}

// Put implements coordinator.Store.
func (s *store) Put(ctx context.Context, value []byte, revision string) (cluster.SwapResult, error) {
	object := new(unstructured.Unstructured)
	if revision == "" {
		object.SetAPIVersion("v1")
		object.SetKind("ConfigMap")
		object.SetName(s.name)
		object.SetNamespace(s.namespace)
		object.SetLabels(map[string]string{"app.kubernetes.io/managed-by": "usher"})
	} else if err := object.UnmarshalJSON([]byte(revision)); err != nil {
		return cluster.Failed, err
	}
	if err := unstructured.SetNestedField(object.Object, string(value), "data", entry); err != nil {
		return cluster.Failed, err
	}
	sent, err := s.call(ctx, func(ctx context.Context, client kubeaccess.Objects) (err error) {
		if revision == "" {
			_, err = client.Create(ctx, object)
		} else {
			_, err = client.Update(ctx, object)
		}
		return err
	})
	switch {
	case err == nil:
		return cluster.Swapped, nil
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), revision != "" && s.missing(err):
		return cluster.Conflict, nil
	case !sent, refused(err):
		return cluster.Failed, err
	}
	return cluster.Unknown, err
}

// refused reports whether the API server has said no before it did anything.
// What begins with 5 may come after the deed.
func refused(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	switch status.Status().Code {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity, http.StatusTooManyRequests:
		return true
	}
	return false
}

// Close implements coordinator.Store.
func (s *store) Close() error {
	s.close(errClosed)
	s.conns.end()
	return nil
}

var errClosed = errors.New("the coordinator is closed")

// call makes a call, and says whether it may have been sent. If the credentials
// are refused they are read again, since they may have been renewed, and the
// call is made once more.
func (s *store) call(ctx context.Context, do func(context.Context, kubeaccess.Objects) error) (sent bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	for again := false; ; again = true {
		if s.ctx.Err() != nil {
			return false, context.Cause(s.ctx)
		}
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		sent, err = s.once(ctx, do)
		if again || !apierrors.IsUnauthorized(err) || !s.renew() {
			break
		}
	}
	switch {
	case err == nil:
	case s.ctx.Err() != nil:
		err = fmt.Errorf("%w: %w", context.Cause(s.ctx), err)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		// If its packets get lost it would take long until a connection is
		// given up: all are made anew.
		s.conns.closeAll()
		err = fmt.Errorf("no answer in time: %w", err)
	}
	return sent, err
}

// once makes a call once. It was not sent if it never had a connection.
func (s *store) once(ctx context.Context, do func(context.Context, kubeaccess.Objects) error) (sent bool, err error) {
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	// What goes wrong is returned, so the client need not log it.
	ctx = klog.NewContext(ctx, klog.Logger{})
	s.mu.Lock()
	client := s.client
	s.mu.Unlock()
	err = do(ctx, client)
	return connected.Load(), err
}

// renew reads the credentials again, but not all the time. It returns whether
// they were read since the last call.
func (s *store) renew() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.renewed) < renewAfter {
		return false
	}
	// With the old ones the call fails again, and says so.
	return s.connect() == nil
}

// onlyOnce keeps client-go from repeating a call when an answer says when to try
// again. What failed is told at once here.
type onlyOnce struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (o onlyOnce) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := o.next.RoundTrip(r)
	if err == nil {
		res.Header.Del("Retry-After")
	}
	return res, err
}

var _ coordinator.Store = (*store)(nil)

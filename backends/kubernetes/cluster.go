package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"

	"github.com/caddy-usher/usher/kubeaccess"
	"github.com/caddy-usher/usher/scaler"
)

// The limits on calls to one cluster, over all services. A wake is two calls;
// client-go's own limits (5 a second) would make the hundredth of a mass wake
// wait for half a minute. The API server guards itself with priorities.
const (
	callsPerSecond = 200
	callsAtOnce    = 1000
)

// callTimeout bounds a few calls that belong together and are no order.
const callTimeout = 15 * time.Second

// answerTimeout bounds one call that is not a list or a watch. An API server
// that is frozen, or behind a network that drops everything, refuses nothing:
// only its silence tells. A variable for the tests.
var answerTimeout = 10 * time.Second

// A connection says how to find a cluster. Equal ones share everything.
type connection struct {
	kubeconfig, context string
}

// clusters are the clusters in use.
var clusters struct {
	sync.Mutex
	open map[string]*cluster
}

// A cluster is the connection to one cluster, shared by all services that use
// it. It lives as long as one of them does.
type cluster struct {
	connection
	key   string
	log   *slog.Logger
	refs  int    // guarded by clusters
	space string // the namespace for workloads that name none

	client  atomic.Pointer[kubeaccess.Client]
	limiter flowcontrol.RateLimiter
	away    atomic.Int64 // when the API could not be asked last, in Unix nanoseconds

	mu         sync.Mutex
	renewed    time.Time // when the credentials were read last
	namespaces map[string]*namespace
	scalers    map[string][]*runner // by what they scale, in the order of opening
	said       map[string]bool      // what is said once

	ctx    context.Context // of the watches; ends with the last user
	cancel context.CancelFunc
}

// key names the connection among others. KUBECONFIG is a part of it: it may
// differ between two configurations of one process that are loaded in turn.
func (c connection) key() string {
	env := ""
	if c.kubeconfig == "" {
		env = os.Getenv(clientcmd.RecommendedConfigPathEnvVar)
	}
	return strings.Join([]string{c.kubeconfig, c.context, env}, "\x00")
}

// joinCluster returns the cluster of c, connected. Every join needs a leave.
func joinCluster(c connection, log *slog.Logger) (*cluster, error) {
	clusters.Lock()
	defer clusters.Unlock()
	key := c.key()
	if cl := clusters.open[key]; cl != nil {
		cl.refs++
		return cl, nil
	}
	cl := &cluster{
		connection: c, key: key, log: log, refs: 1,
		limiter:    flowcontrol.NewTokenBucketRateLimiter(callsPerSecond, callsAtOnce),
		namespaces: make(map[string]*namespace),
		scalers:    make(map[string][]*runner),
		said:       make(map[string]bool),
	}
	var err error
	if cl.space, err = cl.connect(); err != nil {
		return nil, err
	}
	cl.ctx, cl.cancel = context.WithCancel(context.Background())
	if clusters.open == nil {
		clusters.open = make(map[string]*cluster)
	}
	clusters.open[key] = cl
	return cl, nil
}

// leave gives a cluster back. The last one to leave ends it.
func (cl *cluster) leave() {
	clusters.Lock()
	cl.refs--
	last := cl.refs == 0
	if last {
		delete(clusters.open, cl.key)
	}
	clusters.Unlock()
	if !last {
		return
	}
	cl.cancel()
	cl.client.Load().Close()
}

// connect makes the client, from the credentials as they are now, and returns
// the namespace that goes with them. It makes no call.
func (cl *cluster) connect() (string, error) {
	config, space, err := cl.load()
	if err != nil {
		return "", err
	}
	config.RateLimiter = cl.limiter
	// Every call that matters is made again by this package, at its own pace.
	config.Wrap(kubeaccess.TellBreaks)
	client, err := kubeaccess.NewClient(config)
	if err != nil {
		return "", configFailure(err)
	}
	if old := cl.client.Swap(client); old != nil {
		old.Close()
	}
	return space, nil
}

// load finds the configuration of the connection.
func (c connection) load() (*rest.Config, string, error) {
	config, space, err := kubeaccess.Load(c.kubeconfig, c.context)
	if err != nil {
		return nil, "", configFailure(err)
	}
	return config, space, nil
}

func configFailure(err error) *scaler.Failure {
	return &scaler.Failure{
		Reason: scaler.ReasonNotFound, ForGood: true, Short: "no usable Kubernetes configuration", Err: err,
		Detail: "looked at kubeconfig and context of the service and of the global option kubernetes, the service account of the pod, KUBECONFIG, ~/.kube/config",
	}
}

// do makes a call, and does not wait for its answer for longer than
// answerTimeout. A call without an answer after that time has failed: waiting
// requests get the failure at once, and it is retried like any other.
func (cl *cluster) do(ctx context.Context, call func(context.Context, *kubeaccess.Client) error) error {
	patience, cancel := context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
	defer cancel()
	err := cl.ask(patience, call)
	if err != nil && errors.Is(context.Cause(patience), errNoAnswer) {
		return &scaler.Failure{
			Reason: scaler.ReasonPlatform, ForGood: true, Short: "the Kubernetes API does not answer", Err: err,
			Detail: "no answer within " + answerTimeout.String() + "; ready instances go on serving, and it is tried again",
		}
	}
	return err
}

var errNoAnswer = errors.New("no answer")

// ask makes a call, however long it takes. If the credentials are refused they
// are read again, since they may have been renewed, and the call is made
// once more.
func (cl *cluster) ask(ctx context.Context, call func(context.Context, *kubeaccess.Client) error) error {
	// What goes wrong is returned, so the client need not log it.
	ctx = klog.NewContext(ctx, klog.Logger{})
	client := cl.client.Load()
	err := call(ctx, client)
	if err == nil || !apierrors.IsUnauthorized(err) || !cl.renew(client) {
		return err
	}
	return call(ctx, cl.client.Load())
}

// renew reads the credentials again that refused has, but not all the time. It
// reports whether there are newer ones: another call may have read them meanwhile.
func (cl *cluster) renew(refused *kubeaccess.Client) bool {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.client.Load() != refused {
		return true
	}
	if time.Since(cl.renewed) < time.Second {
		return false
	}
	cl.renewed = time.Now()
	if _, err := cl.connect(); err != nil {
		cl.log.Warn("the credentials of a Kubernetes cluster are refused, and cannot be read again; those of before are kept", slog.Any("error", err))
		return false
	}
	return true
}

// once says something about this cluster a single time.
func (cl *cluster) once(about string, say func()) {
	cl.mu.Lock()
	first := !cl.said[about]
	cl.said[about] = true
	cl.mu.Unlock()
	if first {
		say()
	}
}

// scaling returns what a runner scales, for comparison with others.
func (r *runner) scaling() string { return fmt.Sprintf("%s %s", r.ns.name, r.plan.workload) }

// enter adds r, as the latest, to the runners that scale the same workload.
func (cl *cluster) enter(r *runner) {
	cl.mu.Lock()
	key := r.scaling()
	others := without(cl.scalers[key], r)
	cl.scalers[key] = append(others, r)
	r.entered = time.Now()
	cl.mu.Unlock()
	pokeAll(others)
}

// exit takes r out, and returns whether it was the last.
func (cl *cluster) exit(r *runner) (last bool) {
	cl.mu.Lock()
	key := r.scaling()
	others := without(cl.scalers[key], r)
	if len(others) == 0 {
		delete(cl.scalers, key)
	} else {
		cl.scalers[key] = others
	}
	cl.mu.Unlock()
	pokeAll(others)
	return len(others) == 0
}

// place tells where r stands among the runners of the same workload:
// superseded by a later revision of its service, or behind another service.
func (cl *cluster) place(r *runner) (superseded bool, behind string) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	all := cl.scalers[r.scaling()]
	after := false
	for _, o := range all {
		superseded = superseded || after && o.env.Service == r.env.Service
		after = after || o == r
	}
	if len(all) > 0 && all[0].env.Service != r.env.Service {
		behind = all[0].env.Service
	}
	return superseded, behind
}

// supersededAt returns when the latest runner of the same workload and service
// as r was opened.
func (cl *cluster) supersededAt(r *runner) (at time.Time) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for _, o := range cl.scalers[r.scaling()] {
		if o.env.Service == r.env.Service && o.entered.After(at) {
			at = o.entered
		}
	}
	return at
}

// contested tells whether another runner of the same service scales the same
// workload.
func (cl *cluster) contested(r *runner) bool {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for _, o := range cl.scalers[r.scaling()] {
		if o != r && o.env.Service == r.env.Service {
			return true
		}
	}
	return false
}

func without(all []*runner, r *runner) []*runner {
	var rest []*runner
	for _, o := range all {
		if o != r {
			rest = append(rest, o)
		}
	}
	return rest
}

func pokeAll(all []*runner) {
	for _, r := range all {
		r.poke(false)
	}
}

package kubernetes

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/caddy-usher/usher/scaler"
)

// The pauses between attempts to list and watch again. An API server that was
// away is noticed to be back within a few seconds.
var watchBackoff = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 6, Cap: 5 * time.Second}

// slowAfter is how long the API server may take to begin to answer before that
// is trouble.
const slowAfter = 10 * time.Second

// identified are the objects that a mirror holds.
type identified interface {
	identity() (uid string, version uint64)
}

// A mirror is a watched copy of the objects of one kind in one namespace. It
// is the store of a reflector.
type mirror[T identified] struct {
	gvr       schema.GroupVersionResource
	namespace string // "": all of them
	cluster   *cluster
	convert   func(*unstructured.Unstructured) T
	changed   func(before, after *T) // one object; called without the lock
	replaced  func(missed bool)      // everything, perhaps after a time when events were missed, or the trouble

	mu      sync.Mutex
	items   map[string]T // by key; nil before the first list
	gone    map[string]bool
	trouble *scaler.Failure
	failed  string // the verb of the call that had the trouble
}

// goneKept is how many objects that are gone are remembered, so that a word
// about them that comes late does not bring them back.
const goneKept = 1024

// run keeps the mirror in step with the cluster until the context ends.
func (m *mirror[T]) run(ctx context.Context) {
	// What goes wrong is reported by list and watch themselves.
	var quiet klog.Logger
	ctx = klog.NewContext(ctx, quiet)
	lw := &cache.ListWatch{ListWithContextFunc: m.list, WatchFuncWithContext: m.watch}
	backoff := watchBackoff
	cache.NewReflectorWithOptions(lw, nil, m, cache.ReflectorOptions{
		Name: "usher", TypeDescription: m.gvr.Resource, Backoff: &backoff, Logger: &quiet,
	}).RunWithContext(ctx)
}

func (m *mirror[T]) list(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	var list *unstructured.UnstructuredList
	err := m.cluster.ask(ctx, func(ctx context.Context, c dynamic.Interface) (err error) {
		list, err = c.Resource(m.gvr).Namespace(m.namespace).List(ctx, options)
		return err
	})
	m.settle(ctx, "list", err)
	if err != nil {
		return nil, err
	}
	return list, nil
}

func (m *mirror[T]) watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	slow := time.AfterFunc(slowAfter, func() {
		m.settle(ctx, "watch", &scaler.Failure{
			Reason: scaler.ReasonPlatform, Short: "the Kubernetes API does not answer",
			Detail: "a watch of " + m.objects() + " has had no answer for " + slowAfter.String() + "; ready instances go on serving",
		})
	})
	defer slow.Stop()
	var w watch.Interface
	err := m.cluster.ask(ctx, func(ctx context.Context, c dynamic.Interface) (err error) {
		w, err = c.Resource(m.gvr).Namespace(m.namespace).Watch(ctx, options)
		return err
	})
	if options.SendInitialEvents != nil && apierrors.IsInvalid(err) {
		// This cluster does not stream lists. The reflector asks for one.
		return nil, err
	}
	m.settle(ctx, "watch", err)
	if utilnet.IsConnectionRefused(err) || apierrors.IsTooManyRequests(err) {
		// The reflector would sleep over these without listening to its
		// context. What it does not know makes it list, after a pause.
		err = errors.New(err.Error())
	}
	return w, err
}

// objects names what is watched in messages.
func (m *mirror[T]) objects() string {
	if m.namespace == "" {
		return m.gvr.Resource + " in all namespaces"
	}
	return m.gvr.Resource + " in namespace " + m.namespace
}

// key names an object among the others of the mirror.
func (m *mirror[T]) key(u *unstructured.Unstructured) string {
	if m.namespace == "" {
		return u.GetNamespace() + "/" + u.GetName()
	}
	return u.GetName()
}

// settle takes note of how a call went.
func (m *mirror[T]) settle(ctx context.Context, verb string, err error) {
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	f := apiFailure(err, verb, m.objects())
	if f != nil && f.Reason == scaler.ReasonNotFound {
		// The kind of object is not known: an API server that has only begun.
		f = &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "the Kubernetes API is not complete", Err: err}
	}
	m.mu.Lock()
	if f != nil && m.items != nil {
		m.cluster.mayPass(f)
	}
	before := m.trouble
	if f == nil && verb == "list" && m.failed == "watch" {
		// To be permitted to list alone is not enough.
		f = before
	} else {
		m.trouble, m.failed = f, verb
	}
	m.mu.Unlock()
	if (f == nil) != (before == nil) || f != nil && f.Short != before.Short {
		if f != nil {
			m.cluster.log.Debug("watching fails", slog.String("resource", m.gvr.Resource), slog.String("namespace", m.namespace), slog.Any("error", f))
		}
		m.replaced(f == nil)
	}
}

// all returns the objects, whether they are known at all, and what is wrong.
func (m *mirror[T]) all() (items []T, synced bool, trouble *scaler.Failure) {
	m.mu.Lock()
	defer m.mu.Unlock()
	items = make([]T, 0, len(m.items))
	for _, item := range m.items {
		items = append(items, item)
	}
	return items, m.items != nil, m.trouble
}

// Add is called by the reflector for a new object, which may be one of which
// an event was missed.
func (m *mirror[T]) Add(obj any) error { return m.Update(obj) }

// Update is called by the reflector for a changed object.
func (m *mirror[T]) Update(obj any) error {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil
	}
	item, key := m.convert(u), m.key(u)
	uid, version := item.identity()
	m.mu.Lock()
	before, had := m.items[key]
	stale := m.items == nil || m.gone[uid]
	if had {
		oldUID, oldVersion := before.identity()
		stale = stale || oldUID == uid && version != 0 && version < oldVersion
	}
	if stale {
		m.mu.Unlock()
		return nil
	}
	m.items[key] = item
	m.mu.Unlock()
	if had {
		m.changed(&before, &item)
	} else {
		m.changed(nil, &item)
	}
	return nil
}

// Delete is called by the reflector for an object that is gone.
func (m *mirror[T]) Delete(obj any) error {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil
	}
	key := m.key(u)
	m.mu.Lock()
	before, had := m.items[key]
	if uid := string(u.GetUID()); had {
		if old, _ := before.identity(); old != uid {
			had = false
		}
		if len(m.gone) >= goneKept {
			clear(m.gone)
		}
		m.gone[uid] = true
	}
	if had {
		delete(m.items, key)
	}
	m.mu.Unlock()
	if had {
		m.changed(&before, nil)
	}
	return nil
}

// Replace is called by the reflector with a complete list.
func (m *mirror[T]) Replace(list []any, _ string) error {
	items := make(map[string]T, len(list))
	for _, obj := range list {
		if u, ok := obj.(*unstructured.Unstructured); ok {
			items[m.key(u)] = m.convert(u)
		}
	}
	m.mu.Lock()
	old := m.items
	m.items, m.gone = items, make(map[string]bool)
	m.mu.Unlock()
	for name, before := range old {
		after, ok := items[name]
		if !ok {
			m.changed(&before, nil)
			continue
		}
		uid, version := before.identity()
		if nextUID, nextVersion := after.identity(); nextUID != uid || nextVersion != version {
			m.changed(&before, &after)
		}
	}
	m.replaced(old != nil)
	return nil
}

// get returns the object of that name, and whether it is known.
func (m *mirror[T]) get(name string) (T, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	item, ok := m.items[name]
	return item, ok
}

// Resync is called by the reflector, never with a period of 0.
func (m *mirror[T]) Resync() error { return nil }

// Interface guard.
var _ cache.ReflectorStore = (*mirror[*pod])(nil)

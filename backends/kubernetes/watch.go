package kubernetes

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/caddy-usher/usher/kubeaccess"
	"github.com/caddy-usher/usher/scaler"
)

// The pauses between attempts to list and watch again. An API server that was
// away is noticed to be back within a few seconds.
var watchBackoff = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 6, Cap: 5 * time.Second}

const (
	// watchCalm is how long all must have gone well for the pauses to be short again.
	watchCalm = 2 * time.Minute

	// watchSeconds is the least time after which the API server ends a watch.
	watchSeconds = 5 * 60

	// pageSize is how many objects come in one answer. A page is decoded as a whole.
	pageSize = "500"

	// shortWatch is the least time that a watch lasts on an API server that works.
	shortWatch = time.Second
)

// slowAfter is how long the API server may take to begin to answer before that
// is trouble.
const slowAfter = 10 * time.Second

// identified are the objects that a mirror holds: pointers, which are nil for none.
type identified interface {
	identity() (uid string, version uint64)
}

// A mirror is a watched copy of the objects of one kind in one namespace, or in all.
type mirror[T identified] struct {
	gvr       schema.GroupVersionResource
	namespace string // "": all of them
	cluster   *cluster
	convert   func(*unstructured.Unstructured) T
	changed   func(before, after T) // one object, or nil; called without the lock
	replaced  func(missed bool)     // everything, perhaps after a time when events were missed, or the trouble

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
	pause := watchBackoff
	for ctx.Err() == nil {
		began := time.Now()
		version, err := m.list(ctx)
		for err == nil {
			version, err = m.watch(ctx, version)
		}
		if time.Since(began) > watchCalm {
			pause = watchBackoff
		}
		select {
		case <-time.After(pause.Step()):
		case <-ctx.Done():
		}
	}
}

// list takes what there is, and returns the version of it.
func (m *mirror[T]) list(ctx context.Context) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	items := make(map[string]T)
	for next := ""; version == "" || next != ""; {
		var page *unstructured.UnstructuredList
		err := m.cluster.ask(ctx, func(ctx context.Context, c *kubeaccess.Client) (err error) {
			page, err = c.Objects(m.gvr, m.namespace).List(ctx, kubeaccess.Params{"limit": pageSize, "continue": next})
			return err
		})
		if err == nil && page.GetResourceVersion() == "" {
			err = errors.New("the answer is no list of the Kubernetes API")
		}
		if err != nil {
			m.settle(ctx, "list", err)
			return "", err
		}
		for k := range page.Items {
			u := &page.Items[k]
			items[m.key(u)] = m.convert(u)
		}
		version, next = page.GetResourceVersion(), page.GetContinue()
	}
	m.settle(ctx, "list", nil)
	m.replace(items)
	return version, nil
}

// watch takes what happens after a version until the API server ends the watch, and
// returns the version from which it goes on. After an error it does not go on: there
// may be events that are lost, or that the API server has forgotten.
func (m *mirror[T]) watch(ctx context.Context, version string) (string, error) {
	began := time.Now()
	w, err := m.openWatch(ctx, version)
	if err != nil {
		return "", err
	}
	defer w.Close()
	for events := 0; ; events++ {
		kind, u, err := w.Next()
		switch {
		case errors.Is(err, io.EOF) && (events > 0 || time.Since(began) >= shortWatch):
			return version, nil
		case err != nil:
			return "", err
		}
		version = u.GetResourceVersion()
		switch kind {
		case watch.Added, watch.Modified:
			m.update(u)
		case watch.Deleted:
			m.remove(u)
		}
	}
}

// openWatch begins a watch. The API server ends it, at a time that differs between
// watches, so that none goes on for ever over a connection that is of no use.
func (m *mirror[T]) openWatch(ctx context.Context, version string) (w *kubeaccess.Watch, err error) {
	slow := time.AfterFunc(slowAfter, func() {
		m.settle(ctx, "watch", &scaler.Failure{
			Reason: scaler.ReasonPlatform, Short: "the Kubernetes API does not answer",
			Detail: "a watch of " + m.objects() + " has had no answer for " + slowAfter.String() + "; ready instances go on serving",
		})
	})
	defer slow.Stop()
	err = m.cluster.ask(ctx, func(ctx context.Context, c *kubeaccess.Client) (err error) {
		w, err = c.Objects(m.gvr, m.namespace).Watch(ctx, kubeaccess.Params{
			"resourceVersion":     version,
			"allowWatchBookmarks": "true",
			"timeoutSeconds":      strconv.Itoa(watchSeconds + rand.IntN(watchSeconds)),
		})
		return err
	})
	m.settle(ctx, "watch", err)
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

// update takes a new or changed object. It may be one of which an event was missed.
func (m *mirror[T]) update(u *unstructured.Unstructured) {
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
		return
	}
	m.items[key] = item
	m.mu.Unlock()
	m.changed(before, item)
}

// remove takes out an object that is gone.
func (m *mirror[T]) remove(u *unstructured.Unstructured) {
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
		var none T
		m.changed(before, none)
	}
}

// replace takes all that there is.
func (m *mirror[T]) replace(items map[string]T) {
	m.mu.Lock()
	old := m.items
	m.items, m.gone = items, make(map[string]bool)
	m.mu.Unlock()
	for name, before := range old {
		after, ok := items[name]
		if !ok {
			m.changed(before, after)
			continue
		}
		uid, version := before.identity()
		if nextUID, nextVersion := after.identity(); nextUID != uid || nextVersion != version {
			m.changed(before, after)
		}
	}
	m.replaced(old != nil)
}

// get returns the object of that name, and whether it is known.
func (m *mirror[T]) get(name string) (T, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	item, ok := m.items[name]
	return item, ok
}

package kubeaccess

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// clientOf returns a client of an API server, below a path as behind a proxy.
func clientOf(t *testing.T, serve http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(serve)
	t.Cleanup(server.Close)
	c, err := NewClient(&rest.Config{Host: server.URL + "/proxy"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

var (
	pods = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	jobs = schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}
)

func TestCallsAreThoseOfTheAPI(t *testing.T) {
	var said string
	c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		said = strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.Method, r.RequestURI, r.Header.Get("Content-Type"), body))
		if accept := r.Header.Get("Accept"); accept != "application/json" {
			t.Errorf("%s accepts %q", said, accept)
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x","generation":3}}`)
	})
	object := &unstructured.Unstructured{Object: map[string]any{"kind": "Pod", "apiVersion": "v1", "metadata": map[string]any{"name": "x"}}}
	uid := types.UID("u")
	got := func(u *unstructured.Unstructured, err error) error {
		if err == nil && u.GetGeneration() != 3 {
			return fmt.Errorf("the answer is %v", u)
		}
		return err
	}
	for want, call := range map[string]func(context.Context) error{
		"GET /proxy/api/v1/namespaces/a/pods/x": func(ctx context.Context) error {
			return got(c.Objects(pods, "a").Get(ctx, "x"))
		},
		"GET /proxy/apis/batch/v1/namespaces/a/jobs/x/scale": func(ctx context.Context) error {
			return got(c.Objects(jobs, "a").Get(ctx, "x", "scale"))
		},
		"GET /proxy/api/v1/namespaces/a/pods": func(ctx context.Context) error {
			_, err := c.Objects(pods, "a").List(ctx, nil)
			return err
		},
		"GET /proxy/apis/batch/v1/jobs": func(ctx context.Context) error {
			_, err := c.Objects(jobs, "").List(ctx, nil)
			return err
		},
		"GET /proxy/api/v1/namespaces/a/pods?fieldSelector=a%3Db%2Cc%3Dd": func(ctx context.Context) error {
			_, err := c.Objects(pods, "a").List(ctx, Params{"fieldSelector": "a=b,c=d", "continue": ""})
			return err
		},
		`POST /proxy/api/v1/namespaces/a/pods application/json {"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"}}`: func(ctx context.Context) error {
			return got(c.Objects(pods, "a").Create(ctx, object))
		},
		`PUT /proxy/api/v1/namespaces/a/pods/x application/json {"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"}}`: func(ctx context.Context) error {
			return got(c.Objects(pods, "a").Update(ctx, object))
		},
		`PATCH /proxy/apis/batch/v1/namespaces/a/jobs/x/scale application/merge-patch+json {"spec":null}`: func(ctx context.Context) error {
			return got(c.Objects(jobs, "a").Merge(ctx, "x", []byte(`{"spec":null}`), "scale"))
		},
		`DELETE /proxy/api/v1/namespaces/a/pods/x application/json {"kind":"DeleteOptions","apiVersion":"v1","preconditions":{"uid":"u"}}`: func(ctx context.Context) error {
			return c.Objects(pods, "a").Delete(ctx, "x", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		},
	} {
		if err := call(t.Context()); err != nil || said != want {
			t.Errorf("said: %s\nwant: %s\n%v", said, want, err)
		}
	}
}

func TestACallWithoutAProperNameIsNotMade(t *testing.T) {
	c := clientOf(t, func(_ http.ResponseWriter, r *http.Request) { t.Error("was called:", r.Method, r.RequestURI) })
	for _, name := range []string{"", ".", "..", "a/b", "a%2fb"} {
		ctx, all := t.Context(), c.Objects(pods, "a")
		_, get := all.Get(ctx, name)
		_, merge := all.Merge(ctx, name, []byte("{}"))
		_, sub := all.Get(ctx, "x", name)
		_, elsewhere := c.Objects(pods, "a/"+name).List(ctx, nil)
		for what, err := range map[string]error{
			"get": get, "patch": merge, "delete": all.Delete(ctx, name, metav1.DeleteOptions{}), "subresource": sub, "namespace": elsewhere,
		} {
			if err == nil {
				t.Errorf("%q: %s", name, what)
			}
		}
	}
}

func TestErrorsOfTheAPIAreWhatTheyWereThere(t *testing.T) {
	status, kind, body := 0, "", ""
	c := clientOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(status)
		io.WriteString(w, body)
	})
	status, kind, body = http.StatusConflict, "application/json",
		`{"kind":"Status","apiVersion":"v1","status":"Failure","message":"it was changed","reason":"Conflict","details":{"name":"x","kind":"pods"},"code":409}`
	for _, call := range []func() error{
		func() error { _, err := c.Objects(pods, "a").Get(t.Context(), "x"); return err },
		func() error { return c.Objects(pods, "a").Delete(t.Context(), "x", metav1.DeleteOptions{}) },
		func() error { _, err := c.Objects(pods, "a").Watch(t.Context(), nil); return err },
	} {
		err := call()
		said, ok := statusOf(err)
		if !apierrors.IsConflict(err) || err.Error() != "it was changed" || !ok || said.Status().Details.Name != "x" {
			t.Errorf("%#v", err)
		}
	}
	// Not from an API server.
	status, kind, body = http.StatusNotFound, "text/html", "<p>no such page"
	_, err := c.Objects(pods, "a").Get(t.Context(), "x")
	if said, ok := statusOf(err); !apierrors.IsNotFound(err) || !ok || said.Status().Details.Name != "" {
		t.Errorf("%#v", err)
	}
	for _, page := range []string{"<p>welcome", "", "{}", "[]"} {
		status, body = http.StatusOK, page
		if u, err := c.Objects(pods, "a").Get(t.Context(), "x"); err == nil {
			t.Errorf("%q is taken for %v", page, u)
		}
		if list, err := c.Objects(pods, "a").List(t.Context(), nil); err == nil {
			t.Errorf("%q is taken for %v", page, list)
		}
	}
}

func statusOf(err error) (apierrors.APIStatus, bool) {
	var status apierrors.APIStatus
	return status, errors.As(err, &status)
}

func TestAWatchTellsWhatHappens(t *testing.T) {
	stream := ""
	c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.RawQuery; q != "resourceVersion=7&watch=true" {
			t.Error(q)
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, stream)
	})
	open := func() *Watch {
		t.Helper()
		w, err := c.Objects(pods, "a").Watch(t.Context(), Params{"resourceVersion": "7"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Close)
		return w
	}
	const object = `"object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x","resourceVersion":"8"}}}`
	stream = `{"type":"ADDED",` + object + "\n" + `{"type":"BOOKMARK",` + object + "\n"
	w := open()
	for _, want := range []watch.EventType{watch.Added, watch.Bookmark} {
		if kind, u, err := w.Next(); kind != want || err != nil || u.GetResourceVersion() != "8" {
			t.Errorf("%s %v %v", kind, u, err)
		}
	}
	if _, _, err := w.Next(); err != io.EOF {
		t.Error(err)
	}
	stream = `{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","message":"too old","code":410}}`
	if _, _, err := open().Next(); !apierrors.IsResourceExpired(err) {
		t.Error(err)
	}
	for _, broken := range []string{`{"type":"ADDED",`, `{"type":"ADDED","object":{}}`, `{"type":"OTHER",` + object, `{"type":"ADDED"}`, "<p>"} {
		stream = broken
		if kind, u, err := open().Next(); err == nil || err == io.EOF {
			t.Errorf("%s: %s %v %v", broken, kind, u, err)
		}
	}
}

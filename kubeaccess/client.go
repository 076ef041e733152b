package kubeaccess

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// A Client makes calls of the API of a cluster. It is client-go's REST client, for
// objects of any kind as JSON has them. client-go's dynamic client is the same with
// more encodings, which make the binary larger by 0.1 MB. Its methods, and those of
// Objects, may be called at the same time.
type Client struct {
	rest      rest.Interface
	transport http.RoundTripper
}

// NewClient makes a client. It makes no call.
func NewClient(config *rest.Config) (*Client, error) {
	config = rest.CopyConfig(config)
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	config.NegotiatedSerializer = statuses
	hc, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	client, err := rest.UnversionedRESTClientForConfigAndClient(config, hc)
	if err != nil {
		return nil, err
	}
	return &Client{client, hc.Transport}, nil
}

// statuses reads the errors of the API, each of which comes as a Status. What else
// comes and goes is left as it is.
var statuses = func() runtime.NegotiatedSerializer {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	return serializer.NewCodecFactory(scheme).WithoutConversion()
}()

// Close closes the connections that carry no call.
func (c *Client) Close() { utilnet.CloseIdleConnectionsFor(c.transport) }

// Objects returns the objects of a kind in a namespace, or in all of them if it is
// empty.
func (c *Client) Objects(kind schema.GroupVersionResource, namespace string) Objects {
	return Objects{c.rest, kind, namespace}
}

// Objects are those of one kind in one namespace, or in all of them. An error of the
// API is an apierrors.APIStatus.
type Objects struct {
	rest      rest.Interface
	kind      schema.GroupVersionResource
	namespace string
}

// Params are query parameters, by their names in the API, such as fieldSelector. An
// empty one is left out.
type Params map[string]string

// Get returns an object, or a subresource of it.
func (o Objects) Get(ctx context.Context, name string, sub ...string) (*unstructured.Unstructured, error) {
	u := new(unstructured.Unstructured)
	return u, o.call(ctx, o.rest.Get(), u, append([]string{name}, sub...)...)
}

// List returns the objects that the parameters choose, as they are now.
func (o Objects) List(ctx context.Context, params Params) (*unstructured.UnstructuredList, error) {
	list := new(unstructured.UnstructuredList)
	return list, o.call(ctx, params.of(o.rest.Get()), list)
}

// Create makes an object, and returns it.
func (o Objects) Create(ctx context.Context, wanted *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	u := new(unstructured.Unstructured)
	return u, o.send(ctx, o.rest.Post(), wanted, u)
}

// Update replaces an object, and returns it.
func (o Objects) Update(ctx context.Context, wanted *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	u := new(unstructured.Unstructured)
	return u, o.send(ctx, o.rest.Put(), wanted, u, wanted.GetName())
}

// Merge changes an object, or a subresource of it, by a merge patch, and returns it.
func (o Objects) Merge(ctx context.Context, name string, patch []byte, sub ...string) (*unstructured.Unstructured, error) {
	u := new(unstructured.Unstructured)
	return u, o.call(ctx, o.rest.Patch(types.MergePatchType).Body(patch), u, append([]string{name}, sub...)...)
}

// Delete deletes an object.
func (o Objects) Delete(ctx context.Context, name string, options metav1.DeleteOptions) error {
	options.Kind, options.APIVersion = "DeleteOptions", "v1"
	return o.send(ctx, o.rest.Delete(), options, nil, name)
}

// Watch begins to tell of what happens to the objects. It is to be closed.
func (o Objects) Watch(ctx context.Context, params Params) (*Watch, error) {
	r, err := o.at(params.of(o.rest.Get()).Param("watch", "true"))
	if err != nil {
		return nil, err
	}
	stream, err := r.Stream(ctx)
	if err != nil {
		return nil, err
	}
	return &Watch{stream, json.NewDecoder(stream)}, nil
}

// send makes a call that has a body.
func (o Objects) send(ctx context.Context, r *rest.Request, body any, answer json.Unmarshaler, path ...string) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return o.call(ctx, r.SetHeader("Content-Type", runtime.ContentTypeJSON).Body(text), answer, path...)
}

// call makes a call, and reads the answer if there is something to take it.
func (o Objects) call(ctx context.Context, r *rest.Request, answer json.Unmarshaler, path ...string) error {
	r, err := o.at(r, path...)
	if err != nil {
		return err
	}
	res := r.Do(ctx)
	if err := res.Error(); err != nil || answer == nil {
		return err
	}
	text, err := res.Raw()
	if err != nil {
		return err
	}
	return answer.UnmarshalJSON(text)
}

// at addresses a call to the object at a path below these, or to all of them. The whole
// path is set at once: client-go would write the parts that it knows into any error, also
// where the answer came from something that is no API server.
func (o Objects) at(r *rest.Request, path ...string) (*rest.Request, error) {
	root := []string{"apis", o.kind.Group, o.kind.Version}
	if o.kind.Group == "" {
		root = []string{"api", o.kind.Version}
	}
	if o.namespace != "" {
		root = append(root, "namespaces", o.namespace)
	}
	path = slices.Concat(root, []string{o.kind.Resource}, path)
	for _, part := range path {
		// Without a name a call would be one about all objects.
		if why := rest.IsValidPathSegmentName(part); part == "" || len(why) > 0 {
			return nil, fmt.Errorf("a call of the Kubernetes API about %s would have the path /%s: one part of it is no name", o.kind.Resource, strings.Join(path, "/"))
		}
	}
	return r.AbsPath(path...), nil
}

// of gives parameters to a call.
func (p Params) of(r *rest.Request) *rest.Request {
	for name, value := range p {
		if value != "" {
			r = r.Param(name, value)
		}
	}
	return r
}

// A Watch tells what happens. Its methods are not safe for concurrent use.
type Watch struct {
	stream  io.ReadCloser
	decoder *json.Decoder
}

// Next waits for an event: Added, Modified, Deleted or Bookmark, with an object. The
// error is an apierrors.APIStatus if it comes from the API server, and anything
// else, such as io.EOF, when the connection has ended.
func (w *Watch) Next() (watch.EventType, *unstructured.Unstructured, error) {
	var event struct {
		Type   watch.EventType `json:"type"`
		Object json.RawMessage `json:"object"`
	}
	if err := w.decoder.Decode(&event); err != nil {
		return "", nil, err
	}
	switch event.Type {
	case watch.Added, watch.Modified, watch.Deleted, watch.Bookmark:
		u := new(unstructured.Unstructured)
		return event.Type, u, u.UnmarshalJSON(event.Object)
	case watch.Error:
		var status metav1.Status
		if err := json.Unmarshal(event.Object, &status); err != nil {
			return "", nil, err
		}
		return "", nil, apierrors.FromObject(&status)
	}
	return "", nil, fmt.Errorf("a watch has told of %q, which is not known", event.Type)
}

// Close ends the watch.
func (w *Watch) Close() { w.stream.Close() }

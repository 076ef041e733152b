package kubernetes

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/addr"
)

// An object is what the API server holds.
type object = map[string]any

// A call is a request as the API server understood it.
type call struct {
	verb, resource, name, sub string
	space                     string // "" is all
	body                      object
	query                     map[string]string
}

func (c call) String() string {
	s := c.verb + " " + c.resource
	if c.name != "" {
		s += "/" + c.name
	}
	if c.sub != "" {
		s += "/" + c.sub
	}
	return s
}

// logged is a change in the history that watches are served from.
type logged struct {
	rv       int
	kind     string // ADDED, MODIFIED, DELETED
	resource string
	object   json.RawMessage
}

// apiServer is as much of an API server as a scaler sees of one: it keeps a
// history with resource versions and enforces them,
// and can be slow, down, forgetful and wrong.
type apiServer struct {
	t       *testing.T
	address string
	cert    tls.Certificate
	ca      []byte
	token   string

	mu        sync.Mutex
	http      *http.Server
	rv        int
	objects   map[string]map[string]object // by resource and name
	history   []logged
	compacted int // versions up to this one are gone
	turn      chan struct{}
	drops     int  // how often all watches were cut
	held      bool // watches deliver nothing
	calls     []call
	watches   int

	spaces    bool                     // lists and watches are of their namespaces alone
	fleeting  bool                     // watches end at once
	page      int                      // how many objects a list has, if not all
	swap      bool                     // watches deliver each pair of events the wrong way round
	refuse    func(call) (int, string) // a status and its message, or 0
	before    func(call)               // runs before a call, without the lock
	reconcile func(s *apiServer)       // controllers; run with the lock held
	slow      map[string]chan struct{} // calls that wait
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	pattern := httptest.NewTLSServer(nil)
	s := &apiServer{
		t: t, cert: pattern.TLS.Certificates[0], token: "secret",
		ca:      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pattern.Certificate().Raw}),
		objects: make(map[string]map[string]object), turn: make(chan struct{}), rv: 100,
		slow: make(map[string]chan struct{}),
	}
	pattern.Close()
	s.start()
	t.Cleanup(s.stop)
	return s
}

// start begins to listen, at the same address as before.
func (s *apiServer) start() {
	s.t.Helper()
	if s.address == "" {
		s.address = addr.Free(s.t).String()
	}
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	server := &http.Server{
		Handler: http.HandlerFunc(s.serve), ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{s.cert}, NextProtos: []string{"h2", "http/1.1"}},
	}
	s.mu.Lock()
	s.http = server
	s.mu.Unlock()
	go func() { _ = server.ServeTLS(l, "", "") }()
}

// stop cuts all connections and refuses new ones.
func (s *apiServer) stop() {
	s.mu.Lock()
	server := s.http
	s.mu.Unlock()
	s.dropWatches()
	_ = server.Close()
}

// kubeconfig writes a configuration for this server.
func (s *apiServer) kubeconfig() string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "kubeconfig")
	s.writeKubeconfig(path)
	return path
}

func (s *apiServer) writeKubeconfig(path string) {
	s.t.Helper()
	config, err := json.Marshal(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []any{object{"name": "c", "cluster": object{"server": "https://" + s.address, "certificate-authority-data": s.ca}}},
		"users":    []any{object{"name": "u", "user": object{"token": s.token}}},
		"contexts": []any{
			object{"name": "test", "context": object{"cluster": "c", "user": "u", "namespace": "default"}},
			object{"name": "other", "context": object{"cluster": "c", "user": "u", "namespace": "elsewhere"}},
		},
	})
	if err == nil {
		err = os.WriteFile(path, config, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// serve answers one request.
func (s *apiServer) serve(w http.ResponseWriter, r *http.Request) {
	c, ok := parseCall(r)
	if !ok {
		status(w, http.StatusNotFound, "the server could not find the requested resource")
		return
	}
	s.mu.Lock()
	before := s.before
	s.mu.Unlock()
	if before != nil {
		before(c)
	}
	s.mu.Lock()
	s.calls = append(s.calls, c)
	wait, refuse, token := s.slow[c.String()], s.refuse, s.token
	s.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-r.Context().Done():
			return
		}
	}
	if r.Header.Get("Authorization") != "Bearer "+token {
		status(w, http.StatusUnauthorized, "Unauthorized")
		return
	}
	if refuse != nil {
		if code, message := refuse(c); code != 0 {
			status(w, code, message)
			return
		}
	}
	switch c.verb {
	case "watch":
		s.watch(w, r, c)
		return
	case "list":
		s.list(w, c)
		return
	}
	s.mu.Lock()
	code, answer, message := s.one(c)
	if code == http.StatusOK && c.verb != "get" {
		s.settle()
	}
	s.mu.Unlock()
	if code != http.StatusOK {
		status(w, code, message)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

func parseCall(r *http.Request) (call, bool) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	k := slices.Index(parts, "namespaces")
	if k < 0 && len(parts) > 2 {
		// A list or a watch of all namespaces.
		k = len(parts) - 3
	} else if k < 0 || len(parts) < k+3 {
		return call{}, false
	}
	c := call{resource: parts[k+2], query: make(map[string]string)}
	if parts[k] == "namespaces" {
		c.space = parts[k+1]
	}
	for name := range r.URL.Query() {
		c.query[name] = r.URL.Query().Get(name)
	}
	if len(parts) > k+3 {
		c.name = parts[k+3]
	}
	if len(parts) > k+4 {
		c.sub = parts[k+4]
	}
	switch {
	case r.Method == http.MethodGet && c.query["watch"] == "true":
		c.verb = "watch"
	case r.Method == http.MethodGet && c.name == "":
		c.verb = "list"
	default:
		c.verb = strings.ToLower(r.Method)
	}
	if body, _ := io.ReadAll(r.Body); len(body) > 0 {
		_ = json.Unmarshal(body, &c.body)
	}
	return c, true
}

func status(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(statusObject(code, message))
}

func statusObject(code int, message string) object {
	reason := map[int]string{
		401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed", 409: "Conflict", 410: "Expired",
		422: "Invalid", 429: "TooManyRequests", 500: "InternalError",
	}[code]
	if strings.HasSuffix(message, "already exists") {
		reason = "AlreadyExists"
	}
	return object{"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
}

// one carries out a call to one object. The lock is held.
func (s *apiServer) one(c call) (code int, answer object, message string) {
	if c.verb == "post" {
		return s.create(c)
	}
	o := s.objects[c.resource][c.name]
	if o == nil {
		return 404, nil, fmt.Sprintf("%s %q not found", c.resource, c.name)
	}
	meta := o["metadata"].(object)
	switch c.verb {
	case "get":
		if c.sub == "scale" {
			return 200, s.scaleOf(c.resource, o), ""
		}
		return 200, o, ""
	case "patch":
		given := child(c.body, "metadata")
		if v := text(given, "resourceVersion"); v != "" && v != meta["resourceVersion"] {
			return 409, nil, "the object has been modified; please apply your changes to the latest version and try again"
		}
		if uid := text(given, "uid"); uid != "" && uid != meta["uid"] {
			return 409, nil, "Precondition failed: UID"
		}
		delete(given, "resourceVersion")
		o = copyOf(o)
		merge(o, c.body)
		s.store(c.resource, o)
		if c.sub == "scale" {
			return 200, s.scaleOf(c.resource, o), ""
		}
		return 200, o, ""
	case "delete":
		if uid := text(child(c.body, "preconditions"), "uid"); uid != "" && uid != meta["uid"] {
			return 409, nil, "Precondition failed: UID"
		}
		s.markDeleted(c.resource, c.name)
		return 200, o, ""
	}
	return 405, nil, "the server does not allow this method"
}

// create makes an object. The lock is held.
func (s *apiServer) create(c call) (code int, answer object, message string) {
	o := copyOf(c.body)
	name := nameOf(o)
	if s.objects[c.resource][name] != nil {
		return 409, statusObject(409, ""), fmt.Sprintf("%s %q already exists", c.resource, name)
	}
	merge(o, object{"metadata": object{"namespace": "default", "uid": uids(), "creationTimestamp": time.Now().UTC().Format(time.RFC3339)}})
	s.store(c.resource, o)
	return 200, s.objects[c.resource][name], ""
}

func (s *apiServer) scaleOf(resource string, o object) object {
	meta := o["metadata"].(object)
	spec := object{}
	if n := number(child(o, "spec"), "replicas"); n != 0 {
		spec["replicas"] = n // as the API: a zero is left out
	}
	selector := ""
	for k, v := range child(child(child(o, "spec"), "selector"), "matchLabels") {
		selector = k + "=" + v.(string)
	}
	return object{
		"apiVersion": "autoscaling/v1", "kind": "Scale",
		"metadata": object{"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
		"spec":     spec, "status": object{"selector": selector},
	}
}

func (s *apiServer) list(w http.ResponseWriter, c call) {
	s.mu.Lock()
	items, meta := []any{}, object{"resourceVersion": strconv.Itoa(s.rv)}
	for _, name := range slices.Sorted(maps.Keys(s.objects[c.resource])) {
		if len(items) == s.page && s.page > 0 {
			meta["continue"] = name
			break
		}
		if o := s.objects[c.resource][name]; name >= c.query["continue"] && s.concerns(c, o) {
			items = append(items, o)
		}
	}
	answer, _ := json.Marshal(object{"apiVersion": "v1", "kind": "List", "metadata": meta, "items": items})
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer)
}

// concerns reports whether an object is in the namespace of a call.
func (s *apiServer) concerns(c call, o object) bool {
	return !s.spaces || c.space == "" || text(child(o, "metadata"), "namespace") == c.space
}

// keyOf is what an object is kept under.
func keyOf(o object) string {
	meta := child(o, "metadata")
	if space := text(meta, "namespace"); space != "" && space != "default" {
		return space + "/" + text(meta, "name")
	}
	return text(meta, "name")
}

// store keeps an object under a new version. The lock is held.
func (s *apiServer) store(resource string, o object) {
	meta := o["metadata"].(object)
	name := keyOf(o)
	s.rv++
	meta["resourceVersion"] = strconv.Itoa(s.rv)
	kind := "MODIFIED"
	if s.objects[resource] == nil {
		s.objects[resource] = make(map[string]object)
	}
	if s.objects[resource][name] == nil {
		kind = "ADDED"
	}
	s.objects[resource][name] = o
	s.record(kind, resource, o)
}

func (s *apiServer) record(kind, resource string, o object) {
	s.history = append(s.history, logged{s.rv, kind, resource, encode(o)})
	close(s.turn)
	s.turn = make(chan struct{})
}

// remove takes an object away for good. The lock is held.
func (s *apiServer) remove(resource, name string) {
	o := s.objects[resource][name]
	if o == nil {
		return
	}
	delete(s.objects[resource], name)
	o = copyOf(o)
	s.rv++
	o["metadata"].(object)["resourceVersion"] = strconv.Itoa(s.rv)
	s.record("DELETED", resource, o)
}

// markDeleted begins to delete a pod: its kubelet ends it later. The lock is
// held.
func (s *apiServer) markDeleted(resource, name string) {
	o := copyOf(s.objects[resource][name])
	meta := o["metadata"].(object)
	if meta["deletionTimestamp"] == nil {
		meta["deletionTimestamp"] = time.Now().UTC().Format(time.RFC3339)
		s.store(resource, o)
	}
}

// settle lets the controllers work. The lock is held.
func (s *apiServer) settle() {
	if s.reconcile != nil {
		s.reconcile(s)
	}
}

// do changes the state as another client would.
func (s *apiServer) do(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.settle()
	close(s.turn)
	s.turn = make(chan struct{})
}

// use lets before be called with each call from now on, before anything else.
func (s *apiServer) use(before func(call)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = before
}

// made returns the calls so far whose text has the prefix.
func (s *apiServer) made(prefix string) []call {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []call
	for _, c := range s.calls {
		if strings.HasPrefix(c.String(), prefix) {
			all = append(all, c)
		}
	}
	return all
}

func encode(o object) json.RawMessage {
	text, err := json.Marshal(o)
	if err != nil {
		panic(errors.Join(errors.New("an object of the test does not encode"), err))
	}
	return text
}

func copyOf(o object) object {
	var c object
	if err := json.Unmarshal(encode(o), &c); err != nil {
		panic(err)
	}
	return c
}

// merge is a JSON merge patch.
func merge(into, patch object) {
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(into, k)
		case object:
			if _, ok := into[k].(object); !ok {
				into[k] = object{}
			}
			merge(into[k].(object), v)
		default:
			into[k] = v
		}
	}
}

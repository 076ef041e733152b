package kubernetes

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// apiServer is as much of an API server as a coordinator sees of one: the
// ConfigMaps of one namespace with their resource versions, over HTTP/2. What
// a real one does is tested in test/kubernetes.
type apiServer struct {
	t       testing.TB
	address string
	ca      []byte

	mu      sync.Mutex
	server  *httptest.Server
	token   string
	version int
	objects map[string]map[string]any
	calls   []string                                             // method and path of each
	before  func(http.ResponseWriter, *http.Request) (over bool) // answers in the server's place
	frozen  chan struct{}                                        // closed by thaw; nil: not frozen
}

func startServer(t testing.TB) *apiServer {
	t.Helper()
	s := &apiServer{t: t, token: "good", objects: make(map[string]map[string]any)}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *apiServer) start() {
	s.t.Helper()
	server := httptest.NewUnstartedServer(s)
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that a proxy breaks
	if s.address != "" {
		server.Listener.Close()
		l, err := net.Listen("tcp", s.address)
		if err != nil {
			s.t.Fatal(err)
		}
		server.Listener = l
	}
	server.StartTLS()
	s.address = server.Listener.Addr().String()
	s.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	s.mu.Lock()
	s.server = server
	s.mu.Unlock()
}

func (s *apiServer) stop() {
	s.mu.Lock()
	server := s.server
	s.server = nil
	s.mu.Unlock()
	if server != nil {
		server.CloseClientConnections()
		server.Close()
	}
}

func (s *apiServer) freeze() (thaw func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	frozen := make(chan struct{})
	s.frozen = frozen
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.frozen = nil
		close(frozen)
	}
}

// kubeconfig writes one that leads to an address.
func (s *apiServer) kubeconfig(address, token string) string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "kubeconfig")
	s.writeKubeconfig(path, address, token)
	return path
}

func (s *apiServer) writeKubeconfig(path, address, token string) {
	s.t.Helper()
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: main
contexts: [{name: main, context: {cluster: c, user: u, namespace: here}}]
clusters: [{name: c, cluster: {server: "https://%s", tls-server-name: example.com, certificate-authority-data: %s}}]
users: [{name: u, user: {token: %s}}]
`, address, base64.StdEncoding.EncodeToString(s.ca), token)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// write puts data in the place of an object, or removes it.
func (s *apiServer) write(name string, data map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if data == nil {
		delete(s.objects, name)
		return
	}
	s.set(name, map[string]any{"metadata": map[string]any{"name": name, "namespace": "here"}, "data": data})
}

func (s *apiServer) set(name string, object map[string]any) {
	s.version++
	object["apiVersion"], object["kind"] = "v1", "ConfigMap"
	object["metadata"].(map[string]any)["resourceVersion"] = strconv.Itoa(s.version)
	s.objects[name] = object
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	s.mu.Lock()
	s.calls = append(s.calls, r.Method+" "+r.URL.RequestURI())
	frozen, before := s.frozen, s.before
	s.mu.Unlock()
	if frozen != nil {
		select {
		case <-frozen:
		case <-r.Context().Done():
			return
		}
	}
	if before != nil && before(w, r) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer "+s.token {
		fail(w, http.StatusUnauthorized, "Unauthorized", "", "Unauthorized")
		return
	}
	const collection = "/api/v1/namespaces/here/configmaps"
	name := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, collection), "/")
	var object map[string]any
	if len(body) > 0 {
		if err := json.Unmarshal(body, &object); err != nil {
			fail(w, http.StatusBadRequest, "BadRequest", name, err.Error())
			return
		}
	}
	found := s.objects[name]
	switch {
	case !strings.HasPrefix(r.URL.Path, collection):
		fail(w, http.StatusNotFound, "NotFound", "elsewhere", "namespaces not found")
	case r.Method == http.MethodPost:
		name = object["metadata"].(map[string]any)["name"].(string)
		if s.objects[name] != nil {
			fail(w, http.StatusConflict, "AlreadyExists", name, "configmaps already exists")
			return
		}
		s.set(name, object)
		answer(w, http.StatusCreated, object)
	case found == nil:
		fail(w, http.StatusNotFound, "NotFound", name, "configmaps not found")
	case r.Method == http.MethodGet:
		answer(w, http.StatusOK, found)
	case r.Method == http.MethodPut:
		if object["metadata"].(map[string]any)["resourceVersion"] != found["metadata"].(map[string]any)["resourceVersion"] {
			fail(w, http.StatusConflict, "Conflict", name, "the object has been modified")
			return
		}
		s.set(name, object)
		answer(w, http.StatusOK, object)
	default:
		fail(w, http.StatusMethodNotAllowed, "MethodNotAllowed", name, "not allowed")
	}
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

// fail answers with a Status, as an API server does.
func fail(w http.ResponseWriter, code int, reason, name, message string) {
	answer(w, code, map[string]any{
		"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message,
		"details": map[string]any{"name": name, "kind": "configmaps"},
	})
}

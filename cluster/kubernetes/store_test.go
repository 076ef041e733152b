package kubernetes

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/goleak"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/coordinator"
	"github.com/caddy-usher/usher/cluster/coordinatortest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

func opened(t testing.TB, c Coordinator) *store {
	t.Helper()
	if err := c.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	s, err := c.OpenStore(coordinatortest.Name)
	if err != nil {
		t.Fatal(err)
	}
	return s.(*store)
}

// at opens a store of a server. It is closed with the test.
func at(t testing.TB, s *apiServer) *store {
	t.Helper()
	st := opened(t, Coordinator{Kubeconfig: s.kubeconfig(s.address, s.token)})
	t.Cleanup(func() { st.Close() })
	return st
}

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestConforms(t *testing.T) {
	server := startServer(t)
	objects := 0
	coordinatortest.Run(t, func(*testing.T) coordinatortest.Subject {
		objects++
		name := "object-" + strconv.Itoa(objects)
		return coordinatortest.Subject{
			Server: server.address,
			Open: func(t testing.TB, address string) coordinator.Store {
				if address == "" {
					address = server.address
				}
				return opened(t, Coordinator{Name: name, Kubeconfig: server.kubeconfig(address, "good")})
			},
			Write:  func(_ testing.TB, data []byte) { server.write(name, map[string]any{entry: string(data)}) },
			Delete: func(testing.TB) { server.write(name, nil) },
			Stop: func(testing.TB) (start func()) {
				server.stop()
				return server.start
			},
			Freeze: func(testing.TB) (thaw func()) { return server.freeze() },
		}
	})
}

// People may put labels and other entries on the ConfigMap.
func TestWhatElseIsInTheConfigMapStays(t *testing.T) {
	server := startServer(t)
	s := at(t, server)
	if result, err := s.Put(soon(t), []byte("1"), ""); result != cluster.Swapped {
		t.Fatal(result, err)
	}
	server.mu.Lock()
	made := server.objects["usher-conformance"]
	made["metadata"].(map[string]any)["annotations"] = map[string]any{"note": "ours"}
	made["data"].(map[string]any)["other"] = "x"
	server.mu.Unlock()
	_, revision, err := s.Get(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	if result, err := s.Put(soon(t), []byte("2"), revision); result != cluster.Swapped {
		t.Fatal(result, err)
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	want := map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "data": map[string]any{"view": "2", "other": "x"},
		"metadata": map[string]any{
			"name": "usher-conformance", "namespace": "here", "resourceVersion": "2",
			"labels": map[string]any{"app.kubernetes.io/managed-by": "usher"}, "annotations": map[string]any{"note": "ours"},
		},
	}
	if got := server.objects["usher-conformance"]; !reflect.DeepEqual(got, want) {
		t.Errorf("the ConfigMap is %v, want %v", got, want)
	}
	// A read that asks for any version may be answered from a cache.
	wantCalls := []string{
		"POST /api/v1/namespaces/here/configmaps",
		"GET /api/v1/namespaces/here/configmaps/usher-conformance", "PUT /api/v1/namespaces/here/configmaps/usher-conformance",
	}
	if !slices.Equal(server.calls, wantCalls) {
		t.Errorf("the calls are %q, want %q", server.calls, wantCalls)
	}
}

func TestAConfigMapWithoutAViewIsAnError(t *testing.T) {
	server := startServer(t)
	server.write("usher-conformance", map[string]any{"something": "else"})
	c := coordinator.Over(coordinatortest.Name, at(t, server))
	if v, err := c.Read(soon(t)); err == nil || !strings.Contains(err.Error(), "the ConfigMap here/usher-conformance of Kubernetes") {
		t.Errorf("view %v, error %v", v, err)
	}
}

// Only the API server knows that the ConfigMap is missing.
func TestAnother404IsNotAMissingConfigMap(t *testing.T) {
	server := startServer(t)
	s := at(t, server)
	var reply func(w http.ResponseWriter)
	server.before = func(w http.ResponseWriter, _ *http.Request) bool { reply(w); return true }
	for name, r := range map[string]func(w http.ResponseWriter){
		"a page":          func(w http.ResponseWriter) { http.Error(w, "no such route", http.StatusNotFound) },
		"another object":  func(w http.ResponseWriter) { fail(w, http.StatusNotFound, "NotFound", "other", "not found") },
		"an empty answer": func(w http.ResponseWriter) { answer(w, http.StatusOK, map[string]any{}) },
		"another kind": func(w http.ResponseWriter) {
			answer(w, http.StatusOK, map[string]any{"kind": "Pod", "apiVersion": "v1"})
		},
		"nothing":         func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) },
		"an Unauthorized": func(w http.ResponseWriter) { fail(w, http.StatusUnauthorized, "Unauthorized", "", "Unauthorized") },
		"a Status success": func(w http.ResponseWriter) {
			answer(w, http.StatusOK, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success"})
		},
	} {
		reply = r
		if value, revision, err := s.Get(soon(t)); err == nil {
			t.Errorf("%s is taken for %q, revision %q", name, value, revision)
		}
	}
}

func TestWhatAnErrorOfAWriteMeans(t *testing.T) {
	server := startServer(t)
	s := at(t, server)
	if result, err := s.Put(soon(t), []byte("1"), ""); result != cluster.Swapped {
		t.Fatal(result, err)
	}
	_, revision, err := s.Get(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		code   int
		reason string
		want   cluster.SwapResult
	}{
		{400, "BadRequest", cluster.Failed},
		{401, "Unauthorized", cluster.Failed},
		{403, "Forbidden", cluster.Failed},
		{409, "Conflict", cluster.Conflict},
		{409, "AlreadyExists", cluster.Conflict},
		{413, "RequestEntityTooLarge", cluster.Failed},
		{422, "Invalid", cluster.Failed},
		{429, "TooManyRequests", cluster.Failed},
		{500, "InternalError", cluster.Unknown},
		{502, "", cluster.Unknown},
		{503, "ServiceUnavailable", cluster.Unknown},
		{504, "Timeout", cluster.Unknown},
	} {
		server.mu.Lock()
		server.calls = nil
		server.before = func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "1")
			fail(w, c.code, c.reason, s.name, "the server says no")
			return true
		}
		server.mu.Unlock()
		result, err := s.Put(soon(t), []byte("2"), revision)
		if result != c.want {
			t.Errorf("%d %s: result %d, error %v; want %d", c.code, c.reason, result, err, c.want)
		}
		if (err == nil) != (c.want == cluster.Conflict) {
			t.Errorf("%d %s: error %v", c.code, c.reason, err)
		}
		if len(server.calls) != 1 {
			t.Errorf("%d %s: the calls are %q, want one: a write is not repeated", c.code, c.reason, server.calls)
		}
	}
}

func TestAWriteToAMissingNamespaceFails(t *testing.T) {
	server := startServer(t)
	s := opened(t, Coordinator{Namespace: "elsewhere", Kubeconfig: server.kubeconfig(server.address, "good")})
	defer s.Close()
	if result, err := s.Put(soon(t), []byte("1"), ""); result != cluster.Failed || err == nil {
		t.Errorf("result %d, error %v; want failed", result, err)
	}
}

// Credentials are renewed in their file.
func TestRefusedCredentialsAreReadAgain(t *testing.T) {
	server := startServer(t)
	path := server.kubeconfig(server.address, "good")
	s := opened(t, Coordinator{Kubeconfig: path})
	defer s.Close()
	if _, _, err := s.Get(soon(t)); err != nil {
		t.Fatal(err)
	}
	server.mu.Lock()
	server.token = "better"
	server.mu.Unlock()
	s.renewed = time.Time{}
	if _, _, err := s.Get(soon(t)); err == nil {
		t.Error("the old token is still good")
	}
	server.writeKubeconfig(path, server.address, "better")
	s.renewed = time.Time{}
	if result, err := s.Put(soon(t), []byte("1"), ""); result != cluster.Swapped {
		t.Errorf("result %d, error %v; want it swapped", result, err)
	}
}

// client-go would ask again after a second, and again.
func TestAReadWhoseConnectionBreaksFailsAtOnce(t *testing.T) {
	server := startServer(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan int)
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				accepted <- n
				return
			}
			c.Close()
		}
	}()
	s := opened(t, Coordinator{Kubeconfig: server.kubeconfig(l.Addr().String(), "good")})
	defer s.Close()
	if _, _, err := s.Get(soon(t)); err == nil || !strings.Contains(err.Error(), "the connection to the API server broke") {
		t.Errorf("error %v", err)
	}
	l.Close()
	if n := <-accepted; n != 1 {
		t.Errorf("it has connected %d times, want once", n)
	}
}

func TestNoConnectionOutlivesClose(t *testing.T) {
	server := startServer(t)
	s := at(t, server)
	if _, _, err := s.Get(soon(t)); err != nil {
		t.Fatal(err)
	}
	s.conns.mu.Lock()
	all := slices.Collect(maps.Keys(s.conns.all))
	s.conns.mu.Unlock()
	s.Close()
	if len(all) != 1 {
		t.Fatalf("%d connections, want one", len(all))
	}
	if err := all[0].SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection is still there: %v", err)
	}
	// Nor does one that is being made.
	if c, err := s.conns.dial(soon(t), "tcp", server.address); err == nil {
		c.Close()
		t.Error("there is a new connection")
	}
}

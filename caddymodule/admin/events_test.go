package admin

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestEventStreamEndsWithTheAdminServer(t *testing.T) {
	mux := http.NewServeMux()
	for _, route := range (Admin{}).Routes() {
		mux.HandleFunc(route.Pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := route.Handler.ServeHTTP(w, r); err != nil {
				t.Error(err)
			}
		})
	}
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	resp, err := srv.Client().Get(srv.URL + "/usher/events")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	done := make(chan error, 1)
	go func() { done <- srv.Config.Shutdown(t.Context()) }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasSuffix(string(body), "event: bye\ndata: {}\n\n") {
		t.Errorf("it ends with %q, %v", body, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	adminEnds.Lock()
	defer adminEnds.Unlock()
	if adminEnds.of[srv.Config] != nil {
		t.Error("the server is still registered")
	}
}

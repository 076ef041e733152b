package marathon

import (
	"context"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// credentials returns the credentials that came in, by node, all different.
func (m *masters) credentials() map[int]map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[int]map[string]bool)
	for _, c := range m.calls {
		if all[c.node] == nil {
			all[c.node] = make(map[string]bool)
		}
		all[c.node][strings.Join(c.header.Values("Authorization"), "|")] = true
	}
	return all
}

func TestEveryCallCarriesTheCredentials(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 2, []string{running("a", 31001)}
	b := start(t, &Backend{URLs: m.urls(), BasicAuth: &BasicAuth{User: "usher", Password: "secret"}})
	b.await("the task", phase("a", scaler.PhaseReady))
	m.awaitStream(1)
	b.scale(3)
	b.scale(3, id("a"))
	if err := b.r.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := m.credentials()[0]; len(got) != 1 || !got["Basic dXNoZXI6c2VjcmV0"] {
		t.Errorf("%v", got)
	}
}

func TestATokenIsReadAnewWhenItChanges(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	valid := "one"
	m.rule(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		if r.Header.Get("Authorization") == "token="+valid {
			return false
		}
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	b := start(t, &Backend{URLs: m.urls(), TokenFile: file})
	b.await("a report", func(r scaler.Report) bool { return r.Trouble == nil })
	m.set(func() { valid = "two" })
	b.r.app.kick()
	r := b.await("trouble", func(r scaler.Report) bool { return r.Trouble != nil })
	wantFailure(t, r.Trouble, scaler.ReasonForbidden, true, "credentials")
	write("two")
	b.await("no trouble", func(r scaler.Report) bool { return r.Trouble == nil })
	b.scale(1)
}

func TestCredentialsFollowNoRedirectToAStranger(t *testing.T) {
	t.Parallel()
	stranger := newMasters(t, 1)
	m := newMasters(t, 2)
	m.rule(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path == "/v2/events" || change(r) {
			http.Redirect(w, r, stranger.nodes[0].URL+r.URL.Path, http.StatusFound)
			return true
		}
		return false
	})
	b := start(t, &Backend{URLs: m.urls(), BasicAuth: &BasicAuth{User: "usher", Password: "secret"}})
	eventually(t, func() bool {
		return b.logs.FilterMessageSnippet("events cannot be had").Len() == 1
	}, "it is said that there are no events")
	entry := b.logs.FilterMessageSnippet("events cannot be had").All()[0]
	if text, _ := entry.ContextMap()["error"].(string); !strings.Contains(text, stranger.nodes[0].URL) || !strings.Contains(text, "add it") {
		t.Errorf("%v", entry.ContextMap())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	err := b.r.Scale(ctx, scaler.Order{Instances: 1})
	if err == nil || !strings.Contains(err.Error(), "redirect") {
		t.Errorf("%v", err)
	}
	stranger.mu.Lock()
	defer stranger.mu.Unlock()
	if len(stranger.calls) > 0 {
		t.Errorf("the stranger got %v, with %v", stranger.calls, stranger.calls[0].header)
	}
}

func TestEventsAreReadAtTheLeaderThatAStandbyNames(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 3)
	leader := m.nodes[2].URL
	m.rule(func(w http.ResponseWriter, r *http.Request, node int) bool {
		if r.URL.Path == "/v2/events" && node != 2 {
			http.Redirect(w, r, leader+r.URL.RequestURI(), http.StatusFound)
			return true
		}
		return false
	})
	start(t, &Backend{URLs: m.urls(), BasicAuth: &BasicAuth{User: "usher", Password: "secret"}})
	m.awaitStream(1)
	for node, got := range m.credentials() {
		if len(got) != 1 || !got["Basic dXNoZXI6c2VjcmV0"] {
			t.Errorf("node %d: %v", node, got)
		}
	}
	// Without credentials there is nothing to lose: a leader that is not
	// configured is listened to as well.
	start(t, &Backend{URLs: m.urls()[:2], App: "/other"})
	m.awaitStream(2)
}

func TestAStreamThatOnlyRedirectsIsGivenUp(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 2)
	m.rule(func(w http.ResponseWriter, r *http.Request, node int) bool {
		if r.URL.Path == "/v2/events" {
			http.Redirect(w, r, m.nodes[1-node].URL+"/v2/events", http.StatusFound)
			return true
		}
		return false
	})
	b := at(t, m)
	eventually(t, func() bool { return b.logs.FilterMessageSnippet("events cannot be had").Len() == 1 }, "it is said")
	m.set(func() { m.instances, m.tasks = 1, []string{running("a", 31001)} })
	b.await("the task, by reading alone", phase("a", scaler.PhaseReady))
	if n := m.count(http.MethodGet, "/v2/events"); n > 200 {
		t.Errorf("%d attempts", n)
	}
}

func TestTheBasePathGoesBeforeEverything(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	inner := m.nodes[0].Config.Handler
	s := httptest.NewServer(http.StripPrefix("/service/marathon", inner))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	b := start(t, &Backend{URLs: []string{s.URL + "/service/marathon/"}})
	m.awaitStream(1)
	b.scale(1)
	if err := b.r.Restart(t.Context()); err != nil {
		t.Error(err)
	}
	wantChanges(t, m, patch1, `POST /v2/apps/web/restart {}`)
}

func TestMembersAreCheckedAgainstTheCAFile(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	s := httptest.NewUnstartedServer(m.nodes[0].Config.Handler)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	ca := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	b := start(t, &Backend{URLs: []string{s.URL}, CAFile: ca})
	b.await("a report", func(r scaler.Report) bool { return r.Trouble == nil })
	b.scale(1)

	without := start(t, &Backend{URLs: []string{s.URL}})
	r := without.await("trouble", func(r scaler.Report) bool { return r.Trouble != nil })
	wantFailure(t, r.Trouble, scaler.ReasonPlatform, false, "certificate")
}

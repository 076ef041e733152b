package fleet_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"go.uber.org/goleak"

	_ "github.com/caddy-usher/usher"
	"github.com/caddy-usher/usher/test/addr"
	_ "github.com/caddy-usher/usher/test/docs/fleet"
	_ "github.com/caddy-usher/usher/test/docs/spare"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		http.DefaultClient.CloseIdleConnections()
		// These are Caddy's and live as long as the process, or some seconds
		// longer than their configuration: the sweeper of dynamic upstreams, the
		// admin server, and the lock of the storage.
		var own []goleak.Option
		for _, f := range []string{
			"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy.(*Upstream).fillDynamicHost.func1.1",
			"github.com/caddyserver/caddy/v2.replaceLocalAdminServer.func2",
			"github.com/caddyserver/certmagic.keepLockfileFresh",
		} {
			own = append(own, goleak.IgnoreAnyFunction(f))
		}
		if err := goleak.Find(own...); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// The backend and the policy that the pages show do in a real Caddy what the
// pages say: a request wakes a server of the fleet, the spare slot takes a
// second one, and without requests none is used.
func TestTheExamplesWork(t *testing.T) {
	server := func(text string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	site, admin := addr.Free(t).String(), addr.Free(t).String()
	storage, err := os.MkdirTemp("", "usher-fleet")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(storage) // Caddy may write to it for a moment longer
	text := fmt.Sprintf(`{
	admin %s
	default_bind 127.0.0.1
	persist_config off
	storage file_system %s
}
http://%s {
	usher app {
		backend fleet %s %s
		instances 0 2
		concurrency 1
		idle_timeout 1s
		scale spare {
			slots 1
		}
	}
}
`, admin, storage, site, server("one"), server("two"))
	doc, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(doc, true); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	}()

	for range 2 {
		if got := get(t, "http://"+site+"/"); got != "one" && got != "two" {
			t.Errorf("answered by %q", got)
		}
		wantAsleep(t, admin)
	}
	var decisions []struct{ To int }
	if err := json.Unmarshal([]byte(get(t, "http://"+admin+"/usher/services/app/decisions")), &decisions); err != nil {
		t.Fatal(err)
	}
	// While a request is inside, a second server is to spare: once for each.
	twice := 0
	for _, d := range decisions {
		if d.To == 2 {
			twice++
		}
	}
	if twice != 2 || decisions[0].To != 2 {
		t.Errorf("the target was 2 for %d of 2 requests: %+v", twice, decisions)
	}
}

// wantAsleep waits until no server is used any more.
func wantAsleep(t *testing.T, admin string) {
	t.Helper()
	var service struct{ State string }
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err := json.Unmarshal([]byte(get(t, "http://"+admin+"/usher/services/app")), &service); err != nil {
			t.Fatal(err)
		}
		if service.State == "asleep" {
			return
		}
	}
	t.Fatalf("the service is %s", service.State)
}

func get(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

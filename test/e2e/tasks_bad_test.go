package e2e

import (
	"encoding/binary"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/caddy-usher/usher/test/harness"
)

const preferAsync = "Prefer: respond-async"

// inStore is the directory of the store in files of c.
func inStore(c *harness.Caddy, name string) string {
	return filepath.Join(c.Path("data"), "caddy", "usher", "tasks", name)
}

// wantNothingStored checks that there is no task, and no body beside the database.
func wantNothingStored(t *testing.T, c *harness.Caddy, after string) {
	t.Helper()
	// Of a client that is gone Caddy learns in a moment.
	harness.Eventually(t, soon, func() bool {
		files, err := os.ReadDir(inStore(c, "bodies"))
		return err == nil && len(files) == 0
	}, "after %s there are no bodies", after)
	if r := c.Admin("GET", "/usher/tasks", ""); !strings.Contains(r.Body, `"tasks":[]`) {
		t.Errorf("after %s there are tasks: %s", after, r.Body)
	}
}

func TestABodyThatIsNotStoredWholeIsNotStoredAtAll(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, asyncBlock("max_body 200kB")))
	for name, send := range map[string]struct {
		head []string
		body string
		want int // 499: the client is gone
	}{
		"one that is too large":                {[]string{"Content-Length: 200001"}, strings.Repeat("x", 200_001), 413},
		"one without a length, too large":      {[]string{"Transfer-Encoding: chunked"}, "30D41\r\n" + strings.Repeat("x", 200_001) + "\r\n0\r\n\r\n", 413},
		"one that is cut off":                  {[]string{"Content-Length: 1000"}, "x", 499},
		"a large one that is cut off":          {[]string{"Content-Length: 150000"}, strings.Repeat("x", 149_999), 499},
		"one without a length that is cut off": {[]string{"Transfer-Encoding: chunked"}, "3E8\r\nx", 499},
		"one whose end is missing":             {[]string{"Transfer-Encoding: chunked"}, "1\r\nx\r\n", 499},
		"one with a wrong chunk":               {[]string{"Transfer-Encoding: chunked"}, "ZZ\r\nx\r\n", 400},
	} {
		conn := c.Dial()
		conn.SendHead("POST", "/echo", append(send.head, preferAsync)...)
		conn.Send(send.body)
		if tcp, ok := conn.Conn.(*net.TCPConn); ok && send.want == 499 {
			if err := tcp.CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		if r := conn.Receive(soon); r.Status != send.want {
			t.Errorf("%s: status %d, error %v: %s", name, r.Status, r.Err, r.Body)
		}
		// The same from a client that is gone.
		conn = c.Dial()
		conn.SendHead("POST", "/echo", append(send.head, preferAsync)...)
		conn.Send(send.body[:len(send.body)/2])
		conn.Abort()
		wantNothingStored(t, c, name)
	}
	conn := c.Dial()
	conn.SendHead("POST", "/echo", "Transfer-Encoding: chunked", preferAsync)
	conn.Send("3E8\r\n" + strings.Repeat("x", 1000) + "\r\n0\r\n\r\n")
	s := accepted(t, conn.Receive(soon))
	if s, _ := ends(t, c, s.URL, "done"); s.Size != 1000 {
		t.Errorf("a body without a length: %+v", s)
	}
}

func TestAnIdempotencyKeyOfAMegabyteIsRefused(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "async"))
	for size, want := range map[int]int{256: 400, 10_000: 400, 1 << 20: 431} {
		conn := c.Dial()
		go conn.SendHead("POST", "/echo", preferAsync, "Content-Length: 0", "Idempotency-Key: "+strings.Repeat("k", size))
		if r := conn.Receive(soon); r.Status != want {
			t.Errorf("a key of %d bytes: status %d, error %v, want %d", size, r.Status, r.Err, want)
		}
	}
	wantNothingStored(t, c, "long keys")
	accepted(t, later(c, "POST", "/echo", "", "Idempotency-Key", strings.Repeat("k", 255)))
}

func TestATaskIsThereForItsOwnerAlone(t *testing.T) {
	c := newCaddy(t)
	hash, status := c.Run("hash-password", "--plaintext", "secret")
	if status != 0 {
		t.Fatal(hash)
	}
	hash = strings.TrimSpace(hash)
	// Another service in the same site, with the same users.
	c.Start(harness.Config{Site: "basic_auth {\n\tann " + hash + "\n\tbob " + hash + "\n}\nhandle /other* {\n" +
		harness.Usher("other", c.Backend(), "async") + "\n}\nhandle {\n" + webBlock(c, nil, "instances 1", "concurrency 1", "async") + "\n}"})
	as := func(user, method, path string) harness.Response {
		r := &http.Request{Header: http.Header{"Prefer": {"respond-async"}, "Idempotency-Key": {"k"}}}
		r.SetBasicAuth(user, "secret")
		return c.Do(harness.Request{Method: method, Path: path, Header: r.Header})
	}
	s := accepted(t, as("ann", "POST", hold(c, "gate")))
	// Keys belong to users, too.
	if other := accepted(t, as("bob", "POST", hold(c, "gate"))); other.ID == s.ID {
		t.Error("the key of another user leads to this one's task")
	}
	if r := as("ann", "GET", s.URL); r.Status != http.StatusOK {
		t.Errorf("its owner: status %d, %s", r.Status, r.Body)
	}
	foreign := []string{"/other/.usher/tasks/" + s.ID} // ann's, of another service
	for _, path := range foreign {
		for _, method := range []string{"GET", "DELETE"} {
			if r := as("ann", method, path); r.Status != http.StatusNotFound {
				t.Errorf("%s %s: status %d", method, path, r.Status)
			}
		}
	}
	unknown := as("bob", "GET", "/.usher/tasks/"+strings.Repeat("0", len(s.ID)))
	for _, path := range []string{s.URL, s.URL + "?wait=1", s.URL + "/result"} {
		r := as("bob", "GET", path)
		// It cannot be told from one that there is not.
		if r.Status != http.StatusNotFound || r.Body != unknown.Body {
			t.Errorf("GET %s by another user: status %d, %s", path, r.Status, r.Body)
		}
	}
	if r := as("bob", "DELETE", s.URL); r.Status != http.StatusNotFound {
		t.Errorf("another user cancels it: status %d, %s", r.Status, r.Body)
	}
	if r := c.Get(s.URL); r.Status != http.StatusUnauthorized {
		t.Errorf("without a user: status %d", r.Status)
	}
	for _, id := range []string{"", "x", "..", "%2e%2e%2f", "%00", strings.Repeat("a", 10_000), s.ID + "0", s.ID[1:]} {
		if r := as("ann", "GET", "/.usher/tasks/"+id); r.Status != http.StatusNotFound {
			t.Errorf("the id %.60q: status %d, %s", id, r.Status, r.Body)
		}
	}
	c.Open("gate")
}

func TestAnInstanceThatIsNeverDoneMeetsTheTimeout(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, asyncBlock("attempts 1", "timeout 3s", "max_result 1MB")))
	large := accepted(t, later(c, "GET", "/bulk?n=100000000000", ""))
	slow := accepted(t, later(c, "GET", "/sse", ""))
	polled := accepted(t, later(c, "GET", "/later?at=/later", ""))
	plain := accepted(t, later(c, "GET", "/later", ""))
	if s, _ := ends(t, c, large.URL, "dead"); !strings.Contains(s.Reason, "max_result") || s.Result != "" {
		t.Errorf("a result that never ends: %+v", s)
	}
	for what, url := range map[string]string{"a result that trickles": slow.URL, "an instance that is asked for ever": polled.URL} {
		if s, _ := ends(t, c, url, "dead"); !strings.Contains(s.Reason, "timeout") || s.Result != "" {
			t.Errorf("%s: %+v", what, s)
		}
	}
	if s, _ := ends(t, c, plain.URL, "done"); s.Status != http.StatusAccepted || s.Size == 0 {
		t.Errorf("202 without a Location: %+v", s)
	}
	wantOK(t, c.Get("/"))
	if files, err := os.ReadDir(inStore(c, "bodies")); err != nil || len(files) > 0 {
		t.Errorf("%d bodies are left, error %v", len(files), err)
	}
}

func TestAStoreThatIsNotThisOnesStopsTheStart(t *testing.T) {
	c := newCaddy(t)
	key := func(name string) harness.Config { return web(c, nil, asyncBlock("encrypt "+name)) }
	c.Start(key("one"))
	s := accepted(t, later(c, "POST", "/echo", "hello"))
	ends(t, c, s.URL, "done")
	c.Stop()
	if err := c.TryStart(key("two")); err == nil || !strings.Contains(err.Error(), "the key of encryption is wrong") {
		t.Errorf("with another key: %v", err)
	}
	if err := c.TryStart(web(c, nil, "async")); err == nil || !strings.Contains(err.Error(), "is encrypted, and there is no key") {
		t.Errorf("without a key: %v", err)
	}
	version := func(add uint64) {
		t.Helper()
		db, err := bbolt.Open(inStore(c, "tasks.db"), 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(tx *bbolt.Tx) error {
			meta, name := tx.Bucket([]byte("meta")), []byte("version")
			return meta.Put(name, binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(meta.Get(name))+add))
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	version(1)
	if err := c.TryStart(key("one")); err == nil || !strings.Contains(err.Error(), "was written by a newer Usher") {
		t.Errorf("a store of a newer version: %v", err)
	}
	version(^uint64(0)) // one less
	// Nothing has changed it.
	c.Start(key("one"))
	if r := c.Get(s.URL + "/result"); r.Status != http.StatusOK || r.Body != "hello" {
		t.Errorf("the result: status %d, %q", r.Status, r.Body)
	}
}

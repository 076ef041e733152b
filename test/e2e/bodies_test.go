package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// inner is what every body of these tests is made of: if a part of it is
// taken for a request, the instance writes so in its journal. It goes to the
// same place as the request itself.
func inner(path string) string {
	place := "/"
	if strings.HasPrefix(path, "/plain/") {
		place = "/plain/"
	}
	return "GET " + place + "smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
}

// upload is one shape in which a client sends a body.
type upload struct {
	size      int
	chunked   bool
	parts     int  // with a pause between them
	expects   bool // Expect: 100-continue
	pipelined bool // the next request follows at once
}

func (u upload) String() string {
	return fmt.Sprintf("%d bytes in %d, chunked %v, expects %v, pipelined %v", u.size, u.parts, u.chunked, u.expects, u.pipelined)
}

func (u upload) body(path string) string {
	one := inner(path)
	return strings.Repeat(one, u.size/len(one)+1)[:u.size]
}

// uploads are the shapes at the limits at which something changes.
func uploads() (all []upload) {
	for _, size := range []int{0, 1, 65535, 65536, 65537} {
		for _, chunked := range []bool{false, true} {
			for _, parts := range []int{1, 3} {
				all = append(all, upload{size: size, chunked: chunked, parts: parts})
			}
		}
	}
	for _, chunked := range []bool{false, true} {
		all = append(all,
			upload{size: 5000, chunked: chunked, parts: 3, pipelined: true},
			upload{size: 300_000, chunked: chunked, parts: 1},
		)
	}
	return append(all,
		upload{size: 5000, parts: 1, expects: true},
		upload{size: 100_000, parts: 1, expects: true},
		upload{size: 5000, parts: 1, expects: true, pipelined: true},
	)
}

// outcome is what a client sees of an upload, and of its connection then.
type outcome struct {
	status int
	body   string
	then   string
}

// partPause is between the parts of a body.
const partPause = 30 * time.Millisecond

// dialSite connects a client that waits for soon at most.
func dialSite(c *harness.Caddy) (net.Conn, *bufio.Reader, error) {
	conn, err := net.DialTimeout("tcp", c.Addr, soon)
	if err != nil {
		return nil, nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(soon))
	return conn, bufio.NewReader(conn), nil
}

// send sends the upload and, if the connection stays, one more request. A
// client that has held parts back sends them when released is closed.
func (u upload) send(c *harness.Caddy, released <-chan struct{}, path, next string, fields ...string) outcome {
	conn, from, err := dialSite(c)
	if err != nil {
		return outcome{then: err.Error()}
	}
	defer conn.Close()

	head := []string{"POST " + path + " HTTP/1.1", "Host: localhost", fmt.Sprintf("Content-Length: %d", u.size)}
	if u.chunked {
		head[2] = "Transfer-Encoding: chunked"
	}
	if u.expects {
		head = append(head, "Expect: 100-continue")
	}
	if _, err := io.WriteString(conn, strings.Join(append(head, fields...), "\r\n")+"\r\n\r\n"); err != nil {
		return outcome{then: ending(err)}
	}
	sent := make(chan error, 1)
	if u.expects && !u.pipelined {
		// A client that has waited long enough sends all the same.
		_ = conn.SetReadDeadline(time.Now().Add(10 * partPause))
		_, _ = from.Peek(1)
		_ = conn.SetReadDeadline(time.Now().Add(soon))
	}
	go func() { sent <- u.write(conn, released, u.body(path), next) }()

	res, err := final(from)
	if err != nil {
		return outcome{then: ending(err)}
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return outcome{res.StatusCode, "", ending(err)}
	}
	o := outcome{res.StatusCode, u.shown(path, string(b)), ""}
	if res.Close {
		_, err := from.ReadByte()
		o.then = ending(err)
		return o
	}
	if err := <-sent; err != nil {
		o.then = ending(err)
		return o
	}
	if !u.pipelined {
		if _, err := io.WriteString(conn, request(next)); err != nil {
			o.then = ending(err)
			return o
		}
	}
	res, err = final(from)
	if err != nil {
		o.then = ending(err)
		return o
	}
	_, _ = io.Copy(io.Discard, res.Body)
	o.then = fmt.Sprint("serves ", res.StatusCode)
	return o
}

// shown is an answer without what differs from place to place.
func (u upload) shown(path, answer string) string {
	if answer == u.body(path) {
		return "the body"
	}
	if strings.HasPrefix(answer, "instance ") {
		return "the name of the instance"
	}
	return answer
}

func request(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n" }

// final reads an answer that is not informational.
func final(from *bufio.Reader) (*http.Response, error) {
	for {
		res, err := http.ReadResponse(from, nil)
		if err != nil || res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			return res, err
		}
	}
}

// now is the moment for parts that nothing holds back.
var now = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// write writes the body, and the next request where that follows at once.
func (u upload) write(conn net.Conn, released <-chan struct{}, body, next string) error {
	for i := range u.parts {
		if i > 0 {
			<-released
			time.Sleep(partPause)
		}
		part := body[u.size*i/u.parts : u.size*(i+1)/u.parts]
		if u.chunked && part != "" {
			part = fmt.Sprintf("%x\r\n%s\r\n", len(part), part)
		}
		if i == u.parts-1 {
			if u.chunked {
				part += "0\r\n\r\n"
			}
			if u.pipelined {
				part += request(next)
			}
		}
		if _, err := io.WriteString(conn, part); err != nil {
			return err
		}
	}
	return nil
}

// ending says how a connection has ended.
func ending(err error) string {
	var timeout net.Error
	switch {
	case err == nil:
		return "says more than it was asked"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "hangs"
	}
	return err.Error()
}

// runApp starts an instance that Usher does not know, on SpareAddr.
func runApp(t *testing.T, c *harness.Caddy) {
	t.Helper()
	cmd := exec.Command(c.App(), "-addr", c.SpareAddr)
	cmd.Env = []string{"APP_JOURNAL=" + c.Path("journal")}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	harness.Eventually(t, soon, func() bool { return harness.Listening(c.SpareAddr) }, "the app listens")
}

// wantNothingSmuggled checks that no part of a body that Usher had was
// executed. Caddy's own proxy is not held to that here.
func wantNothingSmuggled(t *testing.T, c *harness.Caddy) {
	t.Helper()
	for _, e := range c.Journal().Of("begin") {
		if e.Service == "" {
			continue
		}
		if strings.Contains(e.Path, "smuggled") || e.Method != http.MethodGet && e.Method != http.MethodPost {
			t.Errorf("a part of a body was executed: %+v", e)
		}
	}
}

// sendHeld sends all uploads to a service that sleeps, opens the gate of its
// instance once all of them are held, and returns what became of each.
func sendHeld(t *testing.T, c *harness.Caddy, n int, send func(i int, released <-chan struct{}) outcome) []outcome {
	t.Helper()
	outcomes := make([]outcome, n)
	released := make(chan struct{})
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { outcomes[i] = send(i, released) })
	}
	ok := harness.WaitFor(soon, func() bool { return c.Service("web").Waiting == n })
	c.Open("gate")
	close(released)
	all.Wait()
	if !ok {
		t.Errorf("not all of %d uploads were held", n)
	}
	return outcomes
}

// Whatever an instance does with a body, a client sees the same of a service
// that sleeps, of one that is awake, and of a plain reverse_proxy; of its
// connection, too.
func TestBodiesAndConnectionsAreAsWithAPlainProxy(t *testing.T) {
	const again = "lb_retries 1\nlb_retry_match {\nmethod POST\n}\n"
	for name, mode := range map[string]struct {
		path    string
		options string // of the proxy
		fields  []string
		once    bool // the path takes the file of an attempt that fails
	}{
		"whole":                   {path: "/echo"},
		"early":                   {path: "/early?code=401"},
		"early 200":               {path: "/early?code=200"},
		"without an answer":       {path: "/reset"},
		"hints first":             {path: "/hints"},
		"request_buffers":         {path: "/echo", options: "request_buffers 128KiB"},
		"early, request_buffers":  {path: "/early?code=401", options: "request_buffers 128KiB"},
		"the client wants to end": {path: "/early?code=401", fields: []string{"Connection: close"}},
		"retried":                 {path: "/fickle?n=1000&once=", options: again, once: true},
		"retried, early":          {path: "/fickle?n=0&once=", options: again, once: true},
		"retried, buffered":       {path: "/fickle?n=1000&once=", options: again + "request_buffers 512KiB", once: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCaddy(t)
			runApp(t, c)
			c.Start(harness.Config{Site: "handle_path /plain/* {\n\treverse_proxy " + c.SpareAddr + " {\n" + mode.options + "\n}\n}\nhandle {\n" +
				harness.Usher("web", c.Backend("-gate", c.Path("gate")), "drain_timeout 1s", "stop_timeout 1s", mode.options) + "\n}"})
			all := uploads()
			if mode.path == "/hints" {
				// net/http writes 100 and 103 without a common lock, which can
				// garble both. The plain proxy has that, too.
				all = slices.DeleteFunc(all, func(u upload) bool { return u.expects })
			}
			path := func(i int, before, temperature string) string {
				if !mode.once {
					return before + mode.path
				}
				file := fmt.Sprint(temperature, i)
				c.Open(file)
				return before + mode.path + c.Path(file)
			}
			var cold []string
			for i := range all {
				cold = append(cold, path(i, "", "cold"))
			}
			got := map[string][]outcome{"cold": sendHeld(t, c, len(all), func(i int, released <-chan struct{}) outcome {
				return all[i].send(c, released, cold[i], "/", mode.fields...)
			})}
			for i, u := range all {
				// A few failures in a row eject an instance.
				c.Get("/")
				got["warm"] = append(got["warm"], u.send(c, now, path(i, "", "warm"), "/", mode.fields...))
				plain := u.send(c, now, path(i, "/plain", "plain"), "/plain/", mode.fields...)
				for temperature, all := range got {
					if mode.once && plain.status == http.StatusOK && plain.body == "" && u.size > 0 {
						// The plain proxy has repeated the request without
						// its body. Usher must not.
						plain.status = http.StatusBadGateway
					}
					if !u.same(all[i], plain) {
						t.Errorf("%s, %s: %+v, plain: %+v", u, temperature, all[i], plain)
					}
				}
			}
			wantNothingSmuggled(t, c)
		})
	}
}

// same says whether a client can take one for the other. Of a body that is
// longer than it reads for the next request net/http reads more or less, as
// it comes; the plain proxy may even reset the connection, or take the rest
// for a request.
func (u upload) same(got, plain outcome) bool {
	if u.size > 256<<10 && (got.then == "serves" || got.then == "serves 200" || got.then == "closed") {
		got.then, plain.then = "", ""
	}
	if (plain.then == "reset" || plain.then == "hangs") && got.then == "closed" {
		// This is better. With Connection: close the plain proxy can leave the
		// connection open: net/http waits for a read of the body that it
		// cannot stop. Usher stops it.
		plain.then = got.then
	}
	if u.pipelined && plain.then == "closed" && got.then == "reset" {
		// The next request came after the last answer. Whether the kernel
		// tells of it depends on the moment, also with the plain proxy.
		got.then = plain.then
	}
	return got == plain
}

// A refused upload gets its answer as from a plain reverse_proxy whose server
// is not there, and the connection is in the same state then.
func TestRefusedUploadsAreAsWithAPlainProxy(t *testing.T) {
	// Nothing listens there.
	const dead = "127.0.0.1:1"
	t.Run("failing", func(t *testing.T) {
		c := newCaddy(t)
		startVanished(t, c, "handle_path /plain/* {\n\treverse_proxy "+dead+"\n}")
		refusedAsPlain(t, c, 503, 502)
	})
	t.Run("with a fallback", func(t *testing.T) {
		c := newCaddy(t)
		runApp(t, c)
		startVanished(t, c, "handle_path /plain/* {\n\treverse_proxy "+dead+"\n}\nhandle_errors {\n\trewrite /echo\n\treverse_proxy "+c.SpareAddr+"\n}")
		refusedAsPlain(t, c, 200, 200)
		wantNothingSmuggled(t, c)
	})
}

func refusedAsPlain(t *testing.T, c *harness.Caddy, status, plainStatus int) {
	t.Helper()
	all := append(uploads(), upload{size: 4_000_000, parts: 1}, upload{size: 4_000_000, chunked: true, parts: 1})
	for _, u := range all {
		plain := u.send(c, now, "/plain/", "/plain/")
		begun := time.Now()
		got := u.send(c, now, "/", "/")
		took := time.Since(begun)
		if took > harness.Slow(5*time.Second) {
			t.Errorf("%s: the refusal took %s", u, took)
		}
		if got.status != status || plain.status != plainStatus || status == 200 && (got.body != plain.body || u.size > 0 && got.body != "the body") {
			t.Errorf("%s: status %d, %d bytes; plain: %d, %d bytes", u, got.status, len(got.body), plain.status, len(plain.body))
		}
		got.status, got.body, plain.status, plain.body = 0, "", 0, ""
		for _, o := range []*outcome{&got, &plain} {
			if strings.HasPrefix(o.then, "serves 5") {
				o.then = "serves"
			}
		}
		if u.expects && got.then == "closed" {
			// The client was not told to send, and need not.
			continue
		}
		if u.parts > 1 && took > 200*time.Millisecond && got.then == "closed" {
			// A busy machine: the parts took longer than Usher waits.
			continue
		}
		if !u.same(got, plain) {
			t.Errorf("%s: the connection %s, plain %s", u, got.then, plain.then)
		}
	}
}

// The same over HTTP/2, where each request has a stream of its own.
func TestUploadsOverHTTP2AreAsWithAPlainProxy(t *testing.T) {
	c := newCaddy(t)
	runApp(t, c)
	c.Start(harness.Config{
		Global: "servers {\n\tprotocols h1 h2 h2c\n}",
		Site: "handle_path /plain/* {\n\treverse_proxy " + c.SpareAddr + "\n}\nhandle {\n" +
			harness.Usher("web", c.Backend("-gate", c.Path("gate")), "drain_timeout 1s", "stop_timeout 1s") + "\n}",
	})
	client := c.H2C()
	send := func(path string, u upload) outcome {
		var body io.Reader = strings.NewReader(u.body(path))
		if u.chunked {
			body = io.MultiReader(body) // hides the length
		}
		r := c.Do(harness.Request{Method: "POST", Path: path, Body: body, Client: client})
		if r.Err != nil {
			return outcome{then: r.Err.Error()}
		}
		return outcome{r.Status, u.shown(path, r.Body), r.Proto}
	}
	var all []upload
	for _, u := range uploads() {
		if !u.expects && !u.pipelined && u.parts == 1 {
			all = append(all, u)
		}
	}
	for _, path := range []string{"/echo", "/early?code=401", "/hints", "/reset"} {
		got := map[string][]outcome{"cold": sendHeld(t, c, len(all), func(i int, _ <-chan struct{}) outcome {
			return send(path, all[i])
		})}
		for i, u := range all {
			c.Get("/")
			got["warm"] = append(got["warm"], send(path, u))
			plain := send("/plain"+path, u)
			for temperature, all := range got {
				if !u.same(all[i], plain) {
					t.Errorf("%s, %s, %s: %+v, plain: %+v", path, u, temperature, all[i], plain)
				}
			}
		}
		c.Shut("gate")
		c.Post("web/sleep", "")
		c.AwaitProcesses(0, soon)
	}
	wantNothingSmuggled(t, c)
}

// A held upload leaves its HTTP/2 connection to the others.
func TestUploadsPassOneThatIsHeldOnTheirHTTP2Connection(t *testing.T) {
	c := newCaddy(t)
	runApp(t, c)
	c.Start(harness.Config{
		Global: "servers {\n\tprotocols h1 h2 h2c\n}",
		Site: "handle_path /plain/* {\n\treverse_proxy " + c.SpareAddr + "\n}\nhandle {\n" +
			harness.Usher("web", c.Backend("-gate", c.Path("gate"))) + "\n}",
	})
	client := c.H2C()
	body := bytes.Repeat([]byte("x"), 3<<20)
	held := c.Send(harness.Request{Method: "POST", Path: "/echo", Body: bytes.NewReader(body), Client: client})
	c.AwaitWaiting("web", 1)
	for range 3 {
		r := c.Do(harness.Request{Method: "POST", Path: "/plain/echo", Body: bytes.NewReader(body), Client: client})
		wantOK(t, r)
		if len(r.Body) != len(body) {
			t.Errorf("%d bytes came back of %d", len(r.Body), len(body))
		}
	}
	c.Open("gate")
	r := held.Wait(t, soon)
	wantOK(t, r)
	if r.Body != string(body) {
		t.Errorf("%d bytes came back of %d", len(r.Body), len(body))
	}
}

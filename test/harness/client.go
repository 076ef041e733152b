package harness

import (
	"cmp"
	"context"
	"crypto/tls"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"testing"
	"time"
)

// A Request is what a client sends. The zero value is GET / over HTTP/1.1.
type Request struct {
	Method string
	Path   string
	Host   string
	Header http.Header
	Body   io.Reader
	Client *http.Client // default: HTTP/1.1 to Addr
	TLS    bool         // to TLSAddr
}

// A Response is what came back, whole.
type Response struct {
	Status int
	Header http.Header
	Body   string
	Proto  string
	Hints  []textproto.MIMEHeader // 103 answers that came before
	Took   time.Duration
	Close  bool   // the server announced that it closes the connection
	Seq    string // X-Seq of the request, if it is one of a Load
	Err    error
}

// UsherError is the code of an error of Usher's own, or "".
func (r Response) UsherError() string { return r.Header.Get("Usher-Error") }

// A Pending is a request under way.
type Pending struct {
	done   chan struct{}
	cancel context.CancelFunc
	res    Response
}

// Wait waits for the answer.
func (p *Pending) Wait(t testing.TB, timeout time.Duration) Response {
	t.Helper()
	select {
	case <-p.done:
		return p.res
	case <-time.After(timeout):
		t.Fatalf("no answer within %s", timeout)
		return Response{}
	}
}

// Done tells whether the answer is there.
func (p *Pending) Done() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Cancel makes the client go away.
func (p *Pending) Cancel() { p.cancel() }

// Get asks for a path of the site and waits for the answer.
func (c *Caddy) Get(path string) Response {
	c.t.Helper()
	return c.Do(Request{Path: path})
}

// Do sends a request and waits for the answer, at most 30 s.
func (c *Caddy) Do(r Request) Response {
	c.t.Helper()
	return c.Send(r).Wait(c.t, 30*time.Second)
}

// Send sends a request and does not wait. What is still under way at the end
// of the test is given up.
func (c *Caddy) Send(r Request) *Pending {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &Pending{done: make(chan struct{}), cancel: cancel}
	url := "http://" + c.Addr + r.Path
	if r.TLS {
		url = "https://" + c.TLSAddr + r.Path
		r.Host = cmp.Or(r.Host, "localhost")
	}
	req, err := http.NewRequestWithContext(p.trace(ctx), r.Method, url, r.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Host = r.Host
	maps.Copy(req.Header, r.Header)
	client := r.Client
	if client == nil {
		client = c.client
	}
	c.t.Cleanup(func() {
		cancel()
		<-p.done
	})
	go func() {
		defer close(p.done)
		defer cancel()
		start := time.Now()
		p.fill(client.Do(req))
		p.res.Took = time.Since(start)
	}()
	return p
}

// trace collects the informational answers.
func (p *Pending) trace(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			if code == http.StatusEarlyHints {
				p.res.Hints = append(p.res.Hints, header)
			}
			return nil
		},
	})
}

func (p *Pending) fill(res *http.Response, err error) {
	if err != nil {
		p.res.Err = err
		p.res.Header = make(http.Header)
		return
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	p.res.Status, p.res.Header, p.res.Proto = res.StatusCode, res.Header, res.Proto
	p.res.Body, p.res.Err, p.res.Close = string(body), err, res.Close
}

// newClient returns a client without redirects and proxies; protocols
// nil means HTTP/1.1.
func newClient(protocols *http.Protocols) *http.Client {
	if protocols == nil {
		protocols = new(http.Protocols)
		protocols.SetHTTP1(true)
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSClientConfig:     tlsConfig(),
			Protocols:           protocols,
			MaxIdleConnsPerHost: 100,
			DisableCompression:  true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// H2C returns a client that speaks HTTP/2 without TLS.
func (c *Caddy) H2C() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return c.ofTest(newClient(protocols))
}

// tlsConfig accepts the certificate that Caddy makes itself.
func tlsConfig() *tls.Config {
	return &tls.Config{ServerName: "localhost", InsecureSkipVerify: true}
}

// H2 returns a client that speaks HTTP/2 over TLS. It waits until Caddy has
// its certificate, which is only being made when Caddy says that it serves.
func (c *Caddy) H2() *http.Client {
	c.t.Helper()
	Eventually(c.t, Slow(10*time.Second), func() bool {
		conn, err := tls.Dial("tcp", c.TLSAddr, tlsConfig())
		if err != nil {
			return false
		}
		return conn.Close() == nil
	}, "Caddy has a certificate")
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return c.ofTest(newClient(protocols))
}

// HTTP1 returns a client with connections of its own.
func (c *Caddy) HTTP1() *http.Client { return c.ofTest(newClient(nil)) }

func (c *Caddy) ofTest(client *http.Client) *http.Client {
	c.t.Cleanup(client.CloseIdleConnections)
	return client
}
